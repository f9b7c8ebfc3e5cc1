//! Matrices of one shape, one for each expert. Neighbours among them may lie apart from the others: where a rank keeps whole
//! experts of a unit that is gathered, kernels read those where they are kept, and nobody copies them beside the others.

use std::ops::Range;

use scout_core::Shape;

use crate::tensor::Tensor;
use crate::{DeviceError, Result};

#[derive(Debug, Clone)]
pub struct Matrices {
    /// `[E, K, N]`; without own ones, and first those behind them, then those before them.
    others: Tensor,
    own: Option<Own>,
}

#[derive(Debug, Clone)]
struct Own {
    first: usize,
    /// `[n, K, N]`.
    tensor: Tensor,
}

impl From<&Tensor> for Matrices {
    /// All of them in one tensor of three dimensions.
    fn from(all: &Tensor) -> Matrices {
        Matrices { others: all.clone(), own: None }
    }
}

impl Matrices {
    /// `own` from `first` on, and `others` around them: first those behind, then those before.
    pub fn around(first: usize, own: Tensor, others: Tensor) -> Result<Matrices> {
        const WHAT: &str = "matrices that lie apart";
        let ((num_others, k, n), (num_own, ..)) = (others.dims3(WHAT)?, own.dims3(WHAT)?);
        own.expect_dims(WHAT, &[num_own, k, n])?;
        if first > num_others || own.dtype() != others.dtype() {
            let expected = format!("of {}, from {first} on beside {num_others} others", others.dtype());
            return Err(DeviceError::Shape { what: WHAT, found: Shape(own.dims().to_vec()), expected });
        }
        Ok(Matrices { others, own: Some(Own { first, tensor: own }) })
    }

    /// How many, and their extents.
    pub fn dims3(&self, what: &'static str) -> Result<(usize, usize, usize)> {
        let (num_others, k, n) = self.others.dims3(what)?;
        Ok((num_others + self.own().0.len(), k, n))
    }

    /// Where they lie: one tensor or two, of three dimensions each.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.others).chain(self.own.as_ref().map(|own| &own.tensor))
    }

    /// The tensor that holds all but those of [`Matrices::own`]: first those behind them, then those before them.
    pub fn others(&self) -> &Tensor {
        &self.others
    }

    /// Which lie apart, and where; none of them where all lie together.
    pub fn own(&self) -> (Range<usize>, &Tensor) {
        match &self.own {
            Some(Own { first, tensor }) => (*first..*first + tensor.dims()[0], tensor),
            None => (0..0, &self.others),
        }
    }

    /// The tensor in which a matrix lies, and its place there.
    pub fn find(&self, index: usize) -> (&Tensor, usize) {
        let (which, own) = self.own();
        match which.contains(&index) {
            true => (own, index - which.start),
            false if index < which.start => (&self.others, self.others.dims()[0] - which.start + index),
            false => (&self.others, index - which.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(first: f32, dims: [usize; 3]) -> Tensor {
        let count = dims.iter().product::<usize>();
        Tensor::from_f32((0..count).map(|i| first + i as f32).collect(), dims).unwrap()
    }

    #[test]
    fn each_matrix_is_found_where_it_lies() {
        for (first_own, expected) in
            [(0, [100.0, 102.0, 0.0, 2.0, 4.0]), (1, [4.0, 100.0, 102.0, 0.0, 2.0]), (3, [0.0, 2.0, 4.0, 100.0, 102.0])]
        {
            let matrices = Matrices::around(first_own, tensor(100.0, [2, 1, 2]), tensor(0.0, [3, 1, 2])).unwrap();
            let first = |index| {
                let (tensor, place) = matrices.find(index);
                tensor.f32s().unwrap()[2 * place]
            };
            assert_eq!([0, 1, 2, 3, 4].map(first), expected, "own from {first_own} on");
            assert_eq!(matrices.dims3("matrices").unwrap(), (5, 1, 2));
        }
        let together = Matrices::from(&tensor(0.0, [4, 1, 2]));
        assert_eq!((together.find(2).1, together.own().0, together.tensors().count()), (2, 0..0, 1));
    }

    #[test]
    fn own_matrices_that_do_not_fit_among_others_are_refused() {
        for (first, own, fits) in [(2, [2, 1, 2], true), (3, [2, 1, 2], false), (0, [4, 2, 1], false)] {
            let matrices = Matrices::around(first, tensor(0.0, own), tensor(0.0, [2, 1, 2]));
            assert_eq!(matrices.is_ok(), fits, "{first} {own:?}");
        }
    }
}
