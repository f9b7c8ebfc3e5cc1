//! One block for each row, but for products that are added while the columns pass by: those have tiles.
//!
//! A product by cuBLASLt and an addition move the columns four times, and with its own addition (`beta` 1) cuBLASLt takes
//! nearly as long as that; the kernel moves them twice.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{Argument, CudaDevice, DeviceBuffer, Grid};
use scout_device::{DeviceError, Tensor};

use super::{Mask, Product, TokenKeys};
use crate::Result;
use crate::cuda::{count, kernel, same_dtype, sources, threads_for_row};

/// Vectors of a row that a thread has in flight.
const VECTORS: usize = 2;

/// The largest rank whose products are added by the kernel; at 64 it would keep too much for enough warps to run.
pub(super) const LARGEST_RANK: usize = 32;
/// Rows of a tile, as in the kernel.
const ROWS: u32 = 128;

/// There are rows and columns, and the columns fit. Fails when something else looks at the memory of `y`.
pub(super) fn add_product(
    device: &Arc<CudaDevice>,
    y: Tensor,
    column_start: usize,
    product: Product,
) -> Result<Tensor> {
    const WHAT: &str = "addition of an adapter's product";
    let Product { narrow, wide, transposed, scale } = product;
    let dtype = same_dtype(WHAT, &[&y, narrow, wide])?;
    if !matches!(dtype, DType::F32 | DType::BF16) {
        return Err(DeviceError::DType { what: WHAT, found: dtype, expected: DType::BF16 });
    }
    let (num_tokens, width) = (count(WHAT, y.dims()[0])?, count(WHAT, y.dims()[1])?);
    let (rank, num_columns) = (count(WHAT, narrow.dims()[1])?, count(WHAT, wide.dims()[usize::from(!transposed)])?);
    let mut y = DeviceBuffer::from_tensor(y)?;
    // Columns and threads of a block, and shared memory for both factors of a tile, which only f32 keeps there.
    let (name, columns, threads, shared_memory) = match (dtype, rank) {
        (DType::F32, _) => ("lora_add_product_f32", 128, 256, 4 * rank * (128 + ROWS)),
        (_, 0..=8) => ("lora_add_product_1_bf16", 256, 128, 0),
        (_, 9..=16) => ("lora_add_product_2_bf16", 256, 128, 0),
        _ => ("lora_add_product_4_bf16", 256, 128, 0),
    };
    let kernel = device.kernel(&sources::LORA, name)?;
    let blocks = num_columns.div_ceil(columns) * num_tokens.div_ceil(ROWS);
    let grid = Grid { shared_memory, ..Grid::new(blocks, threads) };
    let mut arguments = [
        Argument::Out(&mut y),
        Argument::In(narrow),
        Argument::In(wide),
        Argument::U32(num_tokens),
        Argument::U32(width),
        Argument::U32(count(WHAT, column_start)?),
        Argument::U32(num_columns),
        Argument::U32(rank),
        Argument::U32(u32::from(transposed)),
        Argument::F32(scale),
    ];
    // SAFETY: a block touches a tile of rows below `num_tokens` and columns below `num_columns` of `y`, which has them from
    // `column_start` on (the contract checked) and is looked at by nobody else, those rows of `narrow` and those columns
    // of `wide`. The kernel of this name takes such ranks. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(y.into_tensor())
}

/// Both have rows and columns, and the columns fit. Fails when something else looks at the memory of `y`.
pub(super) fn add_delta(
    device: &Arc<CudaDevice>,
    y: Tensor,
    column_start: usize,
    delta: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    const WHAT: &str = "addition of an adapter";
    let dtype = same_dtype(WHAT, &[&y, delta])?;
    let (num_tokens, width, num_columns) = (y.dims()[0], y.dims()[1], delta.dims()[1]);
    let mut y = DeviceBuffer::from_tensor(y)?;
    let kernel = kernel(device, &sources::LORA, dtype, ["lora_add_delta_f32", "lora_add_delta_bf16"])?;
    let mut arguments = [
        Argument::Out(&mut y),
        Argument::In(delta),
        Argument::U32(count(WHAT, width)?),
        Argument::U32(count(WHAT, column_start)?),
        Argument::U32(count(WHAT, num_columns)?),
        Argument::F32(scale),
    ];
    // SAFETY: block `t` touches row `t` of `delta` and as many columns of row `t` of `y`, which has them (the contract
    // checked) and is looked at by nobody else. Both were written on the compute stream.
    unsafe { device.launch(&kernel, grid(WHAT, num_tokens, num_columns, dtype)?, &mut arguments) }?;
    Ok(y.into_tensor())
}

pub(super) fn columns(device: &Arc<CudaDevice>, y: &Tensor, column_start: usize, num_columns: usize) -> Result<Tensor> {
    const WHAT: &str = "columns";
    let (dtype, num_tokens, width) = (y.dtype(), y.dims()[0], y.dims()[1]);
    let mut part = device.buffer(dtype, [num_tokens, num_columns])?;
    let kernel = kernel(device, &sources::LORA, dtype, ["lora_columns_f32", "lora_columns_bf16"])?;
    let mut arguments = [
        Argument::In(y),
        Argument::Out(&mut part),
        Argument::U32(count(WHAT, width)?),
        Argument::U32(count(WHAT, column_start)?),
        Argument::U32(count(WHAT, num_columns)?),
    ];
    // SAFETY: block `t` touches row `t` of `part` and as many columns of row `t` of `y`, which has them: the contract
    // checked. `y` was written on the compute stream.
    unsafe { device.launch(&kernel, grid(WHAT, num_tokens, num_columns, dtype)?, &mut arguments) }?;
    Ok(part.into_tensor())
}

pub(super) fn dropout(device: &Arc<CudaDevice>, x: &Tensor, tokens: &TokenKeys, mask: Mask) -> Result<Tensor> {
    const WHAT: &str = "dropout";
    let (dtype, num_tokens, width) = (x.dtype(), x.dims()[0], x.dims()[1]);
    let mut y = device.buffer(dtype, [num_tokens, width])?;
    let kernel = kernel(device, &sources::LORA, dtype, ["lora_dropout_f32", "lora_dropout_bf16"])?;
    let mut arguments = [
        Argument::In(x),
        Argument::In(tokens.names()),
        Argument::Out(&mut y),
        Argument::U32(count(WHAT, width)?),
        Argument::U64(mask.module),
        Argument::U32(mask.threshold),
        Argument::F32(mask.scale),
    ];
    // SAFETY: block `t` touches row `t` of `x` and `y`, and the three names of token `t`; the contract checked the shapes.
    // All were written on the compute stream.
    unsafe { device.launch(&kernel, grid(WHAT, num_tokens, width, dtype)?, &mut arguments) }?;
    Ok(y.into_tensor())
}

/// One block for each row.
fn grid(what: &'static str, num_rows: usize, width: usize, dtype: DType) -> Result<Grid> {
    Ok(Grid::new(count(what, num_rows)?, threads_for_row(width, dtype, VECTORS)))
}
