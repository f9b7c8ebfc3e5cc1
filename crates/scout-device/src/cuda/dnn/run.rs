//! Both passes at the level of addresses: plans, kept by shape, and the memory that each tensor of a graph is bound to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use cudarc::cudnn::sys;
use scout_core::ByteCount;

use super::address::{Address, at, host};
use super::api::Api;
use super::graph_backward::{self, BackwardTensors};
use super::graph_forward::{self, ForwardTensors};
use super::handle::Handle;
use super::inputs::Values;
use super::plan::Plan;
use super::shape::{AttentionShape, SumOrder};
use crate::Result;
use crate::cuda::tables::Cudnn;

/// Where parts of the scratch memory begin are multiples of this many bytes.
const LINE: usize = 256;

/// cuDNN on one device, with every plan made so far.
pub(in crate::cuda) struct Runner {
    // Dropped before the handle that they were made with.
    forward: HashMap<AttentionShape, (Plan, ForwardTensors)>,
    backward: HashMap<AttentionShape, (Plan, BackwardTensors)>,
    handle: Handle,
    api: Api,
}

// SAFETY: cuDNN lets any thread use a handle and its plans, one at a time; every use takes `&mut self`.
unsafe impl Send for Runner {}

/// What the forward pass reads and writes.
pub(in crate::cuda) struct ForwardMemory {
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub index: Address,
    pub context: Address,
    pub log_sum_exp: Address,
    pub scratch: Address,
}

/// What the backward pass reads and writes.
pub(in crate::cuda) struct BackwardMemory {
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub index: Address,
    pub context: Address,
    pub log_sum_exp: Address,
    pub dcontext: Address,
    pub dq: Address,
    pub dk: Address,
    pub dv: Address,
    pub scratch: Address,
}

/// Which tensors that only some graphs have are there.
#[derive(Debug, Clone, Copy)]
struct Parts {
    dq_sums: bool,
    per_query_head: bool,
}

impl Parts {
    fn of(tensors: &BackwardTensors) -> Parts {
        Parts { dq_sums: tensors.dq_sums.is_some(), per_query_head: tensors.dk_per_query_head.is_some() }
    }
}

/// Bytes from the beginning of the backward pass's scratch memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BackwardScratch {
    row_sums: usize,
    dq_sums: usize,
    dk_per_query_head: usize,
    dv_per_query_head: usize,
    workspace: usize,
    end: usize,
}

impl BackwardScratch {
    fn of(shape: &AttentionShape, num_tokens: usize, workspace_bytes: usize, parts: Parts) -> Self {
        let heads = shape.heads();
        let rows = num_tokens * heads.query;
        let mut end = 0;
        let mut part = |bytes: usize| {
            let start = end;
            end = (start + bytes).next_multiple_of(LINE);
            start
        };
        let elements_if = |there: bool| if there { rows * heads.size } else { 0 };
        BackwardScratch {
            row_sums: part(rows * size_of::<f32>()),
            dq_sums: part(elements_if(parts.dq_sums) * size_of::<f32>()),
            dk_per_query_head: part(elements_if(parts.per_query_head) * size_of::<half::bf16>()),
            dv_per_query_head: part(elements_if(parts.per_query_head) * size_of::<half::bf16>()),
            workspace: part(workspace_bytes),
            end,
        }
    }
}

/// Scratch memory of the backward pass as far as it is known before there is a plan: all but some KiB that cuDNN asks for
/// besides. Where the order of sums is fixed, cuDNN keeps the gradients of all scores, in bf16.
pub fn backward_scratch(shape: &AttentionShape, num_tokens: usize) -> ByteCount {
    let of_scores = match shape.sum_order() {
        SumOrder::Any => 0,
        SumOrder::Fixed => shape.score_dims().iter().product::<i64>() as usize * size_of::<half::bf16>(),
    };
    let parts = Parts { dq_sums: shape.sum_order() == SumOrder::Any, per_query_head: shape.shares_keys() };
    ByteCount(BackwardScratch::of(shape, num_tokens, of_scores, parts).end as u64)
}

/// The most scratch memory that a backward pass is worth: behind it others compute it. An order of sums that is fixed costs
/// the square of the longest document for as many documents as there may be, which for a pack of short ones is out of all
/// proportion.
pub fn most_scratch(sum_order: SumOrder) -> ByteCount {
    match sum_order {
        SumOrder::Any => ByteCount(u64::MAX),
        SumOrder::Fixed => ByteCount(4 << 30),
    }
}

impl Runner {
    /// For the device whose context is current on this thread.
    pub fn new(table: Cudnn) -> Result<Runner> {
        let api = Api::new(table)?;
        let handle = Handle::new(api)?;
        Ok(Runner { forward: HashMap::new(), backward: HashMap::new(), handle, api })
    }

    /// What [`Runner::forward`] needs beside its tensors, in bytes. Makes the plan, at the first call for a shape.
    pub fn forward_scratch(&mut self, shape: &AttentionShape) -> Result<usize> {
        Ok(self.forward_plan(shape)?.0.workspace_bytes())
    }

    /// The same for [`Runner::backward`].
    pub fn backward_scratch(&mut self, shape: &AttentionShape, num_tokens: usize) -> Result<usize> {
        let (plan, tensors) = self.backward_plan(shape)?;
        Ok(BackwardScratch::of(shape, num_tokens, plan.workspace_bytes(), Parts::of(tensors)).end)
    }

