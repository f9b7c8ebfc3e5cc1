//! From summed gradients to new parameters: reduce, measure, clip, AdamW on this rank's part, gather. Every rank takes
//! the same decision, because all of them see the same norm.

use scout_comm::Communicator;
use scout_core::DType;
use scout_device::Buffer;
use scout_kernels::adamw::{self, Hyper};
use scout_kernels::norms;
use scout_model::LoraGradients;

use crate::adapter::AdapterState;
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

/// This rank's part of the gradient, summed over all ranks.
#[derive(Debug)]
pub struct ReducedGradient {
    part: Buffer,
    /// L2 norm of the whole gradient, before clipping.
    pub norm: f64,
}

/// Sums the gradients of all ranks and leaves each with its part. Returns at the same point on every rank.
pub fn reduce(gradients: LoraGradients, adapter: &AdapterState, comm: &dyn Communicator) -> Result<ReducedGradient> {
    let mut full = Buffer::zeros(DType::F32, adapter.flat().len())?;
    full.copy_from(0, &gradients.into_flat())?;
    let part = Buffer::zeros(DType::F32, adapter.own_range().len())?;
    let part = comm.reduce_scatter(full, part)?.wait()?;
    let [sum_of_squares] = sum_over_ranks(comm, [norms::sum_of_squares(part.f32s()?)])?;
    Ok(ReducedGradient { part, norm: sum_of_squares.sqrt() })
}

/// Moves the adapter by one step of AdamW. `step` counts from 0. Fails, and moves nothing, when the norm is not finite.
pub fn update(
    adapter: &mut AdapterState,
    gradient: &ReducedGradient,
    settings: &OptimizerSettings,
    learning_rate: f64,
    step: usize,
    comm: &dyn Communicator,
) -> Result<()> {
    if !gradient.norm.is_finite() {
        return Err(TrainError::NotANumber { what: "gradient norm", step });
    }
    // The small constant is the one of the usual trainers: a norm just above the bound shrinks by it too.
    let clip = settings.max_grad_norm.map_or(1.0, |bound| (bound / (gradient.norm + 1e-6)).min(1.0));
    let hyper = Hyper {
        learning_rate,
        beta1: settings.beta1,
        beta2: settings.beta2,
        epsilon: settings.epsilon,
        weight_decay: settings.weight_decay,
        step: step as u64 + 1,
    };
    let mut own = adapter.flat().f32s()?[adapter.own_range()].to_vec();
    let AdapterState { first_moment, second_moment, .. } = adapter;
    adamw::update(&mut own, gradient.part.f32s()?, first_moment, second_moment, clip as f32, &hyper)?;
    let full = Buffer::zeros(DType::F32, adapter.flat().len())?;
    adapter.replace(comm.all_gather(&Buffer::from_f32(own), full)?.wait()?);
    Ok(())
}

/// Adds up f64 values of all ranks, in rank order, exactly alike on every rank.
pub fn sum_over_ranks<const N: usize>(comm: &dyn Communicator, values: [f64; N]) -> Result<[f64; N]> {
    let own: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let all = Buffer::zeros(DType::U8, own.len() * comm.mesh().size())?;
    let all = comm.all_gather(&Buffer::from_u8(own), all)?.wait()?;
    let mut sums = [0.0; N];
    for (index, bytes) in all.u8s()?.chunks_exact(8).enumerate() {
        sums[index % N] += f64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    Ok(sums)
}
