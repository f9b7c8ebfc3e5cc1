//! Moves have one block for each row of the result; a copy is the driver's.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use crate::Result;
use crate::cuda::{count, expect_dtype, kernel, sources, threads_for_row};

const THREADS: u32 = 256;
/// Vectors of a row that a thread has in flight.
const VECTORS: usize = 2;

/// Rows for an index outside of `x` are not numbers.
pub(crate) fn gather(device: &Arc<CudaDevice>, x: &Tensor, index: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "gather of rows";
    let (dtype, num_rows, width) = (x.dtype(), x.dims()[0], x.dims()[1]);
    expect_dtype(WHAT, index, DType::U32)?;
    let num_taken = index.num_elements();
    let mut y = device.buffer(dtype, [num_taken, width])?;
    let kernel = kernel(device, &sources::ROWS, dtype, ["rows_gather_f32", "rows_gather_bf16"])?;
    let grid = Grid::new(count(WHAT, num_taken)?, threads_for_row(width, dtype, VECTORS));
    let mut arguments = [
        Argument::Part(x, y.bytes().0),
        Argument::In(index),
        Argument::Out(&mut y),
        Argument::U32(count(WHAT, width)?),
        Argument::U32(count(WHAT, num_rows)?),
    ];
    // SAFETY: block `i` reads element `i` of `index` and, if that is below `num_rows`, the row of `x` it names; it writes
    // row `i` of `y`. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(y.into_tensor())
}

/// A row that two want is not a number, and an index outside of the result is passed over.
pub(super) fn scatter(device: &Arc<CudaDevice>, dx: &Tensor, index: &Tensor, num_rows: usize) -> Result<Tensor> {
    const WHAT: &str = "scatter of rows";
    let (dtype, num_given, width) = (dx.dtype(), dx.dims()[0], dx.dims()[1]);
    expect_dtype(WHAT, index, DType::U32)?;
    let mut source = device.zeros(DType::U32, [num_rows])?;
    let turn = device.kernel(&sources::ROWS, "rows_turn_index")?;
    let mut arguments = [
        Argument::In(index),
        Argument::Out(&mut source),
        Argument::U32(count(WHAT, num_given)?),
        Argument::U32(count(WHAT, num_rows)?),
    ];
    let grid = Grid::new(count(WHAT, num_given)?.div_ceil(THREADS), THREADS);
    // SAFETY: threads below `num_given` read an element of `index` and change the element of `source` that it names, if it
    // is below `num_rows`. Both were written on the compute stream.
    unsafe { device.launch(&turn, grid, &mut arguments) }?;
    let mut y = device.buffer(dtype, [num_rows, width])?;
    let kernel = kernel(device, &sources::ROWS, dtype, ["rows_scatter_f32", "rows_scatter_bf16"])?;
    let grid = Grid::new(count(WHAT, num_rows)?, threads_for_row(width, dtype, VECTORS));
    let source = source.into_tensor();
    let mut arguments =
        [Argument::In(dx), Argument::In(&source), Argument::Out(&mut y), Argument::U32(count(WHAT, width)?)];
    // SAFETY: block `i` reads element `i` of `source` and the row of `dx` that it names, which the kernel before made from
    // the rows that there are; it writes row `i` of `y`.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(y.into_tensor())
}

pub(super) fn copy(device: &Arc<CudaDevice>, x: &Tensor) -> Result<Tensor> {
    let mut y = device.buffer(x.dtype(), x.shape().clone())?;
    y.copy_from(0, x)?;
    Ok(y.into_tensor())
}
