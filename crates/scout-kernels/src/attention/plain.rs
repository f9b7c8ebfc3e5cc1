//! Launches of our plain kernels, for f32.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use super::heads::Heads;
use super::own_kernels::{columns, num_tiles, shape_arguments};
use super::results::{Attended, QkvGradients};
use super::segments::Segments;
use crate::Result;
use crate::cuda::{count, sources};

/// Tokens of a tile, as in the source.
const TILE: u32 = 32;
const THREADS: u32 = 256;

pub(super) fn forward(
    device: &Arc<CudaDevice>,
    [q, k, v]: [&Tensor; 3],
    segments: &Segments,
    heads: Heads,
) -> Result<Attended> {
    let columns = columns(heads.size)?;
    let name = match columns {
        16 => "attention_forward_16_f32",
        64 => "attention_forward_64_f32",
        _ => "attention_forward_128_f32",
    };
    let num_tokens = segments.num_tokens();
    let tiles = segments.tiles(device, TILE)?;
    let mut context = device.buffer(DType::F32, [num_tokens, heads.query, heads.size])?;
    let mut log_sum_exp = device.buffer(DType::F32, [num_tokens, heads.query])?;
    let kernel = device.kernel(&sources::ATTENTION, name)?;
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
    let along = along(device, dcontext, &attended.context, heads)?;
    let tiles = segments.tiles(device, TILE)?;
    let read = Read { dcontext, qkv, log_sum_exp: &attended.log_sum_exp, along: &along, tiles };
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
    let kernel = device.kernel(&sources::ATTENTION, "attention_along_f32")?;
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
    let name = match columns {
        16 => "attention_backward_q_16_f32",
        64 => "attention_backward_q_64_f32",
        _ => "attention_backward_q_128_f32",
    };
    let kernel = device.kernel(&sources::ATTENTION, name)?;
    let mut dq = device.buffer(DType::F32, read.qkv[0].shape().clone())?;
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
    let name = match columns {
        16 => "attention_backward_kv_16_f32",
        64 => "attention_backward_kv_64_f32",
        _ => "attention_backward_kv_128_f32",
    };
    let kernel = device.kernel(&sources::ATTENTION, name)?;
    let mut dk = device.buffer(DType::F32, read.qkv[1].shape().clone())?;
    let mut dv = device.buffer(DType::F32, read.qkv[2].shape().clone())?;
    let mut arguments = read.arguments();
    arguments.extend([Argument::Out(&mut dk), Argument::Out(&mut dv)]);
    arguments.extend(shape_arguments(heads)?);
    let grid = grid(&read.tiles, heads.kv, shared_memory(columns, 4, 2))?;
    // SAFETY: block `(i, h)` reads tile `i`, its tokens of head `h` of `k` and `v`, and the tokens from there to the
    // end of the segment, of the query heads that share that head; it writes the tile's tokens of head `h`.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok((dk.into_tensor(), dv.into_tensor()))
}

/// A block for each tile and head.
fn grid(tiles: &Tensor, num_heads: usize, shared_memory: u32) -> Result<Grid> {
    let blocks = [num_tiles(tiles)?, count("attention: heads", num_heads)?, 1];
    Ok(Grid { blocks, threads: [THREADS, 1, 1], shared_memory })
}

/// Bytes of tiles of so many columns, and of squares of scores, with the gaps that the kernels leave.
fn shared_memory(columns: u32, num_tiles: u32, num_squares: u32) -> u32 {
    4 * TILE * (num_tiles * (columns + 4) + num_squares * (TILE + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_fits_where_shared_memory_is_scarce() {
        assert!(shared_memory(128, 4, 2) <= 99 << 10);
        assert_eq!(shared_memory(16, 3, 1), 32 * (3 * 20 + 33) * 4);
    }
}
