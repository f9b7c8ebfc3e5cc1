//! One block for each row, but for thin products: those have tiles.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{Argument, CudaDevice, DeviceBuffer, Grid, Scale, Window};
use scout_device::{DeviceError, Tensor};

use super::{Mask, Product, TokenKeys};
use crate::Result;
use crate::cuda::{count, kernel, same_dtype, sources, threads_for_row};
use crate::matmul::Columns;

/// Vectors of a row that a thread has in flight.
const VECTORS: usize = 2;

/// The largest rank for which there is a kernel; from there on a product is enough work for cuBLASLt to hide that it
/// writes slowly.
const LARGEST_RANK: usize = 64;
/// Rows of a tile, as in the kernel.
const ROWS: u32 = 128;

/// Writes a product to columns of `y` from `start` on. A residual lies like all of `y`, and so must the product then. The
/// contract checked that they fit.
pub(super) fn write(
    device: &Arc<CudaDevice>,
    (y, start): (&mut DeviceBuffer, usize),
    product: Product,
    residual: Option<&Tensor>,
) -> Result<()> {
    const WHAT: &str = "thin product";
    let Product { narrow, wide, transposed, scale } = product;
    let (num_tokens, width) = (y.dims()[0], y.dims()[1]);
    let num_columns = wide.dims()[usize::from(!transposed)];
    let dtype = same_dtype(WHAT, &[narrow.tensor, wide, residual.unwrap_or(wide)])?;
    if !matches!(dtype, DType::F32 | DType::BF16) || y.dtype() != dtype {
        return Err(DeviceError::DType { what: WHAT, found: dtype, expected: DType::BF16 });
    }
    if narrow.count > LARGEST_RANK {
        if let Some(residual) = residual {
            y.copy_from(0, residual)?;
        }
        let window = Window { start, rows: num_tokens, columns: num_columns, leading: width };
        let scale = Scale { alpha: scale, beta: if residual.is_some() { 1.0 } else { 0.0 } };
        let factors = [narrow.on_gpu(false), Columns::from(wide).on_gpu(transposed)];
        return device.multiply(factors, (y, window), scale);
    }
    let (rank, num_rows) = (count(WHAT, narrow.count)?, count(WHAT, num_tokens)?);
    let Shape { name, columns, threads, shared_memory } = shape(dtype, rank);
    let kernel = device.kernel(&sources::LORA, name)?;
    let blocks = count(WHAT, num_columns.div_ceil(columns) * num_tokens.div_ceil(ROWS as usize))?;
    let grid = Grid { shared_memory, ..Grid::new(blocks, threads) };
    let bytes = |columns: usize| (num_tokens * columns) as u64 * dtype.size().0;
    let mut arguments = [
        Argument::OutPart(y, bytes(num_columns)),
        Argument::Part(narrow.tensor, bytes(narrow.count)),
        Argument::In(wide),
        residual.map_or(Argument::Nothing, Argument::In),
        Argument::U32(num_rows),
        Argument::U32(count(WHAT, width)?),
        Argument::U32(count(WHAT, start)?),
        Argument::U32(count(WHAT, num_columns)?),
        Argument::U32(count(WHAT, narrow.tensor.dims()[1])?),
        Argument::U32(count(WHAT, narrow.start)?),
        Argument::U32(rank),
        Argument::U32(u32::from(transposed)),
        Argument::F32(scale),
    ];
    // SAFETY: a block touches a tile of rows below `num_tokens` and columns below `num_columns` from `start` on of `y` and
    // `residual`, those rows of `narrow` and those columns of `wide`, which have them (the contract checked). The kernel of
    // this name takes such ranks. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }
}

/// The kernel for thin products of this rank.
struct Shape {
    name: &'static str,
    /// Of a tile.
    columns: usize,
    threads: u32,
    shared_memory: u32,
}

fn shape(dtype: DType, rank: u32) -> Shape {
    let name = match rank {
        // Both factors of a tile lie in shared memory.
        _ if dtype == DType::F32 => {
            let shared_memory = 4 * rank * (128 + ROWS);
            return Shape { name: "lora_product_f32", columns: 128, threads: 256, shared_memory };
        }
        0..=8 => "lora_product_1_bf16",
        9..=16 => "lora_product_2_bf16",
        17..=24 => "lora_product_3_bf16",
        25..=32 => "lora_product_4_bf16",
        33..=48 => "lora_product_6_bf16",
        _ => "lora_product_8_bf16",
    };
    Shape { name, columns: 256, threads: 128, shared_memory: 0 }
}

/// Fails when something else looks at the memory of `y`.
pub(super) fn add_delta(device: &Arc<CudaDevice>, y: Tensor, delta: &Tensor, scale: f32) -> Result<Tensor> {
    const WHAT: &str = "addition of an adapter";
    let dtype = same_dtype(WHAT, &[&y, delta])?;
    let (num_tokens, width) = (y.dims()[0], y.dims()[1]);
    let mut y = DeviceBuffer::from_tensor(y)?;
    let kernel = kernel(device, &sources::LORA, dtype, ["lora_add_delta_f32", "lora_add_delta_bf16"])?;
    let mut arguments = [
        Argument::InOut(&mut y, delta.bytes().0),
        Argument::In(delta),
        Argument::U32(count(WHAT, width)?),
        Argument::F32(scale),
    ];
    // SAFETY: block `t` touches row `t` of `delta` and of `y`, which have the same shape (the contract checked); nobody else
    // looks at `y`. Both were written on the compute stream.
    unsafe { device.launch(&kernel, grid(WHAT, num_tokens, width, dtype)?, &mut arguments) }?;
    Ok(y.into_tensor())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_takes_every_rank_up_to_the_largest() {
        for rank in 0..=LARGEST_RANK as u32 {
            let name = shape(DType::BF16, rank).name;
            let steps: u32 = name.split('_').nth(2).and_then(|steps| steps.parse().ok()).unwrap();
            assert!(rank <= 8 * steps && sources::LORA.text.contains(&format!("PRODUCT({steps})")), "{rank}: {name}");
            assert!(shape(DType::F32, rank).shared_memory <= 64 << 10);
        }
    }
}
