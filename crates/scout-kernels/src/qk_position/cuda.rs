//! One warp for each token; the temperature has one block for each.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, DeviceBuffer, Grid};

use super::{Placed, Turn};
use crate::Result;
use crate::cuda::{count, expect_dtype, kernel, same_dtype, sources, threads_for_row};

const WHAT: &str = "position";
/// Tokens of a block, as in the kernel.
const WARPS: u32 = 4;

pub(super) fn rotate_and_normalise(
    device: &Arc<CudaDevice>,
    x: &Tensor,
    positions: &Tensor,
    frequencies: &Tensor,
    epsilon: f32,
) -> Result<Placed> {
    let mut inverse_rms = device.buffer(DType::F32, &x.dims()[..2])?;
    let y = turn((x, positions, frequencies), Turn::Forward, Some((&mut inverse_rms, epsilon)), device)?;
    Ok(Placed { y, inverse_rms: Some(inverse_rms.into_tensor()) })
}

pub(super) fn rotate(
    device: &Arc<CudaDevice>,
    x: &Tensor,
    positions: &Tensor,
    frequencies: &Tensor,
    direction: Turn,
) -> Result<Tensor> {
    turn((x, positions, frequencies), direction, None, device)
}

/// With memory for the inverse rms, heads are normalised.
fn turn(
    (x, positions, frequencies): (&Tensor, &Tensor, &Tensor),
    direction: Turn,
    norm: Option<(&mut DeviceBuffer, f32)>,
    device: &Arc<CudaDevice>,
) -> Result<Tensor> {
    expect_dtype(WHAT, positions, DType::U32)?;
    expect_dtype(WHAT, frequencies, DType::F32)?;
    let (dtype, dims) = (x.dtype(), [x.dims()[0], x.dims()[1], x.dims()[2]]);
    let mut y = device.buffer(dtype, dims)?;
    let kernel = kernel(device, &sources::QK_POSITION, dtype, ["qk_position_turn_f32", "qk_position_turn_bf16"])?;
    let (inverse_rms, epsilon) = match norm {
        Some((inverse_rms, epsilon)) => (Argument::Out(inverse_rms), epsilon),
        None => (Argument::Nothing, 0.0),
    };
    let [num_tokens, num_heads, head_size] = counts(dims)?;
    let mut arguments = [
        Argument::In(x),
        Argument::In(positions),
        Argument::In(frequencies),
        Argument::Out(&mut y),
        inverse_rms,
        Argument::U32(num_tokens),
        Argument::U32(num_heads),
        Argument::U32(head_size),
        Argument::F32(epsilon),
        Argument::F32(if direction == Turn::Back { -1.0 } else { 1.0 }),
    ];
    let grid = Grid::new(num_tokens.div_ceil(WARPS), 32 * WARPS);
    // SAFETY: the warp of token `t` touches the heads of token `t` in `x` and `y`, element `t` of `positions`, as many
    // frequencies as a head has pairs, and row `t` of the inverse rms where there is one; the contract checked the
    // shapes. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(y.into_tensor())
}

pub(super) fn backward_of_rotate_and_normalise(
    device: &Arc<CudaDevice>,
    dy: &Tensor,
    (y, inverse_rms): (&Tensor, &Tensor),
    positions: &Tensor,
    frequencies: &Tensor,
) -> Result<Tensor> {
    let dtype = same_dtype(WHAT, &[y, dy])?;
    expect_dtype(WHAT, positions, DType::U32)?;
    expect_dtype(WHAT, frequencies, DType::F32)?;
    expect_dtype(WHAT, inverse_rms, DType::F32)?;
    let dims = [y.dims()[0], y.dims()[1], y.dims()[2]];
    let mut dx = device.buffer(dtype, dims)?;
    let names = ["qk_position_backward_f32", "qk_position_backward_bf16"];
    let kernel = kernel(device, &sources::QK_POSITION, dtype, names)?;
    let [num_tokens, num_heads, head_size] = counts(dims)?;
    let mut arguments = [
        Argument::In(dy),
        Argument::In(y),
        Argument::In(inverse_rms),
        Argument::In(positions),
        Argument::In(frequencies),
        Argument::Out(&mut dx),
        Argument::U32(num_tokens),
        Argument::U32(num_heads),
        Argument::U32(head_size),
    ];
    let grid = Grid::new(num_tokens.div_ceil(WARPS), 32 * WARPS);
    // SAFETY: the warp of token `t` touches the heads of token `t` in `dy`, `y` and `dx`, its row of the inverse rms, its
    // position, and as many frequencies as a head has pairs; the contract checked the shapes. All were written on the
    // compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(dx.into_tensor())
}

pub(super) fn scale(
    device: &Arc<CudaDevice>,
    x: &Tensor,
    positions: &Tensor,
    attn_scale: f32,
    floor_scale: f32,
) -> Result<Tensor> {
    expect_dtype(WHAT, positions, DType::U32)?;
    let (dtype, width) = (x.dtype(), x.dims()[1] * x.dims()[2]);
    let mut y = device.buffer(dtype, x.shape().clone())?;
    let kernel = kernel(device, &sources::QK_POSITION, dtype, ["qk_position_temper_f32", "qk_position_temper_bf16"])?;
    let grid = Grid::new(count(WHAT, x.dims()[0])?, threads_for_row(width, dtype, 2));
    let mut arguments = [
        Argument::In(x),
        Argument::In(positions),
        Argument::Out(&mut y),
        Argument::U32(count(WHAT, width)?),
        Argument::F32(attn_scale),
        Argument::F32(floor_scale),
    ];
    // SAFETY: block `t` touches all heads of token `t` in `x` and `y`, and element `t` of `positions`; the contract checked
    // the shapes. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(y.into_tensor())
}

fn counts(dims: [usize; 3]) -> Result<[u32; 3]> {
    Ok([count(WHAT, dims[0])?, count(WHAT, dims[1])?, count(WHAT, dims[2])?])
}
