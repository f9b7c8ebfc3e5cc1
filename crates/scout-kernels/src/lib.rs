//! The arithmetic of the model, one folder per op: `mod.rs` is the contract, `host.rs` computes it on the CPU and
//! `reference.rs` says the same in plain loops for tests. Nothing here knows of layers, ranks or files.
//!
//! No sum depends on how many threads there are: every op returns the same bits on one core and on many. Every op
//! takes batches without tokens.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod grouped_matmul;
pub mod lora;
pub mod matmul;
pub mod noise;
pub mod norms;
pub mod qk_position;
pub mod rms_norm;
pub mod router;
pub mod rows;
pub mod selftest;
pub mod swiglu;

mod check;
mod cuda;
mod exp;
mod host;
#[cfg(test)]
mod test_inputs;
#[cfg(test)]
mod thread_tests;

pub type Result<T> = std::result::Result<T, scout_device::DeviceError>;
