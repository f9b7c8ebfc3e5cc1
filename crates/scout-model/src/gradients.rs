//! Where the backward pass leaves what it finds: sums for the adapter, and the gradients of those weights that somebody
//! trains. What becomes of them is not known here.

use scout_core::UnitId;
use scout_device::Tensor;

use crate::error::{ModelError, Result};
use crate::lora::LoraGradients;

/// Takes the gradients of base weights. Parameters are named by their place in the list of their unit.
pub trait WeightGradients {
    /// Whether this gradient is worth its product. The answer does not change during a pass.
    fn wants(&self, unit: UnitId, param: usize) -> bool;

    /// Adds a gradient of the parameter's own shape.
    fn add(&mut self, unit: UnitId, param: usize, gradient: &Tensor) -> scout_device::Result<()>;
}

/// Every weight is frozen: only adapters are trained.
pub struct NoWeights;

impl WeightGradients for NoWeights {
    fn wants(&self, _unit: UnitId, _param: usize) -> bool {
        false
    }

    fn add(&mut self, _unit: UnitId, _param: usize, _gradient: &Tensor) -> scout_device::Result<()> {
        Ok(())
    }
}

/// All that a backward pass adds to.
pub struct Gradients<'a> {
    pub lora: &'a mut LoraGradients,
    pub weights: &'a mut dyn WeightGradients,
}

impl Gradients<'_> {
    /// Makes the gradient of a parameter where it is wanted, and only there.
    pub(crate) fn add<E: Into<ModelError>>(
        &mut self,
        unit: UnitId,
        param: usize,
        make: impl FnOnce() -> std::result::Result<Tensor, E>,
    ) -> Result<()> {
        if self.weights.wants(unit, param) {
            self.weights.add(unit, param, &make().map_err(Into::into)?)?;
        }
        Ok(())
    }
}
