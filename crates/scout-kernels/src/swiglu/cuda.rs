//! One block for each row.

use std::sync::Arc;

use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, DeviceBuffer, Grid};

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

/// The forward pass too, where `h` is given: as large as `dh`.
pub(super) fn backward(
    device: &Arc<CudaDevice>,
    dh: &Tensor,
    gate_up: &Tensor,
    h: Option<&mut DeviceBuffer>,
) -> Result<Tensor> {
    const WHAT: &str = "swiglu backward";
    let dtype = same_dtype(WHAT, &[gate_up, dh])?;
    let (num_tokens, width) = (dh.dims()[0], dh.dims()[1]);
    let mut d_gate_up = device.buffer(dtype, [num_tokens, 2 * width])?;
    let kernel = kernel(device, &sources::SWIGLU, dtype, ["swiglu_backward_f32", "swiglu_backward_bf16"])?;
    let grid = Grid::new(count(WHAT, num_tokens)?, threads_for_row(width, dtype, VECTORS));
    let mut arguments = [
        Argument::In(dh),
        Argument::In(gate_up),
        Argument::Out(&mut d_gate_up),
        h.map_or(Argument::Nothing, Argument::Out),
        Argument::U32(count(WHAT, width)?),
    ];
    // SAFETY: block `i` reads row `i` of `dh` (`width` elements) and of `gate_up` (twice as many), and writes row `i` of
    // `d_gate_up` and, where there is one, of `h`; the contract checked the shapes. All were written on the compute
    // stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(d_gate_up.into_tensor())
}
