//! One step of AdamW over a flat run of numbers, in place: parameters and moments are overwritten. The order of
//! operations is torch's single-tensor AdamW, each rounded to f32; scalars are computed in f64. Every element is on its
//! own, so a shard of the run gives the same bits as the whole, and a GPU gives the bits of the host.

mod cuda;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

use scout_device::Tensor;
use scout_device::cuda::DeviceBuffer;

use crate::{Result, check};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Decoupled: taken off the parameter before the step, not added to the gradient.
    pub weight_decay: f64,
    /// Counts from 1.
    pub step: u64,
}

/// `gradient_scale` multiplies each gradient before it is used; clipping is such a scale.
pub fn update(
    parameters: &mut [f32],
    gradients: &[f32],
    first_moment: &mut [f32],
    second_moment: &mut [f32],
    gradient_scale: f32,
    hyper: &Hyper,
) -> Result<()> {
    let expected = parameters.len();
    for found in [gradients.len(), first_moment.len(), second_moment.len()] {
        if found != expected {
            return Err(check::refusal("adamw", format!("found {found} elements, expected {expected}")));
        }
    }
    check_step(hyper)?;
    let state = host::State { parameters, first_moment, second_moment };
    host::update(state, gradients, gradient_scale, hyper);
    Ok(())
}

/// Flat f32 runs of one length on a GPU, overwritten by a step.
pub struct GpuState<'a> {
    pub parameters: &'a mut DeviceBuffer,
    pub first_moment: &'a mut DeviceBuffer,
    pub second_moment: &'a mut DeviceBuffer,
    /// Where the new parameters go in bf16 as well: what arithmetic uses.
    pub rounded: Option<&'a mut DeviceBuffer>,
}

/// As [`update`], for the elements `range` of runs on a GPU. `gradients` is as long as they are. Queued on the compute
/// stream.
pub fn update_on_gpu(
    state: GpuState,
    gradients: &Tensor,
    range: Range<usize>,
    gradient_scale: f32,
    hyper: &Hyper,
) -> Result<()> {
    check_step(hyper)?;
    cuda::update(state, gradients, range, &host::Scalars::new(gradient_scale, hyper))
}

fn check_step(hyper: &Hyper) -> Result<()> {
    match hyper.step {
        0 => Err(check::refusal("adamw", "found step 0, expected steps from 1".to_string())),
        _ => Ok(()),
    }
}
