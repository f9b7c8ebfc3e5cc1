//! One block for each row.

use std::sync::Arc;

use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use crate::Result;
use crate::cuda::{count, kernel, same_dtype, sources, threads_for_row};

/// Vectors of a row that a thread has in flight.
const VECTORS: usize = 4;

pub(super) fn forward(device: &Arc<CudaDevice>, gate_up: &Tensor, num_tokens: usize, width: usize) -> Result<Tensor> {
    const WHAT: &str = "swiglu";
    let dtype = gate_up.dtype();
    let mut h = device.buffer(dtype, [num_tokens, width])?;
    let kernel = kernel(device, &sources::SWIGLU, dtype, ["swiglu_forward_f32", "swiglu_forward_bf16"])?;
    let grid = Grid::new(count(WHAT, num_tokens)?, threads_for_row(width, dtype, VECTORS));
    let mut arguments = [Argument::In(gate_up), Argument::Out(&mut h), Argument::U32(count(WHAT, width)?)];
    // SAFETY: block `i` reads row `i` of `gate_up`, twice `width` elements, and writes row `i` of `h`. `gate_up` was
    // written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(h.into_tensor())
}

pub(super) fn backward(
    device: &Arc<CudaDevice>,
    dh: &Tensor,
    gate_up: &Tensor,
    num_tokens: usize,
    width: usize,
) -> Result<Tensor> {
    const WHAT: &str = "swiglu backward";
    let dtype = same_dtype(WHAT, &[gate_up, dh])?;
    let mut d_gate_up = device.buffer(dtype, [num_tokens, 2 * width])?;
    let kernel = kernel(device, &sources::SWIGLU, dtype, ["swiglu_backward_f32", "swiglu_backward_bf16"])?;
    let grid = Grid::new(count(WHAT, num_tokens)?, threads_for_row(width, dtype, VECTORS));
    let mut arguments =
        [Argument::In(dh), Argument::In(gate_up), Argument::Out(&mut d_gate_up), Argument::U32(count(WHAT, width)?)];
    // SAFETY: block `i` reads row `i` of `dh` (`width` elements) and of `gate_up` (twice as many), and writes row `i` of
    // `d_gate_up`; the contract checked the shapes. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(d_gate_up.into_tensor())
}
