//! One block for each row.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use super::Normed;
use crate::Result;
use crate::cuda::{count, expect_dtype, kernel, same_dtype, sources, threads_for_row};

/// Vectors of a row that a thread keeps in registers, as in the kernel.
const KEPT: usize = 2;

pub(super) fn forward(device: &Arc<CudaDevice>, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Normed> {
    const WHAT: &str = "rms norm";
    let dtype = same_dtype(WHAT, &[x, weight])?;
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let mut y = device.buffer(dtype, [num_tokens, width])?;
    let mut inverse_rms = device.buffer(DType::F32, [num_tokens])?;
    let kernel = kernel(device, &sources::RMS_NORM, dtype, ["rms_norm_forward_f32", "rms_norm_forward_bf16"])?;
    let grid = Grid::new(count(WHAT, num_tokens)?, threads_for_row(width, dtype, KEPT));
    let mut arguments = [
        Argument::In(x),
        Argument::In(weight),
        Argument::Out(&mut y),
        Argument::Out(&mut inverse_rms),
        Argument::U32(count(WHAT, width)?),
        Argument::F32(epsilon),
    ];
    // SAFETY: block `i` touches row `i` of `x` and `y`, element `i` of `inverse_rms`, and `width` elements of `weight`;
    // the contract checked the shapes. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(Normed { y: y.into_tensor(), inverse_rms: inverse_rms.into_tensor() })
}

pub(super) fn backward(
    device: &Arc<CudaDevice>,
    dy: &Tensor,
    [x, inverse_rms, weight]: [&Tensor; 3],
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    const WHAT: &str = "rms norm backward";
    let dtype = same_dtype(WHAT, &[x, dy, weight, residual.unwrap_or(x)])?;
    expect_dtype(WHAT, inverse_rms, DType::F32)?;
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let mut dx = device.buffer(dtype, [num_tokens, width])?;
    let kernel = kernel(device, &sources::RMS_NORM, dtype, ["rms_norm_backward_f32", "rms_norm_backward_bf16"])?;
    let grid = Grid::new(count(WHAT, num_tokens)?, threads_for_row(width, dtype, KEPT));
    let mut arguments = [
        Argument::In(dy),
        Argument::In(x),
        Argument::In(inverse_rms),
        Argument::In(weight),
        residual.map_or(Argument::Nothing, Argument::In),
        Argument::Out(&mut dx),
        Argument::U32(count(WHAT, width)?),
    ];
    // SAFETY: block `i` touches row `i` of `dy`, `x`, `dx` and of `residual` where there is one, element `i` of
    // `inverse_rms`, and `width` elements of `weight`; the contract checked the shapes. All were written on the compute
    // stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(dx.into_tensor())
}
