//! By cuDNN where it takes the element type and the heads, else by our own kernels.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{Argument, CudaDevice, Grid, Kernel, dnn};
use scout_device::{DeviceError, Tensor};

use super::segments::Segments;
use super::{Attended, Heads, QkvGradients};
use crate::Result;
use crate::cuda::{count, expect_dtype, kernel, same_dtype, sources};

/// Tokens of a tile of our own kernels, as in the source.
pub(super) const TILE: u32 = 32;
const THREADS: u32 = 256;
/// The widest head of our own kernels.
const WIDEST: usize = 128;

/// cuDNN, for heads of these sizes in bf16.
fn by_cudnn(device: &CudaDevice, dtype: DType, size: usize) -> Option<&dnn::Attention> {
    if dtype == DType::BF16 && matches!(size, 64 | 128) { device.attention() } else { None }
}

pub(super) fn is_by_cudnn(device: &CudaDevice, dtype: DType, size: usize) -> bool {
    by_cudnn(device, dtype, size).is_some()
}

impl Heads {
    fn of_cudnn(self) -> dnn::Heads {
        dnn::Heads { query: self.query, kv: self.kv, size: self.size }
    }
}

pub(super) fn forward(
    device: &Arc<CudaDevice>,
    qkv: [&Tensor; 3],
    segments: &Segments,
    heads: Heads,
) -> Result<Attended> {
    const WHAT: &str = "attention";
    let dtype = same_dtype(WHAT, &qkv)?;
    if let Some(attention) = by_cudnn(device, dtype, heads.size) {
        let documents = segments.documents(device, heads.of_cudnn())?;
        let dnn::Attended { context, log_sum_exp } = attention.forward(qkv, &documents, heads.scale)?;
        return Ok(Attended { context, log_sum_exp });
    }
    plain_forward(device, qkv, segments, heads)
}

/// By our own kernels, whatever cuDNN could do.
pub(super) fn plain_forward(
    device: &Arc<CudaDevice>,
    qkv: [&Tensor; 3],
    segments: &Segments,
    heads: Heads,
) -> Result<Attended> {
    let dtype = same_dtype("attention", &qkv)?;
    let columns = columns(heads.size)?;
    let names = match columns {
        16 => ["attention_forward_16_f32", "attention_forward_16_bf16"],
        64 => ["attention_forward_64_f32", "attention_forward_64_bf16"],
        _ => ["attention_forward_128_f32", "attention_forward_128_bf16"],
    };
    let (num_tokens, [q, k, v]) = (segments.num_tokens(), qkv);
    let tiles = segments.tiles(device)?;
    let mut context = device.buffer(dtype, [num_tokens, heads.query, heads.size])?;
    let mut log_sum_exp = device.buffer(DType::F32, [num_tokens, heads.query])?;
    let kernel = kernel(device, &sources::ATTENTION, dtype, names)?;
    let mut arguments = vec![
        Argument::In(q),
        Argument::In(k),
        Argument::In(v),
        Argument::In(&tiles),
        Argument::Out(&mut context),
        Argument::Out(&mut log_sum_exp),
    ];
    arguments.extend(shape_arguments(heads)?);
    let grid = grid(&tiles, heads.query, shared_memory(columns, 3, 1))?;
    // SAFETY: block `(i, h)` reads tile `i`, the tokens of its segment up to the tile's end, of head `h` of `q` and of
    // the head of `k` and `v` that it shares, and writes the tile's tokens of head `h`. The contract checked the
    // shapes, borders end with the number of tokens, and tiles lie between borders.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(Attended { context: context.into_tensor(), log_sum_exp: log_sum_exp.into_tensor() })
}

pub(super) fn backward(
    device: &Arc<CudaDevice>,
    dcontext: &Tensor,
    qkv: [&Tensor; 3],
    attended: &Attended,
    (segments, heads): (&Segments, Heads),
) -> Result<QkvGradients> {
    const WHAT: &str = "attention backward";
    let dtype = same_dtype(WHAT, &[dcontext, qkv[0], qkv[1], qkv[2], &attended.context])?;
    expect_dtype(WHAT, &attended.log_sum_exp, DType::F32)?;
    if let Some(attention) = by_cudnn(device, dtype, heads.size) {
        let documents = segments.documents(device, heads.of_cudnn())?;
        let attended = dnn::Attended { context: attended.context.clone(), log_sum_exp: attended.log_sum_exp.clone() };
        let found = attention.backward(dcontext, qkv, &attended, &documents, heads.scale)?;
        return Ok(QkvGradients { dq: found.dq, dk: found.dk, dv: found.dv });
    }
    plain_backward(device, dcontext, qkv, attended, (segments, heads))
}

/// By our own kernels, whatever cuDNN could do.
pub(super) fn plain_backward(
    device: &Arc<CudaDevice>,
    dcontext: &Tensor,
    qkv: [&Tensor; 3],
    attended: &Attended,
    (segments, heads): (&Segments, Heads),
) -> Result<QkvGradients> {
    let along = along(device, dcontext, &attended.context, heads)?;
    let read =
        Read { dcontext, qkv, log_sum_exp: &attended.log_sum_exp, along: &along, tiles: segments.tiles(device)? };
    let dq = backward_q(device, &read, heads)?;
    let (dk, dv) = backward_kv(device, &read, heads)?;
    Ok(QkvGradients { dq, dk, dv })
}

/// What both kernels of the backward pass read.
struct Read<'a> {
    dcontext: &'a Tensor,
    qkv: [&'a Tensor; 3],
    log_sum_exp: &'a Tensor,
    along: &'a Tensor,
    tiles: Tensor,
}

