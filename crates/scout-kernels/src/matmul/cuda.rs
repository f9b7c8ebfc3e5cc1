//! Products by cuBLASLt, which sums in f32.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{CudaDevice, DeviceBuffer, Factor, Scale, Window};

use crate::Result;

pub(super) fn nn(device: &Arc<CudaDevice>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    product(device, [whole(a, false), whole(b, false)], a.dtype())
}

pub(super) fn nt(device: &Arc<CudaDevice>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    product(device, [whole(a, false), whole(b, true)], a.dtype())
}

pub(super) fn tn(device: &Arc<CudaDevice>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    product(device, [whole(a, true), whole(b, false)], DType::F32)
}

pub(super) fn add_tn(sums: &mut DeviceBuffer, start: usize, [a, b]: [&Tensor; 2], scale: f32) -> Result<()> {
    let window = Window { start, ..Window::whole(a.dims()[1], b.dims()[1]) };
    let device = sums.device().clone();
    device.multiply([whole(a, true), whole(b, false)], (sums, window), Scale { alpha: scale, beta: 1.0 })
}

/// All of a matrix as a factor.
fn whole(tensor: &Tensor, transposed: bool) -> Factor<'_> {
    Factor { tensor, window: Window::whole(tensor.dims()[0], tensor.dims()[1]), transposed }
}

fn product(device: &Arc<CudaDevice>, [a, b]: [Factor; 2], dtype: DType) -> Result<Tensor> {
    let m = if a.transposed { a.window.columns } else { a.window.rows };
    let n = if b.transposed { b.window.rows } else { b.window.columns };
    let mut y = device.buffer(dtype, [m, n])?;
    device.multiply([a, b], (&mut y, Window::whole(m, n)), Scale::OVERWRITE)?;
    Ok(y.into_tensor())
}
