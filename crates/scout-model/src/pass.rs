//! What one pass through the model carries beside activations and weights.

use scout_device::Tensor;

use crate::batch::{Batch, Routes};
use crate::lora::LoraWeights;

/// What a block keeps for its backward pass; the rest is computed again there, with the stored routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything but what a norm or an activation function gives back in one sweep.
    Everything,
    /// Everything but the gate and up halves of the experts, the widest tensors of a layer.
    AllButGateUp,
    /// The block's input, and which expert each token chose.
    InputOnly,
}

/// Dropout of this pass: every adapter sees the same batch with different elements dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    pub probability: f32,
    pub seed: u64,
    pub step: u64,
}

#[derive(Debug)]
pub struct Pass<'a> {
    pub batch: &'a Batch,
    pub lora: &'a LoraWeights,
    pub dropout: Option<Dropout>,
    pub keep: Keep,
    pub routes: Option<&'a Routes>,
}

/// Sees intermediate tensors by name; training sees none of them.
pub trait Trace {
    /// Whether tensors are wanted at all, so that none is made only to be thrown away.
    fn is_on(&self) -> bool;
    fn record(&mut self, name: &str, tensor: &Tensor);

    /// Records a tensor of a layer: `layer.3.attn_in`.
    fn record_layer(&mut self, layer_index: usize, name: &str, tensor: &Tensor) {
        if self.is_on() {
            self.record(&format!("layer.{layer_index}.{name}"), tensor);
        }
    }
}

pub struct NoTrace;

impl Trace for NoTrace {
    fn is_on(&self) -> bool {
        false
    }

    fn record(&mut self, _name: &str, _tensor: &Tensor) {}
}
