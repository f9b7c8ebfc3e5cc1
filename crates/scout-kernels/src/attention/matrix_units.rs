//! Launches of our kernels on matrix units, for bf16.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{Argument, CudaDevice, Grid};
use scout_device::{DeviceError, Tensor};

use super::heads::Heads;
use super::own_kernels::{columns, num_tiles, shape_arguments};
use super::results::{Attended, QkvGradients};
use super::segments::Segments;
use crate::Result;
use crate::cuda::{count, sources};

const THREADS: u32 = 128;
/// Tokens of a tile, as in the source: of queries, of keys, and of keys where two scores are kept of each pair.
const QUERIES: u32 = 128;
const KEYS: u32 = 64;
const FEW_KEYS: u32 = 32;

pub(super) fn forward(
    device: &Arc<CudaDevice>,
    [q, k, v]: [&Tensor; 3],
    segments: &Segments,
    heads: Heads,
) -> Result<Attended> {
    let columns = columns(heads.size)?;
    let name = match columns {
        16 => "attention_forward_16_bf16",
        64 => "attention_forward_64_bf16",
        _ => "attention_forward_128_bf16",
    };
    must_be_positive(heads.scale)?;
    let num_tokens = segments.num_tokens();
    let tiles = segments.tiles(device, QUERIES)?;
    let mut context = device.buffer(DType::BF16, [num_tokens, heads.query, heads.size])?;
    let mut log_sum_exp = device.buffer(DType::F32, [num_tokens, heads.query])?;
    let kernel = device.kernel(&sources::ATTENTION_MATRIX_UNITS, name)?;
    let mut arguments = vec![
        Argument::In(q),
        Argument::In(k),
        Argument::In(v),
        Argument::In(&tiles),
        Argument::Out(&mut context),
        Argument::Out(&mut log_sum_exp),
        Argument::U32(count("attention", num_tokens)?),
    ];
    arguments.extend(shape_arguments(heads)?);
    let grid = grid(&tiles, heads.query, forward_shared_memory(columns))?;
    // SAFETY: there is a block for each tile and head. It reads the tokens of the tile's segment up to the tile's end, of
    // this head of `q` and of the head of `k` and `v` that it shares, and writes the tile's tokens of this head. The
    // contract checked the shapes, borders end with the number of tokens, and tiles lie between borders.
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
    must_be_positive(heads.scale)?;
    let num_tokens = count("attention backward", segments.num_tokens())?;
    let read = Read { dcontext, qkv, rows: rows(device, dcontext, attended, heads)?, num_tokens };
    let dq = backward_q(device, &read, &segments.tiles(device, QUERIES)?, heads)?;
    let (dk, dv) = backward_kv(device, &read, &segments.tiles(device, KEYS)?, heads)?;
    Ok(QkvGradients { dq, dk, dv })
}

/// What both kernels of the backward pass read, beside tiles.
struct Read<'a> {
    dcontext: &'a Tensor,
    qkv: [&'a Tensor; 3],
    rows: Tensor,
    num_tokens: u32,
}

impl Read<'_> {
    fn arguments<'a>(&'a self, tiles: &'a Tensor) -> Vec<Argument<'a>> {
        let [q, k, v] = self.qkv;
        [self.dcontext, q, k, v, &self.rows, tiles].map(Argument::In).into()
    }
}

/// `[nq, T, 2]`: of each row its log sum exp in powers of two, and the part of its gradient that lies along its result.
fn rows(device: &Arc<CudaDevice>, dcontext: &Tensor, attended: &Attended, heads: Heads) -> Result<Tensor> {
    const WHAT: &str = "attention backward";
    const THREADS_A_ROW: usize = 16;
    let num_tokens = dcontext.dims()[0];
    let mut rows = device.buffer(DType::F32, [heads.query, num_tokens, 2])?;
    let kernel = device.kernel(&sources::ATTENTION_MATRIX_UNITS, "attention_prepare_bf16")?;
    let blocks = (num_tokens * heads.query * THREADS_A_ROW).div_ceil(THREADS as usize);
    let mut arguments = [
        Argument::In(dcontext),
        Argument::In(&attended.context),
        Argument::In(&attended.log_sum_exp),
        Argument::Out(&mut rows),
        Argument::U32(count(WHAT, num_tokens)?),
        Argument::U32(count(WHAT, heads.query)?),
        Argument::U32(count(WHAT, heads.size)?),
    ];
    // SAFETY: 16 threads read one row of a head of both tensors and its element of the third, and write its two elements.
    unsafe { device.launch(&kernel, Grid::new(count(WHAT, blocks)?, THREADS), &mut arguments) }?;
    Ok(rows.into_tensor())
}

