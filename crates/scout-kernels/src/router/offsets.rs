//! How many tokens each expert has, as the host knows it: at once when it counted them itself, on demand when a GPU did.

use std::sync::Arc;

use scout_device::Tensor;
use scout_device::cuda::{CudaDevice, Numbers};

use crate::Result;

/// Clones share what has arrived.
#[derive(Debug, Clone)]
pub(super) enum Offsets {
    Host(Vec<u32>),
    /// Counted on a GPU, where `tensor` stays for kernels. A grouped product that takes its rows from there would need
    /// no `numbers`, and nothing would wait.
    Gpu {
        tensor: Tensor,
        numbers: Arc<Numbers>,
    },
}

impl Offsets {
    pub(super) fn on_gpu(device: &Arc<CudaDevice>, tensor: Tensor) -> Result<Offsets> {
        let numbers = Arc::new(Numbers::send(device, &tensor)?);
        Ok(Offsets::Gpu { tensor, numbers })
    }

    pub(super) fn get(&self) -> Result<&[u32]> {
        match self {
            Offsets::Host(offsets) => Ok(offsets),
            Offsets::Gpu { numbers, .. } => numbers.get(),
        }
    }

    /// Where they were counted. Waits for nothing.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        match self {
            Offsets::Host(offsets) => Tensor::from_u32(offsets.clone(), [offsets.len()]),
            Offsets::Gpu { tensor, .. } => Ok(tensor.clone()),
        }
    }

    /// Known without waiting.
    pub(super) fn num_experts(&self) -> usize {
        let len = match self {
            Offsets::Host(offsets) => offsets.len(),
            Offsets::Gpu { tensor, .. } => tensor.num_elements(),
        };
        len.saturating_sub(1)
    }
}
