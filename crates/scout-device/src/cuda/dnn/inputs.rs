//! What both passes are told beside their tensors: where documents lie, the scale, and the score of what is hidden.

use std::ffi::c_void;

use super::address::{Address, at, host};
use super::documents::IndexLayout;
use super::graph::{F32, Form, GraphBuilder, I32, Place, TensorId};
use super::shape::AttentionShape;
use crate::Result;

#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs {
    /// Tokens of each document: one number for rows and columns, since a document attends to itself.
    pub lengths: TensorId,
    /// Where each document begins, in elements of q and whatever is shaped like it.
    pub query_starts: TensorId,
    /// The same for k and v.
    pub kv_starts: TensorId,
    /// The same for what has one number for each token and query head.
    pub row_starts: TensorId,
    pub scale: TensorId,
    /// Minus infinity, the score of what does not count.
    pub hidden: TensorId,
}

impl Inputs {
    pub fn declare(graph: &mut GraphBuilder, shape: &AttentionShape) -> Result<Inputs> {
        let (slots, one) = (shape.slots(), Form::one(F32));
        let starts = Form::per_entry(I32, slots + 1);
        Ok(Inputs {
            query_starts: graph.tensor("starts of q", Place::Memory, starts)?,
            kv_starts: graph.tensor("starts of k and v", Place::Memory, starts)?,
            row_starts: graph.tensor("starts of rows", Place::Memory, starts)?,
            lengths: graph.tensor("lengths", Place::Memory, Form::per_entry(I32, slots))?,
            scale: graph.tensor("scale", Place::Value, one)?,
            hidden: graph.tensor("minus infinity", Place::Value, one)?,
        })
    }

    /// Where each of them is, when the index of the documents is at `index`. The numbers must outlive the launch.
    pub fn bindings(&self, shape: &AttentionShape, index: Address, values: &Values) -> [(TensorId, *mut c_void); 6] {
        let layout = IndexLayout::of(shape);
        let part = |start: usize| at(index + (start * size_of::<u32>()) as u64);
        [
            (self.lengths, part(layout.lengths)),
            (self.query_starts, part(layout.query_starts)),
            (self.kv_starts, part(layout.kv_starts)),
            (self.row_starts, part(layout.row_starts)),
            (self.scale, host(&values.scale)),
            (self.hidden, host(&values.hidden)),
        ]
    }
}

/// Numbers that are read on the host while a graph is launched.
pub(super) struct Values {
    pub scale: f32,
    pub hidden: f32,
    pub one: f32,
}

impl Values {
    pub fn new(scale: f32) -> Values {
        Values { scale, hidden: f32::NEG_INFINITY, one: 1.0 }
    }
}
