//! Where the parts meet: the resolved plan of a run, the trainer and its step, the optimizer, loading, evaluation, and
//! the comparison with recorded numbers. Nothing below this crate knows all of model, shards and data.

#![forbid(unsafe_code)]

pub mod adapter;
mod adapter_on_gpu;
mod adapter_sums;
pub mod assemble;
pub mod attention_plans;
mod buckets;
mod choice;
pub mod error;
mod fill;
mod gpu_store;
pub mod gpu_weights;
pub mod gradients;
pub mod identity;
pub mod learning_rate;
pub mod load;
pub mod load_bench;
pub mod machine;
pub mod memory;
pub mod optimizer;
pub mod plan;
pub mod prepare;
pub mod rates;
pub mod readers;
pub mod recorder;
pub mod reducer;
pub mod run;
pub mod runs;
pub mod save;
pub mod schedules;
mod seated;
pub mod session;
pub mod step_bench;
pub mod sums;
pub mod synth;
pub mod timeline;
pub mod times;
pub mod trained_weights;
pub mod trainer;
pub mod verify;
pub mod ways;
pub mod weight_set;

pub use error::{Result, TrainError};
pub use seated::Seated;
pub use trainer::{StepReport, StepSettings, Trainer};
