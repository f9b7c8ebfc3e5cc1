//! The device that a command computes on, opened with room for its weights.

use scout_config::{DeviceKind, RunConfig};
use scout_core::ByteCount;
use scout_core::causes::with_causes;
use scout_device::Device;
use scout_device::cuda::{Choice, CudaOptions};
use scout_device::device::DeviceWish;
use scout_model::ModelConfig;
use scout_train::TrainError;
use scout_train::machine::{ComputeType, Hardware, Kind, Machine, Room};

use crate::surroundings;

/// What drivers and libraries take of a GPU beside weights and working memory.
const LEFT_TO_LIBRARIES: ByteCount = ByteCount(3 << 30);

/// The device that `wish` means; never the host where a GPU was meant. Of a GPU's memory `weights` bytes are left for
/// shards, and everything together takes no more than `limit`, where there is one.
pub fn open_device(wish: DeviceWish, weights: ByteCount, limit: Option<ByteCount>) -> Result<Device, TrainError> {
    Ok(Device::choose(wish, &options(weights, limit))?)
}

fn options(weights: ByteCount, limit: Option<ByteCount>) -> CudaOptions {
    match limit {
        Some(limit) => CudaOptions { working_memory: without(limit, weights), ..surroundings::cuda() },
        None => CudaOptions { leave_free: Some(weights + LEFT_TO_LIBRARIES), ..surroundings::cuda() },
    }
}

fn without(all: ByteCount, part: ByteCount) -> ByteCount {
    ByteCount(all.0.saturating_sub(part.0))
}

/// Bytes of a model's weights in the element type that a device computes with.
pub fn weight_bytes(config: &ModelConfig, compute: ComputeType) -> ByteCount {
    compute.dtype().size() * config.num_params()
}

fn wish(kind: DeviceKind) -> DeviceWish {
    match kind {
        DeviceKind::Auto => DeviceWish::Auto,
        DeviceKind::Cpu => DeviceWish::Cpu,
        DeviceKind::Cuda => DeviceWish::Cuda,
    }
}

/// The machine that a configuration means for this model: bf16 or f32 on a GPU, f32 on the host.
pub fn machine(config: &RunConfig, model: &ModelConfig, world_size: usize) -> Result<Machine, TrainError> {
    let weights = weight_bytes(model, ComputeType::wanted(config, Kind::Gpu));
    let choice = if config.device.deterministic { Choice::First } else { Choice::Timed };
    let options = CudaOptions { choice, ..options(weights, config.device.device_memory) };
    let device = Device::choose(wish(config.device.device), &options)?;
    let kind = match &device {
        Device::Cpu => Kind::Host,
        Device::Cuda(_) => Kind::Gpu,
    };
    Ok(Machine { world_size, device, compute: ComputeType::wanted(config, kind) })
}

/// What a plan must know of the machine that a configuration means, and what it cannot know because no GPU is here. Takes
/// no memory that anybody would miss.
pub fn hardware(config: &RunConfig, world_size: usize) -> (Hardware, Option<String>) {
    let on_gpu = |room| Hardware { world_size, kind: Kind::Gpu, compute: ComputeType::wanted(config, Kind::Gpu), room };
    let is_told = config.device.device_memory.is_some();
    if config.device.device == DeviceKind::Cuda && is_told {
        return (on_gpu(Room::Unknown), None);
    }
    let options = CudaOptions { working_memory: ByteCount(1 << 20), ..surroundings::cuda() };
    match Device::choose(wish(config.device.device), &options) {
        Ok(Device::Cpu) => (world_size.into(), None),
        Ok(Device::Cuda(gpu)) => {
            // All of it: what others use of it now says nothing about the run that is planned.
            (on_gpu(Room::ForAll(without(gpu.properties().memory, LEFT_TO_LIBRARIES))), None)
        }
        Err(_) if is_told => (on_gpu(Room::Unknown), None),
        Err(error) => {
            let unknown = "the memory of a GPU is unknown, so all is kept: `device_memory` tells it";
            (on_gpu(Room::Unknown), Some(format!("no GPU can be asked ({}); {unknown}", with_causes(&error))))
        }
    }
}
