//! From summed gradients to new parameters: reduce, measure, clip, AdamW on this rank's parts, gather. Every rank takes
//! the same decision, because all of them see the same norm.

use std::collections::BTreeMap;
use std::ops::Range;

use scout_comm::Communicator;
use scout_core::{DType, UnitId};
use scout_device::{Buffer, Tensor};
use scout_kernels::adamw::{self, GpuState, Hyper};
use scout_kernels::norms;
use scout_model::{Gradients, LoraGradients};

use crate::adapter::{AdapterGradient, AdapterState};
use crate::reducer::Reducer;
use crate::{Result, TrainError};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSettings {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; `None` leaves them as they are.
    pub max_grad_norm: Option<f64>,
}

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

/// One step of AdamW, the same for everything that is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    hyper: Hyper,
    clip: f32,
}

impl Update {
    /// `step` counts from 0. Fails, before anything has moved, when the norm is not finite.
    pub fn new(settings: &OptimizerSettings, norm: f64, learning_rate: f64, step: usize) -> Result<Update> {
        if !norm.is_finite() {
            return Err(TrainError::NotANumber { what: "gradient norm", step });
        }
        // The small constant is the one of the usual trainers: a norm just above the bound shrinks by it too.
        let clip = settings.max_grad_norm.map_or(1.0, |bound| (bound / (norm + 1e-6)).min(1.0));
        let hyper = Hyper {
            learning_rate,
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            weight_decay: settings.weight_decay,
            step: step as u64 + 1,
        };
        Ok(Update { hyper, clip: clip as f32 })
    }

    /// Moves `parameters` and both of their moments.
    pub fn apply(
        &self,
        parameters: &mut [f32],
        gradient: &[f32],
        (first_moment, second_moment): (&mut [f32], &mut [f32]),
        decays: bool,
    ) -> Result<()> {
        let weight_decay = if decays { self.hyper.weight_decay } else { 0.0 };
        let hyper = Hyper { weight_decay, ..self.hyper };
        Ok(adamw::update(parameters, gradient, first_moment, second_moment, self.clip, &hyper)?)
    }
}

impl Update {
    /// Moves the elements `range` of runs on a GPU, all of which decay. Queued, not awaited.
    pub fn apply_on_gpu(&self, state: GpuState, gradient: &Tensor, range: Range<usize>) -> scout_device::Result<()> {
        adamw::update_on_gpu(state, gradient, range, self.clip, &self.hyper)
    }
}

/// Adds up f64 values of all ranks, in rank order, exactly alike on every rank.
pub fn sum_over_ranks<const N: usize>(comm: &dyn Communicator, values: [f64; N]) -> Result<[f64; N]> {
    let sums = sums_over_ranks(comm, &values)?;
    Ok(std::array::from_fn(|index| sums[index]))
}

/// The same for any number of values, equal on all ranks.
pub fn sums_over_ranks(comm: &dyn Communicator, values: &[f64]) -> Result<Vec<f64>> {
    let own: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let all = Buffer::zeros(DType::U8, own.len() * comm.mesh().size())?;
    let all = comm.all_gather(&Buffer::from_u8(own), all)?.wait()?;
    let mut sums = vec![0.0; values.len()];
    for (index, bytes) in all.u8s()?.chunks_exact(8).enumerate() {
        sums[index % values.len()] += f64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    Ok(sums)
}
