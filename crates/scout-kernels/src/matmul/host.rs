//! Products by candle. Transposing and taking columns are changes of strides; no factor is copied.

use candle_core as candle;
use scout_device::Tensor;
use scout_device::error::InOperation;

use super::columns::Columns;
use crate::Result;
use crate::host::{filled, for_each_row};

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

/// `product + sum`, in the memory of the product, which nobody else holds.
pub(crate) fn added(sum: Option<Tensor>, product: Tensor) -> Result<Tensor> {
    let Some(sum) = sum.filter(|sum| sum.num_elements() > 0) else { return Ok(product) };
    let width = product.dims()[1];
    let values = sum.f32s()?;
    let values = &values[..];
    crate::host::write("sum of matmuls", product.host()?, |product| {
        for_each_row(product, width, |row, product| {
            for (product, &value) in product.iter_mut().zip(&values[row * width..][..width]) {
                *product += value;
            }
        });
    })?;
    Ok(product)
}

/// Each product comes in memory of its own and is copied to its columns: they are narrow ones.
pub(super) fn side_by_side(pairs: &[(Columns, &Tensor)], transposed: bool) -> Result<Tensor> {
    let form = if transposed { nt } else { nn };
    let parts: Vec<Tensor> = pairs.iter().map(|(a, b)| form(&a.on_host()?, b.host()?)).collect::<Result<_>>()?;
    beside(&parts, pairs[0].0.tensor.dims()[0])
}

/// Matrices of as many rows, side by side.
pub(crate) fn beside(parts: &[Tensor], num_rows: usize) -> Result<Tensor> {
    let widths: Vec<usize> = parts.iter().map(|part| part.dims()[1]).collect();
    let values = parts.iter().map(Tensor::f32s).collect::<Result<Vec<_>>>()?;
    let values: Vec<&[f32]> = values.iter().map(|values| &values[..]).collect();
    let width = widths.iter().sum();
    filled([num_rows, width], |y| {
        for_each_row(y, width, |row, mut y| {
            for (values, &width) in values.iter().zip(&widths) {
                let (own, others) = y.split_at_mut(width);
                own.copy_from_slice(&values[row * width..][..width]);
                y = others;
            }
        });
    })
}
