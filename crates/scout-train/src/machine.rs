//! On what a run computes: how many ranks, on which device, in which element type. Everything else of the plan is the same
//! on all machines.

use scout_core::{ByteCount, DType};
use scout_device::Device;

/// Element type of weights and activations. What is trained, its optimizer, norms, softmax and losses are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeType {
    F32,
    Bf16,
}

impl ComputeType {
    pub fn dtype(self) -> DType {
        match self {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::BF16,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub world_size: usize,
    pub device: Device,
    pub compute: ComputeType,
}

/// That many ranks on the host.
impl From<usize> for Machine {
    fn from(world_size: usize) -> Machine {
        Machine { world_size, device: Device::Cpu, compute: ComputeType::F32 }
    }
}

impl Machine {
    /// What weights, trained numbers, activations and scratch may take together; unknown on the host. `shard` is what the
    /// weights take, beside the working memory.
    pub fn memory(&self, shard: ByteCount) -> Option<ByteCount> {
        match &self.device {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(gpu.working_memory().capacity() + shard),
        }
    }
}
