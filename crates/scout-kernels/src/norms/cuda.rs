//! A block of threads for each block of numbers, then one for their sums.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use crate::Result;
use crate::cuda::{count, sources};

/// Numbers that a block adds up, as in the kernel.
const BLOCK: usize = 16384;
const THREADS: u32 = 256;
const LAST_THREADS: u32 = 1024;

/// The sum of squares, an f64, and the number of values that are not finite, a u64: each as two halves, the lower
/// first.
pub(super) fn measure(device: &Arc<CudaDevice>, run: &Tensor) -> Result<Tensor> {
    let num_blocks = run.num_elements().div_ceil(BLOCK);
    let blocks = count("norm of a run", num_blocks)?;
    let mut squares = device.buffer(DType::U32, [num_blocks, 2])?;
    let mut not_finite = device.buffer(DType::U32, [num_blocks, 2])?;
    let kernel = device.kernel(&sources::NORMS, "norms_of_blocks")?;
    let len = Argument::U64(run.num_elements() as u64);
    let mut arguments = [Argument::In(run), Argument::Out(&mut squares), Argument::Out(&mut not_finite), len];
    // SAFETY: block `i` reads up to `BLOCK` elements of the run, none behind its end, and writes 8 bytes at place `i`
    // of both results.
    unsafe { device.launch(&kernel, Grid::new(blocks, THREADS), &mut arguments) }?;
    let (squares, not_finite) = (squares.into_tensor(), not_finite.into_tensor());
    let mut result = device.buffer(DType::U32, [4])?;
    let kernel = device.kernel(&sources::NORMS, "norms_of_all")?;
    let mut arguments =
        [Argument::In(&squares), Argument::In(&not_finite), Argument::Out(&mut result), Argument::U32(blocks)];
    // SAFETY: one block reads what the others wrote, and writes 16 bytes.
    unsafe { device.launch(&kernel, Grid::new(1, LAST_THREADS), &mut arguments) }?;
    Ok(result.into_tensor())
}
