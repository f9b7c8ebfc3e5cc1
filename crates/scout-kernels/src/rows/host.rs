//! Copies of whole rows, shared out among threads by the rows of the result.

use scout_device::Tensor;

use crate::host::{filled, for_each_row};
use crate::{Result, check};

/// Every index lies inside `x`.
pub(crate) fn gather(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let width = x.dims()[1];
    let (x, index) = (x.f32s()?, index.u32s()?);
    let (x, index) = (&x[..], &index[..]);
    filled([index.len(), width], |y| {
        for_each_row(y, width, |row, y| y.copy_from_slice(&x[index[row] as usize * width..][..width]));
    })
}

pub(super) fn scatter(dx: &Tensor, index: &Tensor, num_rows: usize) -> Result<Tensor> {
    let width = dx.dims()[1];
    let (dx, index) = (dx.f32s()?, index.u32s()?);
    let dx = &dx[..];
    let mut source = vec![None; num_rows];
    for (row, &target) in index.iter().enumerate() {
        if source[target as usize].replace(row).is_some() {
            return Err(check::refusal("scatter of rows", format!("found index {target} twice, expected it once")));
        }
    }
    filled([num_rows, width], |y| {
        for_each_row(y, width, |target, y| {
            if let Some(row) = source[target] {
                y.copy_from_slice(&dx[row * width..][..width]);
            }
        });
    })
}
