//! Matrices of one shape, one for each expert. Neighbours among them may lie apart from the others: where a rank keeps whole
//! experts of a unit that is gathered, kernels read those where they are kept, and nobody copies them beside the others.

use std::ops::Range;

use scout_core::Shape;

use crate::tensor::Tensor;
use crate::{DeviceError, Result};

#[derive(Debug, Clone)]
pub struct Matrices {
    /// `[E, K, N]`. What is in it at the places of `own` has no meaning.
    all: Tensor,
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
        Matrices { all: all.clone(), own: None }
    }
}

impl Matrices {
    /// Those of `all` but for some from `first` on, which lie in `own`.
    pub fn with_own(all: Tensor, first: usize, own: Tensor) -> Result<Matrices> {
        const WHAT: &str = "matrices that lie apart";
        let ((num_matrices, k, n), (num_own, ..)) = (all.dims3(WHAT)?, own.dims3(WHAT)?);
        own.expect_dims(WHAT, &[num_own, k, n])?;
        if first + num_own > num_matrices || own.dtype() != all.dtype() {
            let expected = format!("{} from {first} on among {num_matrices} of {}", num_own, all.dtype());
            return Err(DeviceError::Shape { what: WHAT, found: Shape(own.dims().to_vec()), expected });
        }
        Ok(Matrices { all, own: Some(Own { first, tensor: own }) })
    }

    /// How many, and their extents.
    pub fn dims3(&self, what: &'static str) -> Result<(usize, usize, usize)> {
        self.all.dims3(what)
    }

    /// Where they lie: one tensor or two, of three dimensions each.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.all).chain(self.own.as_ref().map(|own| &own.tensor))
    }

    /// The tensor that holds all but those of [`Matrices::own`].
    pub fn all(&self) -> &Tensor {
        &self.all
    }

    /// Which lie apart, and where; none of them where all lie together.
    pub fn own(&self) -> (Range<usize>, &Tensor) {
        match &self.own {
            Some(Own { first, tensor }) => (*first..*first + tensor.dims()[0], tensor),
            None => (0..0, &self.all),
        }
    }

    /// The tensor in which a matrix lies, and its place there.
    pub fn find(&self, index: usize) -> (&Tensor, usize) {
        let (which, own) = self.own();
        if which.contains(&index) { (own, index - which.start) } else { (&self.all, index) }
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
        let matrices = Matrices::with_own(tensor(0.0, [4, 1, 2]), 1, tensor(100.0, [2, 1, 2])).unwrap();
        let first = |index| {
            let (tensor, place) = matrices.find(index);
            tensor.f32s().unwrap()[2 * place]
        };
        assert_eq!([0, 1, 2, 3].map(first), [0.0, 100.0, 102.0, 6.0]);
        let together = Matrices::from(&tensor(0.0, [4, 1, 2]));
        assert_eq!((together.find(2).1, together.own().0, together.tensors().count()), (2, 0..0, 1));
    }

    #[test]
    fn own_matrices_that_do_not_fit_among_all_are_refused() {
        for (first, own, fits) in [(2, [2, 1, 2], true), (3, [2, 1, 2], false), (0, [4, 2, 1], false)] {
            assert_eq!(
                Matrices::with_own(tensor(0.0, [4, 1, 2]), first, tensor(0.0, own)).is_ok(),
                fits,
                "{first} {own:?}"
            );
        }
    }
}
