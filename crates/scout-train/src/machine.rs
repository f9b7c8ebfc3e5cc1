//! On what a run computes: how many ranks, on which device, in which element type. Everything else of the plan is the same
//! on all machines.

use std::sync::Arc;

use scout_comm::Job;
use scout_comm::gpu::GpuGroup;
use scout_config::RunConfig;
use scout_core::{ByteCount, DType};
use scout_device::Device;

use crate::error::Result;

/// Element type of weights and activations. What is trained, its optimizer, norms, softmax and losses are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeType {
    F32,
    Bf16,
}

impl ComputeType {
    /// The one that a configuration means on this kind of device: the host knows f32 alone.
    pub fn wanted(config: &RunConfig, kind: Kind) -> ComputeType {
        match kind {
            Kind::Gpu if config.train.bf16 => ComputeType::Bf16,
            Kind::Gpu | Kind::Host => ComputeType::F32,
        }
    }

    pub fn dtype(self) -> DType {
        match self {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::BF16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Host,
    Gpu,
}

#[derive(Clone)]
pub struct Machine {
    pub world_size: usize,
    pub device: Device,
    pub compute: ComputeType,
    /// How the GPUs of the ranks reach each other; none with one rank, and none on the host.
    pub gpus: Option<Arc<GpuGroup>>,
}

/// That many ranks on the host.
impl From<usize> for Machine {
    fn from(world_size: usize) -> Machine {
        Machine { world_size, device: Device::Cpu, compute: ComputeType::F32, gpus: None }
    }
}

impl Machine {
    /// One of the ranks of `job`, on `device`. All ranks call it: their GPUs meet here.
    pub fn of_rank(device: Device, compute: ComputeType, job: &Job) -> Result<Machine> {
        let world_size = job.mesh().size();
        let gpus = match &device {
            Device::Cuda(gpu) if world_size > 1 => Some(Arc::new(GpuGroup::connect(gpu, &*job.comm)?)),
            _ => None,
        };
        Ok(Machine { world_size, device, compute, gpus })
    }

    /// Every rank calls it when all have come to a good end: then the GPUs of the ranks take leave of each other.
    pub fn leave(&self) {
        if let Some(group) = &self.gpus {
            group.leave();
        }
    }
}

/// What a plan must know of the machine that it is made for. The machine need not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    pub world_size: usize,
    pub kind: Kind,
    pub compute: ComputeType,
    pub room: Room,
    /// Whether rows can go from rank to rank: on the host always, between GPUs where they can be shown each other's memory. Taken
    /// for granted of those that are not here.
    pub sees_peers: bool,
}

/// The memory of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Unknown,
    /// For weights and for all that a step needs.
    ForAll(ByteCount),
}

impl Hardware {
    /// What weights, trained numbers, activations and scratch may take together.
    pub fn memory(&self) -> Option<ByteCount> {
        match self.room {
            Room::Unknown => None,
            Room::ForAll(bytes) => Some(bytes),
        }
    }
}

/// That many ranks on the host.
impl From<usize> for Hardware {
    fn from(world_size: usize) -> Hardware {
        Hardware { world_size, kind: Kind::Host, compute: ComputeType::F32, room: Room::Unknown, sees_peers: true }
    }
}
