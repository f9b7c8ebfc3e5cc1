//! From summed gradients to new parameters: clip, and AdamW on whatever this rank keeps the moments of. Every rank takes
//! the same decision, because all of them see the same norm.

use std::ops::Range;

use scout_device::Tensor;
use scout_kernels::adamw::{self, GpuState, Hyper};

use crate::error::{Result, TrainError};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSettings {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; `None` leaves them as they are.
    pub max_grad_norm: Option<f64>,
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

    /// Moves the elements `range` of runs on a GPU, all of which decay. Queued, not awaited.
    pub fn apply_on_gpu(&self, state: GpuState, gradient: &Tensor, range: Range<usize>) -> scout_device::Result<()> {
        adamw::update_on_gpu(state, gradient, range, self.clip, &self.hyper)
    }
}
