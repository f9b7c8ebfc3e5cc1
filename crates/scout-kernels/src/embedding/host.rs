//! Tokens sorted by id, so that every thread sums rows of its own.

use scout_device::Tensor;

use crate::Result;
use crate::host::{filled, for_each_row, sum_over_rows};

/// Every id is below `vocabulary`.
pub(super) fn weight_gradient(dx: &Tensor, ids: &Tensor, vocabulary: usize) -> Result<Tensor> {
    let width = dx.dims()[1];
    let (dx, ids) = (dx.f32s()?, ids.u32s()?);
    let dx = &dx[..];
    let mut tokens: Vec<usize> = (0..ids.len()).collect();
    // Stable: tokens of one id stay in the order of the batch.
    tokens.sort_by_key(|&token| ids[token]);
    let first_of = |id: usize| tokens.partition_point(|&token| (ids[token] as usize) < id);
    let starts: Vec<usize> = (0..=vocabulary).map(first_of).collect();
    filled([vocabulary, width], |dweight| {
        for_each_row(dweight, width, |id, dweight| {
            let of_id = &tokens[starts[id]..starts[id + 1]];
            if !of_id.is_empty() {
                sum_over_rows(dweight, 0, of_id.iter().copied(), |token, column| f64::from(dx[token * width + column]));
            }
        });
    })
}
