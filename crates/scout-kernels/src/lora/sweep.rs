//! One sweep over the gradients of the outputs of adapters that read one input: a launch whose blocks each have some
//! rows of some columns, and one that adds up what they found.

use std::sync::Arc;

use scout_core::{ByteCount, DType};
use scout_device::cuda::{Argument, CudaDevice, DeviceBuffer, Grid, TensorMap};
use scout_device::{Purpose, Tensor};

use crate::Result;
use crate::cuda::{count, sources};
use crate::matmul::Columns;

// As the kernel has them: a tile, how many of them lie in shared memory, what moves at once, warps of a block, numbers
// that a block of the second launch adds up, and adapters of one input.
const ROWS: usize = 16;
const COLUMNS: usize = 1024;
const STAGES: usize = 4;
const VECTOR: usize = 8;
const WARPS: usize = 8;
const NUMBERS: usize = 128;
const MOST_ADAPTERS: usize = 3;

/// From there on a library's products have more to do than to read.
const LARGEST_RANK: usize = 32;

/// Whether the kernel takes these gradients, for adapters of this rank. It is the faster way where it does: on an H200
/// at its power limit a sweep over 10,240 to 16,384 rows of 8,192 columns took 55 to 79 µs, and cuBLASLt's two products
/// 104 to 150.
pub(super) fn takes(device: &CudaDevice, dys: &[Columns], narrow: &Tensor, rank: usize) -> bool {
    device.properties().architecture == 90
        && (1..=MOST_ADAPTERS).contains(&dys.len())
        && has_kernel(rank)
        && TensorMap::fits(narrow)
        && dys.iter().all(is_in_vectors)
}

fn has_kernel(rank: usize) -> bool {
    (1..=LARGEST_RANK).contains(&rank) && rank.is_multiple_of(VECTOR)
}

/// Whether there are columns, and each of their rows is made of whole vectors, which lie where vectors could.
fn is_in_vectors(dy: &Columns) -> bool {
    TensorMap::fits(dy.tensor) && dy.start.is_multiple_of(VECTOR) && dy.count.is_multiple_of(VECTOR) && dy.count > 0
}

/// The most that parts of sums take, of adapters whose outputs have so many columns each: of each row a number for each
/// group of columns and of the rank, and of each column no more than one for each of so many multiprocessors.
pub(super) fn most_scratch(num_rows: usize, widths: &[usize], rank: usize) -> ByteCount {
    const MULTIPROCESSORS: usize = 132;
    if !has_kernel(rank) {
        return ByteCount(0);
    }
    let column_groups = num_groups(widths);
    let down = COLUMNS * MULTIPROCESSORS.max(column_groups);
    DType::F32.size() * ((column_groups * num_rows + down) * rank) as u64
}

fn num_groups(widths: &[usize]) -> usize {
    widths.iter().map(|width| width.div_ceil(COLUMNS)).sum()
}

/// How gradients are shared out among blocks.
#[derive(Debug, PartialEq, Eq)]
struct Shares {
    column_groups: usize,
    row_groups: usize,
    rows_of_block: usize,
}

impl Shares {
    /// A block for each multiprocessor, as nearly as groups of columns allow; each has whole tiles.
    fn of(num_rows: usize, widths: &[usize], num_multiprocessors: usize) -> Shares {
        let column_groups = num_groups(widths);
        let row_groups = (num_multiprocessors / column_groups).max(1);
        let rows_of_block = num_rows.div_ceil(row_groups).next_multiple_of(ROWS);
        Shares { column_groups, row_groups: num_rows.div_ceil(rows_of_block), rows_of_block }
    }
}

/// Stages with the rows of the narrow factor, and twice the parts that all warps have of a tile.
fn shared_memory(rank: usize) -> usize {
    STAGES * 2 * ROWS * (COLUMNS + rank) + 2 * WARPS * ROWS * rank * 4
}