    /// Queues the forward pass.
    ///
    /// # Safety
    /// `stream` must be live and of this runner's device. Every address must be a multiple of 16, as large as its tensor
    /// (`scratch` as [`Runner::forward_scratch`] says), and stay so until the stream has passed this work. `index` must
    /// hold what [`super::DocumentIndex`] made for this shape and no more tokens than the tensors have.
    pub unsafe fn forward(
        &mut self,
        shape: &AttentionShape,
        stream: sys::cudaStream_t,
        memory: &ForwardMemory,
        scale: f32,
    ) -> Result<()> {
        self.forward_plan(shape)?;
        let (plan, tensors) = &self.forward[shape];
        let values = Values::new(scale);
        let mut bindings = tensors.inputs.bindings(shape, memory.index, &values).to_vec();
        bindings.extend([
            (tensors.q, at(memory.q)),
            (tensors.k, at(memory.k)),
            (tensors.v, at(memory.v)),
            (tensors.context, at(memory.context)),
            (tensors.log_sum_exp, at(memory.log_sum_exp)),
        ]);
        // SAFETY: the caller vouches for the stream and all addresses; `values` lives until the call returns, and
        // the bindings name every tensor of the graph that has a place.
        unsafe {
            self.handle.set_stream(stream)?;
            plan.execute(&self.handle, &bindings, at(memory.scratch))
        }
    }

    /// Queues the backward pass.
    ///
    /// # Safety
    /// As for [`Runner::forward`], with `scratch` as [`Runner::backward_scratch`] says for `num_tokens`, which must be
    /// the number of tokens that the tensors have.
    pub unsafe fn backward(
        &mut self,
        (shape, num_tokens): (&AttentionShape, usize),
        stream: sys::cudaStream_t,
        memory: &BackwardMemory,
        scale: f32,
    ) -> Result<()> {
        self.backward_plan(shape)?;
        let (plan, tensors) = &self.backward[shape];
        let scratch = BackwardScratch::of(shape, num_tokens, plan.workspace_bytes(), Parts::of(tensors));
        let part = |start: usize| at(memory.scratch + start as u64);
        let values = Values::new(scale);
        let mut bindings = tensors.inputs.bindings(shape, memory.index, &values).to_vec();
        bindings.extend([
            (tensors.q, at(memory.q)),
            (tensors.k, at(memory.k)),
            (tensors.v, at(memory.v)),
            (tensors.context, at(memory.context)),
            (tensors.log_sum_exp, at(memory.log_sum_exp)),
            (tensors.dcontext, at(memory.dcontext)),
            (tensors.dq, at(memory.dq)),
            (tensors.dk, at(memory.dk)),
            (tensors.dv, at(memory.dv)),
            (tensors.row_sums, part(scratch.row_sums)),
            (tensors.one, host(&values.one)),
        ]);
        bindings.extend(tensors.dq_sums.map(|tensor| (tensor, part(scratch.dq_sums))));
        bindings.extend(tensors.dk_per_query_head.map(|tensor| (tensor, part(scratch.dk_per_query_head))));
        bindings.extend(tensors.dv_per_query_head.map(|tensor| (tensor, part(scratch.dv_per_query_head))));
        // SAFETY: as in the forward pass; the parts of the scratch memory are as large as their tensors.
        unsafe {
            self.handle.set_stream(stream)?;
            plan.execute(&self.handle, &bindings, part(scratch.workspace))
        }
    }

    fn forward_plan(&mut self, shape: &AttentionShape) -> Result<&(Plan, ForwardTensors)> {
        match self.forward.entry(*shape) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(place) => {
                let (graph, tensors) = graph_forward::build(self.api, shape)?;
                let plan = Plan::make(self.api, &self.handle, graph)?;
                Ok(place.insert((plan, tensors)))
            }
        }
    }

    fn backward_plan(&mut self, shape: &AttentionShape) -> Result<&(Plan, BackwardTensors)> {
        match self.backward.entry(*shape) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(place) => {
                let (graph, tensors) = graph_backward::build(self.api, shape)?;
                let plan = Plan::make(self.api, &self.handle, graph)?;
                Ok(place.insert((plan, tensors)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Heads;
    use super::*;

    #[test]
    fn parts_of_the_scratch_memory_follow_each_other_and_grow_with_the_tokens_alone() {
        let heads = Heads { query: 40, kv: 8, size: 128 };
        let parts = Parts { dq_sums: true, per_query_head: true };
        let few = AttentionShape::new(heads, 1, 1, SumOrder::Any).unwrap();
        let many = AttentionShape::new(heads, 64, 8192, SumOrder::Any).unwrap();
        assert_eq!(BackwardScratch::of(&few, 1000, 77, parts), BackwardScratch::of(&many, 1000, 77, parts));
        let scratch = BackwardScratch::of(&few, 1000, 77, parts);
        assert_eq!(scratch.dq_sums, 160_000);
        assert_eq!(scratch.dk_per_query_head, 160_000 + 20_480_000);
        assert_eq!(scratch.dv_per_query_head - scratch.dk_per_query_head, 10_240_000);
        assert_eq!(scratch.workspace - scratch.dv_per_query_head, 10_240_000);
        assert_eq!(scratch.end - scratch.workspace, 256);
        let none = BackwardScratch::of(&few, 1000, 0, Parts { dq_sums: false, per_query_head: false });
        assert_eq!(none.end, 160_000);
    }
}