fn backward_q(device: &Arc<CudaDevice>, read: &Read, tiles: &Tensor, heads: Heads) -> Result<Tensor> {
    let columns = columns(heads.size)?;
    let name = match columns {
        16 => "attention_backward_q_16_bf16",
        64 => "attention_backward_q_64_bf16",
        _ => "attention_backward_q_128_bf16",
    };
    let kernel = device.kernel(&sources::ATTENTION_MATRIX_UNITS, name)?;
    let mut dq = device.buffer(DType::BF16, read.qkv[0].shape().clone())?;
    let mut arguments = read.arguments(tiles);
    arguments.extend([Argument::Out(&mut dq), Argument::U32(read.num_tokens)]);
    arguments.extend(shape_arguments(heads)?);
    let grid = grid(tiles, heads.query, backward_q_shared_memory(columns))?;
    // SAFETY: as in the forward pass; `dcontext` is shaped like `q`, and there are two numbers for each of its rows.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(dq.into_tensor())
}

fn backward_kv(device: &Arc<CudaDevice>, read: &Read, tiles: &Tensor, heads: Heads) -> Result<(Tensor, Tensor)> {
    let columns = columns(heads.size)?;
    let name = match columns {
        16 => "attention_backward_kv_16_bf16",
        64 => "attention_backward_kv_64_bf16",
        _ => "attention_backward_kv_128_bf16",
    };
    let kernel = device.kernel(&sources::ATTENTION_MATRIX_UNITS, name)?;
    let mut dk = device.buffer(DType::BF16, read.qkv[1].shape().clone())?;
    let mut dv = device.buffer(DType::BF16, read.qkv[2].shape().clone())?;
    let mut arguments = read.arguments(tiles);
    arguments.extend([Argument::Out(&mut dk), Argument::Out(&mut dv), Argument::U32(read.num_tokens)]);
    arguments.extend(shape_arguments(heads)?);
    let grid = grid(tiles, heads.kv, backward_kv_shared_memory(columns))?;
    // SAFETY: there is a block for each tile and head of `k` and `v`. It reads the tile's tokens of this head, and the
    // tokens from there to the end of the segment of the query heads that share it; it writes the tile's tokens of this
    // head.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok((dk.into_tensor(), dv.into_tensor()))
}

/// Largest scores are found before they are scaled.
fn must_be_positive(scale: f32) -> Result<()> {
    if scale > 0.0 && scale.is_finite() {
        return Ok(());
    }
    let problem = format!("found a scale of {scale}, expected a positive number");
    Err(DeviceError::Value { what: "attention", problem })
}

/// A block for each tile and head, those of one tile side by side.
fn grid(tiles: &Tensor, num_heads: usize, shared_memory: u32) -> Result<Grid> {
    let blocks = count("attention: tiles", num_tiles(tiles)? as usize * num_heads)?;
    Ok(Grid { shared_memory, ..Grid::new(blocks, THREADS) })
}

/// A tile of queries, and tiles of keys and values, of which the next ones are on their way.
fn forward_shared_memory(columns: u32) -> u32 {
    2 * columns * (QUERIES + 4 * KEYS)
}

/// Tiles of queries and of gradients, and as above.
fn backward_q_shared_memory(columns: u32) -> u32 {
    2 * columns * (2 * QUERIES + 4 * FEW_KEYS)
}

/// Tiles of keys and values, and tiles of queries and gradients with two numbers for each row, of which the next ones
/// are on their way.
fn backward_kv_shared_memory(columns: u32) -> u32 {
    2 * columns * (6 * KEYS) + 2 * 8 * KEYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_fits_where_shared_memory_is_scarce() {
        for bytes in [forward_shared_memory(128), backward_q_shared_memory(128), backward_kv_shared_memory(128)] {
            assert!((96 << 10..=99 << 10).contains(&bytes), "{bytes}");
        }
    }

    #[test]
    fn a_scale_that_would_turn_scores_around_is_refused() {
        for (scale, is_ok) in [(0.1, true), (0.0, false), (-0.1, false), (f32::NAN, false), (f32::INFINITY, false)] {
            assert_eq!(must_be_positive(scale).is_ok(), is_ok, "{scale}");
        }
    }
}
