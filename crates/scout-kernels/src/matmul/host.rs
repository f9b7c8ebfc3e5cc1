//! Products by candle. Transposing is a change of strides; no factor is copied.

use candle_core as candle;
use scout_device::Tensor;
use scout_device::error::InOperation;

use crate::Result;

pub(crate) fn nn(a: &candle::Tensor, b: &candle::Tensor) -> Result<Tensor> {
    Tensor::from_host(a.matmul(b).during("matmul")?)
}

/// Up to this many rows, the kernels read a transposed second factor in steps of a whole row, at a third of the speed.
const FEW_ROWS: usize = 16;

pub(crate) fn nt(a: &candle::Tensor, b: &candle::Tensor) -> Result<Tensor> {
    let (num_rows, num_columns) = (a.dims()[0], b.dims()[0]);
    if num_rows <= FEW_ROWS && num_columns > 4 * FEW_ROWS {
        // (b·aᵀ)ᵀ instead; transposing a few columns costs little beside the product.
        let transposed = b.matmul(&a.t().during("matmul")?).during("matmul")?;
        return Tensor::from_host(transposed.t().during("matmul")?);
    }
    nn(a, &b.t().during("matmul")?)
}

pub(crate) fn tn(a: &candle::Tensor, b: &candle::Tensor) -> Result<Tensor> {
    nn(&a.t().during("matmul")?, b)
}
