//! How a block sees its weights: a source that hands out whole units, and a unit whose end of life gives its memory
//! back. The model asks through this border and the sharding answers through it; neither knows the other.

use std::ops::Range;
use std::sync::Arc;

use scout_core::{Shape, UnitId, UnitSpec};

use crate::matrices::Matrices;
use crate::tensor::Tensor;
use crate::{DeviceError, Lease, Result};

/// Hands out the units of one block, each whole, in the order in which the plan gathers them.
pub trait UnitSource {
    /// Waits until `unit` is whole. Fails when it is not the next one of the block.
    fn take(&mut self, unit: UnitId) -> Result<UnitWeights>;
}

/// The weights of one unit, as a block needs them. Dropping it ends its use: the memory may be written again.
#[derive(Debug)]
pub struct UnitWeights {
    spec: Arc<UnitSpec>,
    held: Held,
    // Held, never read: the bytes leave the account when the last reader of the unit is gone.
    _lease: Option<Arc<Lease>>,
}

#[derive(Debug)]
enum Held {
    /// All of them, one behind the other.
    Together(Tensor),
    /// Own elements from `start` on are read where this rank keeps them; of the others come first those behind, then those
    /// before them.
    Around { start: usize, own: Tensor, others: Tensor },
    /// Those of own experts, to which rows come from all ranks.
    OwnExperts(Tensor),
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
        Ok(UnitWeights { spec, held: Held::Together(flat), _lease: lease })
    }

    /// Nothing but matrices of experts, for [`UnitWeights::matrices`]: some from element `start` on in `own`, and around them
    /// `others`, first those behind, then those before.
    pub fn around(spec: Arc<UnitSpec>, (start, own): (usize, Tensor), others: Tensor) -> UnitWeights {
        UnitWeights { spec, held: Held::Around { start, own, others }, _lease: None }
    }

    /// Of a unit of nothing but matrices of experts those that this rank keeps, for [`UnitWeights::matrices`].
    pub fn of_own_experts(spec: Arc<UnitSpec>, own: Tensor) -> UnitWeights {
        UnitWeights { spec, held: Held::OwnExperts(own), _lease: None }
    }

    /// Parameter `index` in the order of the unit's list, in its own shape.
    pub fn param(&self, index: usize) -> Result<Tensor> {
        self.span(index..index + 1, self.spec.params[index].shape.clone())
    }

    /// The matrices of experts, which are all that the unit has: of all of them, or of own ones.
    pub fn matrices(&self) -> Result<Matrices> {
        const WHAT: &str = "matrices of experts";
        let [param] = &self.spec.params[..] else {
            return Err(self.refusal(WHAT, "a unit of one parameter"));
        };
        if let Held::Together(flat) = &self.held {
            return Ok(Matrices::from(&flat.rows(0, param.num_elements())?.reshape(param.shape.clone())?));
        }
        let [num_matrices, k, n] = *param.shape.dims() else {
            return Err(self.refusal(WHAT, "a parameter of three dimensions"));
        };
        let whole = |flat: &Tensor| match flat.num_elements() / (k * n) {
            count if count <= num_matrices && flat.num_elements() == count * k * n => Ok(count),
            _ => Err(self.refusal(WHAT, "own elements that are whole matrices of it")),
        };
        match &self.held {
            Held::Together(_) => unreachable!("taken above"),
            Held::OwnExperts(own) => Ok(Matrices::from(&own.reshape([whole(own)?, k, n])?)),
            Held::Around { start, .. } if !start.is_multiple_of(k * n) => {
                Err(self.refusal(WHAT, "own elements that are whole matrices of it"))
            }
            Held::Around { start, own, others } => {
                let num_own = whole(own)?;
                let others = others.reshape([num_matrices - num_own, k, n])?;
                Matrices::around(start / (k * n), own.reshape([num_own, k, n])?, others)
            }
        }
    }

    /// Neighbouring parameters seen as one tensor: gate and up as one matrix of twice the rows.
    pub fn span(&self, params: Range<usize>, shape: Shape) -> Result<Tensor> {
        let Held::Together(flat) = &self.held else {
            return Err(self.refusal("parameters of a unit", "all of it at one place"));
        };
        let before: usize = self.spec.params[..params.start].iter().map(|p| p.num_elements()).sum();
        let count: usize = self.spec.params[params].iter().map(|p| p.num_elements()).sum();
        flat.rows(before, count)?.reshape(shape)
    }

    fn refusal(&self, what: &'static str, expected: &str) -> DeviceError {
        let (Held::Together(found) | Held::Around { own: found, .. } | Held::OwnExperts(found)) = &self.held;
        DeviceError::Shape { what, found: found.shape().clone(), expected: expected.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use scout_core::ParamSpec;

    use super::*;

    #[test]
    fn own_matrices_are_found_among_those_of_the_unit_and_nothing_else_is_handed_out() {
        let spec = UnitSpec { id: UnitId(0), name: "u".into(), params: vec![ParamSpec::new("p", [4, 1, 2])] };
        let values = |first: f32, count: usize| (0..count).map(|i| first + i as f32).collect::<Vec<_>>();
        // Padding behind the last one.
        let flat = Tensor::from_f32(values(0.0, 9), [9]).unwrap();
        let spec = Arc::new(spec);
        let unit = UnitWeights::new(spec.clone(), flat, None).unwrap();
        let firsts = |unit: &UnitWeights| {
            let matrices = unit.matrices().unwrap();
            [0, 1, 2, 3].map(|index| {
                let (tensor, place) = matrices.find(index);
                tensor.f32s().unwrap()[2 * place]
            })
        };
        assert_eq!((firsts(&unit), unit.param(0).is_ok()), ([0.0, 2.0, 4.0, 6.0], true));
        let tensor = |first, count| Tensor::from_f32(values(first, count), [count]).unwrap();
        let around = |start, own| UnitWeights::around(spec.clone(), (start, tensor(100.0, own)), tensor(0.0, 4));
        let unit = around(2, 4);
        assert_eq!((firsts(&unit), unit.param(0).is_ok()), ([2.0, 100.0, 102.0, 0.0], false));
        for (start, own) in [(1, 4), (2, 2), (2, 10), (6, 4)] {
            assert!(around(start, own).matrices().is_err(), "{own} from {start} on");
        }
        let own = UnitWeights::of_own_experts(spec.clone(), tensor(100.0, 4));
        let matrices = own.matrices().unwrap();
        assert_eq!((matrices.dims3("own").unwrap(), matrices.find(1).1, own.param(0).is_ok()), ((2, 1, 2), 1, false));
        assert!(UnitWeights::of_own_experts(spec, tensor(100.0, 3)).matrices().is_err());
    }
}
