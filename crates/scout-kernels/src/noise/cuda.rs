//! A grid that fills the GPU once walks over the elements.

use std::sync::Arc;

use scout_core::{DType, Shape};
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use crate::Result;
use crate::cuda::{kernel, sources};

const THREADS: u32 = 256;

pub(super) fn tensor(device: &Arc<CudaDevice>, dtype: DType, shape: Shape, seed: u64, scale: f32) -> Result<Tensor> {
    let len = shape.num_elements() as u64;
    let mut y = device.buffer(dtype, shape)?;
    let kernel = kernel(device, &sources::NOISE, dtype, ["noise_fill_f32", "noise_fill_bf16"])?;
    let blocks = u64::from(device.resident_blocks(&kernel, THREADS, 0)?).min(len.div_ceil(u64::from(THREADS)));
    let mut arguments = [Argument::Out(&mut y), Argument::U64(len), Argument::U64(seed), Argument::F32(scale)];
    // SAFETY: the kernel writes elements below `len`, of which `y` has as many.
    unsafe { device.launch(&kernel, Grid::new(blocks as u32, THREADS), &mut arguments) }?;
    Ok(y.into_tensor())
}
