//! Numbers that look random: evenly spread over `−scale..scale`, each a pure function of the seed and its index. The
//! same bits on the host and on every GPU; bf16 is the f32 value rounded. For tests, benchmarks and made-up weights.

mod cuda;

use std::sync::Arc;

use scout_core::{DType, Shape};
use scout_device::Tensor;
use scout_device::cuda::CudaDevice;

use crate::Result;

/// `len` values from −1 to 1.
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|index| value_at(seed, index)).collect()
}

/// The one at `index`.
pub fn value_at(seed: u64, index: usize) -> f32 {
    (hash(seed, index as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// On the host, f32.
pub fn tensor(seed: u64, shape: impl Into<Shape>, scale: f32) -> Result<Tensor> {
    let shape = shape.into();
    let values = values(seed, shape.num_elements()).into_iter().map(|value| value * scale).collect();
    Tensor::from_f32(values, shape)
}

/// On a GPU, made there.
pub fn tensor_on(
    device: &Arc<CudaDevice>,
    dtype: DType,
    shape: impl Into<Shape>,
    seed: u64,
    scale: f32,
) -> Result<Tensor> {
    cuda::tensor(device, dtype, shape.into(), seed, scale)
}

/// Evenly spread over 64 bits.
pub(crate) fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(index.wrapping_add(1) << 7);
    for _ in 0..3 {
        z = (z ^ (z >> 29)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    }
    z ^ (z >> 32)
}
