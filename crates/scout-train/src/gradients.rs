//! The gradients of an update: where a backward pass leaves them, and their sum over all ranks with its norm. Moves no
//! parameter.

use std::collections::BTreeMap;

use scout_comm::Communicator;
use scout_core::UnitId;
use scout_device::Buffer;
use scout_kernels::norms;
use scout_model::{Gradients, LoraGradients};

use crate::adapter::{AdapterGradient, AdapterState};
use crate::error::Result;
use crate::reducer::Reducer;
use crate::sums::sums_over_ranks;

/// What the micro-batches of an update add up to. A run trains adapters or weights; the other of the two stays empty.
pub struct StepGradients<'a> {
    pub lora: LoraGradients,
    pub weights: Reducer<'a>,
}

impl StepGradients<'_> {
    /// Where a backward pass leaves its gradients.
    pub fn sink(&mut self) -> Gradients<'_> {
        Gradients { lora: &mut self.lora, weights: &mut self.weights }
    }
}

/// This rank's parts of the gradient, summed over all ranks.
#[derive(Debug)]
pub struct ReducedGradient {
    pub adapter_part: AdapterGradient,
    /// Of each unit of which something is trained.
    pub weight_parts: BTreeMap<UnitId, Buffer>,
    /// L2 norm of the whole gradient, before clipping.
    pub norm: f64,
}

/// Sums the gradients of all ranks and leaves each with its parts. Returns at the same point on every rank.
pub fn reduce(gradients: StepGradients, adapter: &AdapterState, comm: &dyn Communicator) -> Result<ReducedGradient> {
    let adapter_part = adapter.reduce(gradients.lora, comm)?;
    let weight_parts = gradients.weights.into_sums()?;
    // Unit by unit and within it rank by rank, however the weights are held.
    let mut squares = vec![adapter_part.sum_of_squares()?];
    for part in weight_parts.values() {
        squares.push(norms::sum_of_squares(part.f32s()?));
    }
    let norm = sums_over_ranks(comm, &squares)?.into_iter().sum::<f64>().sqrt();
    Ok(ReducedGradient { adapter_part, weight_parts, norm })
}
