//! How a block sees its weights: a source that hands out whole units, and a unit whose end of life gives its memory
//! back. The model asks through this border and the sharding answers through it; neither knows the other.

use std::ops::Range;
use std::sync::Arc;

use scout_core::{Shape, UnitId, UnitSpec};

use crate::tensor::Tensor;
use crate::{DeviceError, Lease, Result};

/// Hands out the units of one block, each whole, in the order in which the plan gathers them.
pub trait UnitSource {
    /// Waits until `unit` is whole. Fails when it is not the next one of the block.
    fn take(&mut self, unit: UnitId) -> Result<UnitWeights>;
}

/// The weights of one unit, whole. Dropping it ends its use: the memory may be written again.
#[derive(Debug)]
pub struct UnitWeights {
    spec: Arc<UnitSpec>,
    flat: Tensor,
    // Held, never read: the bytes leave the account when the last reader of the unit is gone.
    _lease: Option<Arc<Lease>>,
}

impl UnitWeights {
    /// `flat` holds the parameters of `spec` one behind the other; padding may follow.
    pub fn new(spec: Arc<UnitSpec>, flat: Tensor, lease: Option<Arc<Lease>>) -> Result<UnitWeights> {
        if flat.dims().len() != 1 || flat.num_elements() < spec.num_elements() {
            return Err(DeviceError::Shape {
                what: "weights of a unit",
                found: flat.shape().clone(),
                expected: format!("one dimension of at least {} elements", spec.num_elements()),
            });
        }
        Ok(UnitWeights { spec, flat, _lease: lease })
    }

    /// Parameter `index` in the order of the unit's list, in its own shape.
    pub fn param(&self, index: usize) -> Result<Tensor> {
        self.span(index..index + 1, self.spec.params[index].shape.clone())
    }

    /// Neighbouring parameters seen as one tensor: gate and up as one matrix of twice the rows.
    pub fn span(&self, params: Range<usize>, shape: Shape) -> Result<Tensor> {
        let before: usize = self.spec.params[..params.start].iter().map(|p| p.num_elements()).sum();
        let count: usize = self.spec.params[params].iter().map(|p| p.num_elements()).sum();
        self.flat.rows(before, count)?.reshape(shape)
    }
}
