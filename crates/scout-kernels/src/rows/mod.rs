//! Rows moved by index, and copies of whole tensors. Results are new tensors, and exact.
//!
//! On a GPU the host does not see the indices. What it would refuse shows itself there: a row gathered from outside is not
//! a number, nor is one that two rows are scattered to; a row scattered to outside is dropped.
#![expect(non_snake_case, reason = "shape suffixes: T and N rows, D width")]

pub(crate) mod cuda;
pub(crate) mod host;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use scout_device::{DeviceError, Tensor};

use crate::{Result, check};

/// Row `index[i]` of `x` as row `i`: `[N, D]`. Fails for an index outside of `x`.
pub fn gather(x_TD: &Tensor, index_N: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "gather of rows";
    let (num_rows, _) = x_TD.dims2(WHAT)?;
    check_index(WHAT, index_N)?;
    if let Some(device) = check::place(WHAT, &[x_TD, index_N])? {
        return cuda::gather(device, x_TD, index_N);
    }
    check::indices(WHAT, &index_N.u32s()?, num_rows)?;
    host::gather(x_TD, index_N)
}

/// Row `i` of `dx` as row `index[i]` of `num_rows` rows, zeros elsewhere. Fails for an index outside of them, and for
/// one that occurs twice: what to do then would be a choice.
pub fn scatter(dx_ND: &Tensor, index_N: &Tensor, num_rows: usize) -> Result<Tensor> {
    const WHAT: &str = "scatter of rows";
    let (count, _) = dx_ND.dims2(WHAT)?;
    index_N.expect_dims(WHAT, &[count])?;
    if let Some(device) = check::place(WHAT, &[dx_ND, index_N])? {
        return cuda::scatter(device, dx_ND, index_N, num_rows);
    }
    check::indices(WHAT, &index_N.u32s()?, num_rows)?;
    host::scatter(dx_ND, index_N, num_rows)
}

/// The same elements in memory of their own, for somebody who adds to them.
pub fn copy(x: &Tensor) -> Result<Tensor> {
    match x.cuda() {
        None => Tensor::from_f32(x.to_f32_vec()?, x.shape().clone()),
        Some(device) => cuda::copy(device, x),
    }
}

fn check_index(what: &'static str, index: &Tensor) -> Result<()> {
    match index.dims().len() {
        1 => Ok(()),
        _ => Err(DeviceError::Shape { what, found: index.shape().clone(), expected: "one dimension".to_string() }),
    }
}
