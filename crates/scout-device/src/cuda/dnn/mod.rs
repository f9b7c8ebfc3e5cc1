//! Attention by cuDNN: forward and backward over packed documents of any lengths, in bf16.

mod api;
mod descriptor;
mod documents;
mod graph;
mod graph_backward;
mod graph_forward;
mod handle;
mod inputs;
mod masks;
mod plan;
mod run;
mod shape;
#[cfg(test)]
mod tests;

pub use documents::DocumentIndex;
pub use shape::{AttentionShape, Gradients, Heads};
