//! Products by cuBLASLt, which sums in f32.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{CudaDevice, DeviceBuffer, Factor, Scale, Window};

use super::columns::Columns;
use crate::Result;

/// In the memory of `sum`, if there is one. Fails when something else looks at that.
pub(super) fn added(device: &Arc<CudaDevice>, sum: Option<Tensor>, factors: [Factor; 2]) -> Result<Tensor> {
    let (m, n) = result_of(&factors);
    let (mut y, scale) = match sum {
        Some(sum) => (DeviceBuffer::from_tensor(sum)?, Scale::ADD),
        None => (device.buffer(factors[0].tensor.dtype(), [m, n])?, Scale::OVERWRITE),
    };
    device.multiply(factors, (&mut y, Window::whole(m, n)), scale)?;
    Ok(y.into_tensor())
}

pub(super) fn tn(device: &Arc<CudaDevice>, factors: [Factor; 2]) -> Result<Tensor> {
    let (m, n) = result_of(&factors);
    let mut y = device.buffer(DType::F32, [m, n])?;
    device.multiply(factors, (&mut y, Window::whole(m, n)), Scale::OVERWRITE)?;
    Ok(y.into_tensor())
}

pub(super) fn add_tn(sums: &mut DeviceBuffer, start: usize, factors: [Factor; 2], scale: f32) -> Result<()> {
    let (m, n) = result_of(&factors);
    let device = sums.device().clone();
    device.multiply(factors, (sums, Window { start, ..Window::whole(m, n) }), Scale { alpha: scale, beta: 1.0 })
}

/// The contract checked the shapes, and that there is a pair.
pub(super) fn side_by_side(device: &Arc<CudaDevice>, pairs: &[(Columns, &Tensor)], transposed: bool) -> Result<Tensor> {
    let factors: Vec<[Factor; 2]> =
        pairs.iter().map(|&(a, b)| [a.on_gpu(false), Columns::from(b).on_gpu(transposed)]).collect();
    let (rows, width) = (factors[0][0].window.rows, factors.iter().map(|factors| result_of(factors).1).sum());
    let mut y = device.buffer(factors[0][0].tensor.dtype(), [rows, width])?;
    let is_sum_over_nothing = |[a, _]: &[Factor; 2]| a.window.columns == 0;
    if factors.iter().any(is_sum_over_nothing) {
        y.clear()?;
    }
    let mut start = 0;
    for factors in factors {
        let window = Window { start, rows, columns: result_of(&factors).1, leading: width };
        start += window.columns;
        if !is_sum_over_nothing(&factors) {
            device.multiply(factors, (&mut y, window), Scale::OVERWRITE)?;
        }
    }
    Ok(y.into_tensor())
}

/// Rows and columns of a product.
fn result_of([a, b]: &[Factor; 2]) -> (usize, usize) {
    let m = if a.transposed { a.window.columns } else { a.window.rows };
    let n = if b.transposed { b.window.rows } else { b.window.columns };
    (m, n)
}
