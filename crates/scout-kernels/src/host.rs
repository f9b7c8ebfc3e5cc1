//! How the host paths share out rows among threads and write into memory. No arithmetic beyond sums of fixed order.

use candle_core as candle;
use rayon::prelude::*;
use scout_device::{DeviceError, Tensor};

use crate::Result;

/// Below this many elements a loop is over before a second thread has woken up.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Calls `f` with each row of `out` and its index. Rows do not see each other, so sharing them out changes no bit.
pub(crate) fn for_each_row(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    let rows_per_task = (ELEMENTS_PER_TASK / width).max(1);
    if out.len() <= rows_per_task * width {
        out.chunks_exact_mut(width).enumerate().for_each(|(row, values)| f(row, values));
        return;
    }
    out.par_chunks_mut(rows_per_task * width).enumerate().for_each(|(task, rows)| {
        for (row, values) in rows.chunks_exact_mut(width).enumerate() {
            f(task * rows_per_task + row, values);
        }
    });
}

/// Two results with one loop: row `i` of `out` together with row `i` of `beside`.
pub(crate) fn for_each_row_pair(
    (out, width): (&mut [f32], usize),
    (beside, beside_width): (&mut [f32], usize),
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    if beside_width == 0 || width == 0 {
        return;
    }
    let rows_per_task = (ELEMENTS_PER_TASK / width.max(beside_width)).max(1);
    let run = |task: usize, rows: &mut [f32], beside: &mut [f32]| {
        let pairs = rows.chunks_exact_mut(width).zip(beside.chunks_exact_mut(beside_width));
        for (row, (values, beside)) in pairs.enumerate() {
            f(task * rows_per_task + row, values, beside);
        }
    };
    if out.len() <= rows_per_task * width {
        return run(0, out, beside);
    }
    let tasks = out.par_chunks_mut(rows_per_task * width).zip(beside.par_chunks_mut(rows_per_task * beside_width));
    tasks.enumerate().for_each(|(task, (rows, beside))| run(task, rows, beside));
}

const LANES: usize = 16;
const BLOCK: usize = 512;

/// Σ a·b in a fixed order: short runs in f32 lanes that fit vector registers, the runs added up in f64.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    if a.len() <= BLOCK {
        return f64::from(dot_of_block(a, b));
    }
    let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
    blocks.map(|(a, b)| f64::from(dot_of_block(a, b))).sum()
}

#[inline]
fn dot_of_block(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    add_lanes(lanes) + tail
}

/// Σ a in the same order as [`dot`].
pub(crate) fn sum(a: &[f32]) -> f64 {
    a.chunks(BLOCK).map(|block| f64::from(sum_of_block(block))).sum()
}

#[inline]
fn sum_of_block(a: &[f32]) -> f32 {
    let (a, tail) = a.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for a in a {
        for lane in 0..LANES {
            lanes[lane] += a[lane];
        }
    }
    add_lanes(lanes) + tail.iter().sum::<f32>()
}

/// In halves: 16 to 8 to 4 to 2 to 1.
#[inline]
fn add_lanes(l: [f32; LANES]) -> f32 {
    let l: [f32; 8] = std::array::from_fn(|i| l[i] + l[i + 8]);
    let l: [f32; 4] = std::array::from_fn(|i| l[i] + l[i + 4]);
    (l[0] + l[2]) + (l[1] + l[3])
}

/// The largest value; NaN is passed over, −∞ where there is nothing else.
pub(crate) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(chunk[lane], lanes[lane]);
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |largest, &value| larger(value, largest))
}

/// Lets `f` write to the elements of a fresh result. Nobody else may hold `tensor`: every look at it would change.
pub(crate) fn write<R>(what: &'static str, tensor: &candle::Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let write = Write { what, f: std::cell::Cell::new(Some(f)), result: std::cell::Cell::new(None) };
    let outcome = tensor.inplace_op1(&write);
    outcome.map_err(|cause| DeviceError::Host { what, cause })?;
    Ok(write.result.into_inner().expect("candle runs the operation once or fails"))
}

struct Write<F, R> {
    what: &'static str,
    f: std::cell::Cell<Option<F>>,
    result: std::cell::Cell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> candle::InplaceOp1 for Write<F, R> {
    fn name(&self) -> &'static str {
        self.what
    }

    fn cpu_fwd(&self, storage: &mut candle::CpuStorage, layout: &candle::Layout) -> candle::Result<()> {
        let f = self.f.take().ok_or_else(|| candle::Error::Msg("ran twice".to_string()))?;
        self.result.set(Some(f(elements_mut(storage, layout)?)));
        Ok(())
    }
}

/// The elements of a contiguous f32 tensor, given its parts.
pub(crate) fn elements_mut<'a>(
    storage: &'a mut candle::CpuStorage,
    layout: &candle::Layout,
) -> candle::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (candle::CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => Err(candle::Error::Msg("only contiguous f32 memory is written in place".to_string())),
    }
}

/// `out[c] = Σ term(row, column c)` over `rows` in their order, added up in f64. Columns do not see each other, so any
/// piece of the result may be made alone; `first_column` is where `out` begins.
pub(crate) fn sum_over_rows(
    out: &mut [f32],
    first_column: usize,
    rows: impl Iterator<Item = usize> + Clone,
    term: impl Fn(usize, usize) -> f64,
) {
    for (index, out) in out.chunks_mut(LANES).enumerate() {
        let first_column = first_column + index * LANES;
        let mut sums = [0.0f64; LANES];
        for row in rows.clone() {
            for (lane, sum) in sums[..out.len()].iter_mut().enumerate() {
                *sum += term(row, first_column + lane);
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    }
}

/// Calls `f` with pieces of one row and the column at which each begins.
pub(crate) fn for_each_piece(row: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    const COLUMNS_PER_TASK: usize = 4 * LANES;
    row.par_chunks_mut(COLUMNS_PER_TASK).enumerate().for_each(|(task, piece)| f(task * COLUMNS_PER_TASK, piece));
}

/// A tensor of `f32` made by `fill`, which finds zeros.
pub(crate) fn filled<const N: usize>(shape: [usize; N], fill: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let mut values = vec![0.0; shape.iter().product()];
    fill(&mut values);
    Tensor::from_f32(values, shape)
}