impl Read<'_> {
    fn arguments(&self) -> Vec<Argument<'_>> {
        let [q, k, v] = self.qkv;
        [self.dcontext, q, k, v, self.log_sum_exp, self.along, &self.tiles].map(Argument::In).into()
    }
}

/// `[T, nq]`: the part of each row's gradient that lies along its result.
fn along(device: &Arc<CudaDevice>, dcontext: &Tensor, context: &Tensor, heads: Heads) -> Result<Tensor> {
    const WARPS: usize = (THREADS / 32) as usize;
    let num_rows = dcontext.dims()[0] * heads.query;
    let mut along = device.buffer(DType::F32, [dcontext.dims()[0], heads.query])?;
    let names = ["attention_along_f32", "attention_along_bf16"];
    let kernel = kernel(device, &sources::ATTENTION, dcontext.dtype(), names)?;
    let grid = Grid::new(count("attention backward", num_rows.div_ceil(WARPS))?, THREADS);
    let mut arguments = [
        Argument::In(dcontext),
        Argument::In(context),
        Argument::Out(&mut along),
        Argument::U64(num_rows as u64),
        Argument::U32(count("attention backward", heads.size)?),
    ];
    // SAFETY: a warp reads one of `num_rows` rows of both tensors, and writes its element.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(along.into_tensor())
}

fn backward_q(device: &Arc<CudaDevice>, read: &Read, heads: Heads) -> Result<Tensor> {
    let columns = columns(heads.size)?;
    let names = match columns {
        16 => ["attention_backward_q_16_f32", "attention_backward_q_16_bf16"],
        64 => ["attention_backward_q_64_f32", "attention_backward_q_64_bf16"],
        _ => ["attention_backward_q_128_f32", "attention_backward_q_128_bf16"],
    };
    let kernel: Arc<Kernel> = kernel(device, &sources::ATTENTION, read.qkv[0].dtype(), names)?;
    let mut dq = device.buffer(read.qkv[0].dtype(), read.qkv[0].shape().clone())?;
    let mut arguments = read.arguments();
    arguments.push(Argument::Out(&mut dq));
    arguments.extend(shape_arguments(heads)?);
    let grid = grid(&read.tiles, heads.query, shared_memory(columns, 4, 1))?;
    // SAFETY: as in the forward pass; what else is read is shaped like `q`, or has an element for each of its rows.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(dq.into_tensor())
}

fn backward_kv(device: &Arc<CudaDevice>, read: &Read, heads: Heads) -> Result<(Tensor, Tensor)> {
    let columns = columns(heads.size)?;
    let names = match columns {
        16 => ["attention_backward_kv_16_f32", "attention_backward_kv_16_bf16"],
        64 => ["attention_backward_kv_64_f32", "attention_backward_kv_64_bf16"],
        _ => ["attention_backward_kv_128_f32", "attention_backward_kv_128_bf16"],
    };
    let kernel: Arc<Kernel> = kernel(device, &sources::ATTENTION, read.qkv[1].dtype(), names)?;
    let mut dk = device.buffer(read.qkv[1].dtype(), read.qkv[1].shape().clone())?;
    let mut dv = device.buffer(read.qkv[2].dtype(), read.qkv[2].shape().clone())?;
    let mut arguments = read.arguments();
    arguments.extend([Argument::Out(&mut dk), Argument::Out(&mut dv)]);
    arguments.extend(shape_arguments(heads)?);
    let grid = grid(&read.tiles, heads.kv, shared_memory(columns, 4, 2))?;
    // SAFETY: block `(i, h)` reads tile `i`, its tokens of head `h` of `k` and `v`, and the tokens from there to the
    // end of the segment, of the query heads that share that head; it writes the tile's tokens of head `h`.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok((dk.into_tensor(), dv.into_tensor()))
}

fn shape_arguments(heads: Heads) -> Result<[Argument<'static>; 4]> {
    let count = |number| count("attention: heads", number).map(Argument::U32);
    Ok([count(heads.query)?, count(heads.kv)?, count(heads.size)?, Argument::F32(heads.scale)])
}

/// A block for each tile and head.
fn grid(tiles: &Tensor, num_heads: usize, shared_memory: u32) -> Result<Grid> {
    let blocks = [count("attention: tiles", tiles.dims()[0])?, count("attention: heads", num_heads)?, 1];
    Ok(Grid { blocks, threads: [THREADS, 1, 1], shared_memory })
}

/// Bytes of tiles of so many columns, and of squares of scores, with the gaps that the kernels leave.
fn shared_memory(columns: u32, num_tiles: u32, num_squares: u32) -> u32 {
    4 * TILE * (num_tiles * (columns + 4) + num_squares * (TILE + 1))
}

/// Columns of the kernel's tiles for heads of `size`.
fn columns(size: usize) -> Result<u32> {
    match size {
        0..=16 => Ok(16),
        17..=64 => Ok(64),
        65..=WIDEST => Ok(128),
        _ => {
            let problem = format!("found heads of {size}, expected at most {WIDEST} on a GPU");
            Err(DeviceError::Value { what: "attention", problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_go_to_the_narrowest_tiles_that_hold_them() {
        for (size, expected) in
            [(1, Some(16)), (16, Some(16)), (17, Some(64)), (65, Some(128)), (128, Some(128)), (129, None)]
        {
            assert_eq!(columns(size).ok(), expected, "{size}");
        }
    }

    #[test]
    fn a_block_fits_where_shared_memory_is_scarce() {
        assert!(shared_memory(128, 4, 2) <= 99 << 10);
        assert_eq!(shared_memory(16, 3, 1), 32 * (3 * 20 + 33) * 4);
    }
}
