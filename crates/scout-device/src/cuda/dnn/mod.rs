//! Attention by cuDNN: forward and backward over packed documents of any lengths, in bf16.
//!
//! `api` and `descriptor` check every answer, `graph` gathers operations, `graph_forward` and `graph_backward` are the
//! patterns that cuDNN's engines know, `plan` turns a graph into kernels, `run` keeps plans and binds memory to them, and
//! `attention` is what others use.

mod api;
mod attention;
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

pub use attention::{Attended, Attention, Documents, QkvGradients};
pub use documents::DocumentIndex;
pub use shape::{AttentionShape, Heads, SumOrder};
