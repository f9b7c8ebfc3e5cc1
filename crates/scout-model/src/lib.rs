//! Llama 4 as a list of blocks, each with a forward and a backward pass written by hand. The model knows nothing of
//! ranks, files or data sets: weights come from a [`scout_device::UnitSource`], tokens from a [`Batch`].

#![forbid(unsafe_code)]

pub mod adapted;
pub mod adapted_experts;
pub mod attention;
pub mod batch;
pub mod config;
pub mod error;
pub mod experts;
pub mod gradients;
pub mod head;
pub mod lora;
pub mod model;
pub mod pass;
pub mod rope;
mod routed_rows;
pub mod units;
pub mod vision;

pub use batch::{AttendedPairs, Batch, Document, Routes, Target};
pub use config::{ModelConfig, VisionConfig};
pub use error::{ModelError, Result};
pub use gradients::{Gradients, NoWeights, WeightGradients};
pub use lora::{LoraGradients, LoraLayout, LoraSettings, LoraWeights};
pub use model::{Block, Model, SavedBlock};
pub use pass::{Keep, Keeping, KeptRows, NoTrace, Pass, Trace, lies_evenly};
pub use units::{LayerUnits, NameStyle, UnitPlan};
