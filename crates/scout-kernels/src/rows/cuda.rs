//! Sums on the GPU. A grid that fills it once walks over the elements.

use std::sync::Arc;

use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use crate::Result;
use crate::cuda::{kernel, same_dtype, sources};

const THREADS: u32 = 256;

pub(super) fn add(device: &Arc<CudaDevice>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = same_dtype("sum", &[a, b])?;
    let mut sum = device.buffer(dtype, a.shape().clone())?;
    let kernel = kernel(device, &sources::ROWS, dtype, ["rows_add_f32", "rows_add_bf16"])?;
    let len = a.num_elements() as u64;
    let needed = a.bytes().0.div_ceil(16 * u64::from(THREADS));
    let blocks = device.resident_blocks(&kernel, THREADS, 0)?.min(needed as u32);
    let mut arguments = [Argument::In(a), Argument::In(b), Argument::Out(&mut sum), Argument::U64(len)];
    // SAFETY: the kernel touches elements below `len` of three runs that have as many; the contract checked that the
    // shapes are equal. Both factors were written on the compute stream.
    unsafe { device.launch(&kernel, Grid::new(blocks, THREADS), &mut arguments) }?;
    Ok(sum.into_tensor())
}