/// `dy·B` of each adapter side by side; adds `scale · dyᵀ·narrow` of each to `sums` from `start` on. The contract
/// checked that shapes and types fit, and asked [`takes`].
pub(super) fn sweep(
    (sums, start): (&mut DeviceBuffer, usize),
    dys: &[Columns],
    b: &Tensor,
    narrow: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    const WHAT: &str = "sweep over the gradients of outputs";
    let device = &sums.device().clone();
    let (num_rows, [num_columns, rank]) = (narrow.dims()[0], [b.dims()[0], b.dims()[1]]);
    let widths: Vec<usize> = dys.iter().map(|dy| dy.count).collect();
    let shares = Shares::of(num_rows, &widths, device.properties().num_multiprocessors as usize);
    let mut across = parts(device, shares.column_groups * num_rows * rank)?;
    let mut down = parts(device, shares.row_groups * num_columns * rank)?;
    let dy = |adapter: usize| match dys.get(adapter) {
        Some(dy) => Argument::Part(dy.tensor, DType::BF16.size().0 * (num_rows * dy.count) as u64),
        None => Argument::Nothing,
    };
    let windows = windows(dys)?;
    let (num_rows, num_columns) = (count(WHAT, num_rows)?, count(WHAT, num_columns)?);
    let num_adapters = dys.len() as u32;
    let kernel = device.kernel(&sources::LORA_SWEEP, name(rank))?;
    let grid = Grid {
        blocks: [count(WHAT, shares.column_groups)?, count(WHAT, shares.row_groups)?, 1],
        threads: [32 * WARPS as u32, 1, 1],
        shared_memory: count(WHAT, shared_memory(rank))?,
    };
    let mut arguments = [
        dy(0),
        dy(1),
        dy(2),
        Argument::Numbers(&windows),
        Argument::U32(num_rows),
        Argument::U32(num_columns),
        Argument::In(b),
        Argument::In(narrow),
        Argument::U32(num_adapters),
        Argument::Out(&mut across),
        Argument::Out(&mut down),
        Argument::U32(count(WHAT, shares.rows_of_block)?),
    ];
    // SAFETY: each block has a group of columns of one adapter, for there are as many as blocks in a row of the grid,
    // and rows from `rows_of_block` times its own on. It reads those of them that exist, of that adapter's `dy` and of
    // `narrow`, and those columns' rows of `b`, which have them (the contract checked), in vectors that lie where
    // vectors could (`takes`). It writes all of those rows of its group's part of one product, and of those columns of
    // its rows' part of the other. What it keeps in shared memory is what `shared_memory` counts. What it reads was
    // written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;

    let mut dnarrow = device.buffer(DType::BF16, narrow.dims())?;
    let (across, down) = (across.into_tensor(), down.into_tensor());
    let blocks = narrow.num_elements().div_ceil(NUMBERS) + b.num_elements().div_ceil(NUMBERS);
    let mut arguments = [
        Argument::In(&across),
        Argument::Numbers(&windows),
        Argument::Out(&mut dnarrow),
        Argument::U32(num_rows),
        Argument::U32(num_adapters),
        Argument::In(&down),
        Argument::U32(count(WHAT, shares.row_groups)?),
        Argument::InOut(sums, DType::F32.size().0 * b.num_elements() as u64),
        Argument::U64(start as u64),
        Argument::U32(num_columns),
        Argument::U32(count(WHAT, rank)?),
        Argument::F32(scale),
    ];
    let kernel = device.kernel(&sources::LORA_SWEEP, "lora_sweep_ends_bf16")?;
    // SAFETY: a block has 128 numbers of `dnarrow`, or, behind as many blocks as those need, of `sums`; each lane of
    // its first warp writes four of them. Ranks are whole vectors, so these belong to one adapter and lie where four
    // numbers could. All of their parts were written by the launch before, and `sums` has room for them (the contract
    // checked).
    unsafe { device.launch(&kernel, Grid::new(count(WHAT, blocks)?, 32 * WARPS as u32), &mut arguments) }?;
    Ok(dnarrow.into_tensor())
}

/// The kernel's structure: widths of the matrices, where columns begin in them, and how many there are.
fn windows(dys: &[Columns]) -> Result<[u32; 3 * MOST_ADAPTERS]> {
    const WHAT: &str = "columns of a gradient";
    let mut numbers = [0; 3 * MOST_ADAPTERS];
    for (adapter, dy) in dys.iter().enumerate() {
        for (at, number) in [dy.tensor.dims()[1], dy.start, dy.count].into_iter().enumerate() {
            numbers[at * MOST_ADAPTERS + adapter] = count(WHAT, number)?;
        }
    }
    Ok(numbers)
}

/// Parts of sums, until they are added up.
fn parts(device: &Arc<CudaDevice>, num_elements: usize) -> Result<DeviceBuffer> {
    let bytes = DType::F32.size().0 as usize * num_elements;
    let block = device.working_memory().take(Purpose::Workspace, bytes)?;
    DeviceBuffer::new(device, block, DType::F32, [num_elements])
}

fn name(rank: usize) -> &'static str {
    match rank / VECTOR {
        1 => "lora_sweep_1_bf16",
        2 => "lora_sweep_2_bf16",
        3 => "lora_sweep_3_bf16",
        _ => "lora_sweep_4_bf16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_whole_tiles_and_are_as_many_as_multiprocessors_where_columns_allow() {
        for (num_rows, widths, column_groups, row_groups, rows_of_block) in [
            (16384, &[8192, 8192][..], 16, 8, 2048),
            (16384, &[5120], 5, 26, 640),
            (10923, &[5120], 5, 26, 432),
            (16384, &[5120, 1024, 1024], 7, 18, 912),
            (1, &[8], 1, 1, 16),
            (33, &[1032, 8], 3, 3, 16),
            (100, &[1024 * 200], 200, 1, 112),
        ] {
            let expected = Shares { column_groups, row_groups, rows_of_block };
            assert_eq!(Shares::of(num_rows, widths, 132), expected, "{num_rows}x{widths:?}");
            let of_parts = column_groups * num_rows + row_groups * widths.iter().sum::<usize>();
            assert!(most_scratch(num_rows, widths, 8).0 >= 4 * 8 * of_parts as u64, "{num_rows}x{widths:?}");
        }
    }

    #[test]
    fn a_kernel_takes_every_rank_up_to_the_largest() {
        for rank in (VECTOR..=LARGEST_RANK).step_by(VECTOR) {
            assert!(sources::LORA_SWEEP.text.contains(&format!("SWEEP({})", rank / VECTOR)), "{rank}");
            assert_eq!(name(rank), format!("lora_sweep_{}_bf16", rank / VECTOR));
            assert!(shared_memory(rank) <= 227 << 10, "{rank}");
            assert!(has_kernel(rank) && most_scratch(1, &[8], rank).0 > 0, "{rank}");
        }
        for rank in [0, 1, 7, 12, 33, LARGEST_RANK + VECTOR] {
            assert!(!has_kernel(rank) && most_scratch(1, &[8], rank).0 == 0, "{rank}");
        }
    }
}
