//! Attention by cuDNN: forward and backward over packed documents of any lengths, in bf16.
//!
//! `api` and `descriptor` check every answer, `graph` gathers operations, `graph_forward` and `graph_backward` are the
//! patterns that cuDNN's engines know, `plan` turns a graph into kernels, `run` keeps plans and binds memory to them,
//! and `engine` is what a device keeps of that. Nothing here knows of tensors: `attention.rs`, beside this folder, does.

pub(super) mod address;
mod api;
mod descriptor;
pub(super) mod documents;
pub(super) mod engine;
pub(super) mod graph;
mod graph_backward;
mod graph_forward;
mod handle;
mod inputs;
mod masks;
mod plan;
pub(super) mod run;
pub(super) mod shape;

pub use documents::DocumentIndex;
pub use engine::Attention;
pub use run::{backward_scratch, most_scratch};
pub use shape::{AttentionShape, Heads, SumOrder};
