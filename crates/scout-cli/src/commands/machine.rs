//! The device that a command computes on, found before its run is planned and taken when it is.

use std::sync::Arc;
use std::time::Duration;

use scout_comm::gpu::{self, GpuGroup, Ranks};
use scout_comm::{Communicator, words};
use scout_config::{DeviceKind, RunConfig};
use scout_core::ByteCount;
use scout_core::causes::with_causes;
use scout_device::cuda::{Choice, CudaDevice, CudaOptions};
use scout_device::device::DeviceWish;
use scout_device::{Device, DeviceError, host};
use scout_train::TrainError;
use scout_train::machine::{ComputeType, Hardware, Kind, Machine, Room};
use scout_train::memory::COUNTED_FOR_NCCL;
use scout_train::plan::RunPlan;

use crate::ranks::Seat;
use crate::surroundings;

/// What drivers and libraries take of a GPU beside weights and working memory.
const LEFT_TO_LIBRARIES: ByteCount = ByteCount(3 << 30);
/// Working memory of a GPU that is only asked what it is.
const NEXT_TO_NOTHING: ByteCount = ByteCount(1 << 20);

/// The GPU of the rank on this seat, with room for `weights` bytes beside its working memory. All ranks call it.
pub fn open_gpu(seat: &Seat, comm: &dyn Communicator, weights: ByteCount) -> Result<Device, TrainError> {
    let (ordinal, sharers) = (seat.gpu(), seat.ranks_of_a_gpu());
    // Looked at before anybody takes memory: a second rank on the GPU would only hear that none is left.
    let looking = CudaOptions { working_memory: NEXT_TO_NOTHING, ordinal, ..surroundings::cuda() };
    let found = Device::choose(DeviceWish::Cuda, &looking)?;
    if let Device::Cuda(gpu) = &found {
        must_be_alone(gpu, seat, comm)?;
    }
    let leave_free = Some(weights + LEFT_TO_LIBRARIES);
    Ok(Device::choose(DeviceWish::Cuda, &CudaOptions { leave_free, ordinal, sharers, ..surroundings::cuda() })?)
}

/// Of the memory that a plan is told of. A plan for several GPUs counts them itself.
fn left_to_libraries(world_size: usize) -> ByteCount {
    if world_size > 1 { ByteCount(0) } else { LEFT_TO_LIBRARIES }
}

/// A trial gains a few percent of what products take from then on: one is worth its time to those that have taken fifty
/// times as long. Ranks wait for each other, and where their rows differ in length they try at different times.
fn trials_first(world_size: usize) -> f64 {
    50.0 * world_size as f64
}

/// How long the host waits for the GPU. Ranks that keep others waiting are found by the watch over all ranks, which knows who it
/// was; this ends only what it does not see, and so comes later.
fn patience(config: &RunConfig) -> Duration {
    const AT_LEAST: Duration = Duration::from_secs(600);
    config.device.hang_limit.map_or(AT_LEAST, |limit| (2 * limit).max(AT_LEAST))
}

fn without(all: ByteCount, part: ByteCount) -> ByteCount {
    ByteCount(all.0.saturating_sub(part.0))
}

fn wish(kind: DeviceKind) -> DeviceWish {
    match kind {
        DeviceKind::Auto => DeviceWish::Auto,
        DeviceKind::Cpu => DeviceWish::Cpu,
        DeviceKind::Cuda => DeviceWish::Cuda,
    }
}

/// What a rank computes on, found before it is known how much of it a run needs.
pub struct Found {
    device: Device,
    seat: Seat,
    compute: ComputeType,
    choice: Choice,
    patience: Duration,
    /// How the GPUs of several ranks reach each other, when they have met.
    gpus: Option<GpuGroup>,
}

impl Found {
    /// The device that a configuration means for the rank on this seat. Takes no memory that anybody would miss.
    pub fn by(config: &RunConfig, seat: &Seat) -> Result<Found, TrainError> {
        let choice = if config.device.deterministic { Choice::First } else { Choice::Timed };
        let (ordinal, patience) = (seat.gpu(), patience(config));
        let options = CudaOptions { working_memory: NEXT_TO_NOTHING, ordinal, patience, ..surroundings::cuda() };
        let device = Device::choose(wish(config.device.device), &options)?;
        let kind = match &device {
            Device::Cpu => Kind::Host,
            Device::Cuda(_) => Kind::Gpu,
        };
        let compute = ComputeType::wanted(config, kind);
        Ok(Found { device, seat: *seat, compute, choice, patience, gpus: None })
    }

    /// For people; nothing on the host.
    pub fn describe(&self) -> Option<String> {
        let Device::Cuda(gpu) = &self.device else { return None };
        Some(format!("computing in {} on {gpu:?}, {}", self.compute.dtype(), gpu.properties().memory))
    }

    /// What the plan must know. All ranks call it: their GPUs meet here, and all see the memory of the one that has least free
    /// then, so that they plan alike. Fails on all of them where two ranks share a GPU and nobody has said that they are to.
    pub fn hardware(&mut self, comm: &dyn Communicator) -> Result<Hardware, TrainError> {
        let world_size = self.seat.world_size;
        let Device::Cuda(gpu) = &self.device else { return Ok(world_size.into()) };
        must_be_alone(gpu, &self.seat, comm)?;
        let (mut free, _) = gpu.context().memory()?;
        if world_size > 1 {
            self.gpus = Some(GpuGroup::connect(gpu, comm)?);
            // How much NCCL takes depends on links and their number.
            free = free.min(gpu.context().memory()?.0 + COUNTED_FOR_NCCL);
        }
        let own = ByteCount(free.0 / self.seat.ranks_of_a_gpu() as u64);
        let room = Room::ForAll(without(least(comm, own)?, left_to_libraries(world_size)));
        let sees_peers = world_size == 1 || gpu::see_each_other(Ranks { device: gpu, comm })?;
        Ok(Hardware { world_size, kind: Kind::Gpu, compute: self.compute, room, sees_peers })
    }

    /// Takes of the device what `plan` says.
    pub fn machine(self, plan: &RunPlan) -> Result<Machine, TrainError> {
        let Found { device, seat: Seat { world_size, .. }, compute, choice, patience, gpus } = self;
        let Device::Cuda(found) = device else { return Ok(world_size.into()) };
        let options = CudaOptions {
            working_memory: plan.memory.working(),
            choice,
            patience,
            trials_first: trials_first(world_size),
            ..surroundings::cuda()
        };
        let gpu = found.open_again(&options)?;
        let gpus = gpus.map(|group| Arc::new(group.on(&gpu)));
        Ok(Machine { world_size, device: Device::Cuda(gpu), compute, gpus })
    }

    /// As [`must_be_alone`], on a GPU.
    pub fn must_be_alone(&self, comm: &dyn Communicator) -> Result<(), TrainError> {
        match &self.device {
            Device::Cpu => Ok(()),
            Device::Cuda(gpu) => must_be_alone(gpu, &self.seat, comm),
        }
    }
}

/// Each rank needs a GPU of its own, unless ranks are told to share. Every rank calls it, and it fails on all of them.
pub fn must_be_alone(gpu: &CudaDevice, seat: &Seat, comm: &dyn Communicator) -> Result<(), TrainError> {
    let place = format!("{} {}", host::boot_id(), gpu.properties().pci_bus_id);
    let places = words::of_any_length(comm, place.into_bytes())?;
    let Some((first, second)) = same(&places).filter(|_| seat.shared_gpus.is_none()) else { return Ok(()) };
    let reason = format!(
        "ranks {first} and {second} are on the same GPU ({}); start as many ranks on a host as it has GPUs, and let each \
         see all of them or one of its own",
        gpu.properties().pci_bus_id
    );
    Err(DeviceError::Unavailable { wanted: "cuda".to_string(), reason }.into())
}

/// The first two that are equal.
fn same<T: PartialEq>(places: &[T]) -> Option<(usize, usize)> {
    let pairs = (0..places.len()).flat_map(|second| (0..second).map(move |first| (first, second)));
    pairs.into_iter().find(|&(first, second)| places[first] == places[second])
}

/// The smallest number of all ranks.
fn least(comm: &dyn Communicator, own: ByteCount) -> Result<ByteCount, TrainError> {
    let all = words::of_all_ranks(comm, own.0.to_le_bytes())?;
    Ok(ByteCount(all.into_iter().map(u64::from_le_bytes).min().unwrap_or(own.0)))
}

/// What a plan must know of the machine that a configuration means, and what it cannot know because no GPU is here. Takes
/// no memory that anybody would miss.
pub fn hardware(config: &RunConfig, world_size: usize) -> (Hardware, Option<String>) {
    let compute = ComputeType::wanted(config, Kind::Gpu);
    let on_gpu = |room| Hardware { world_size, kind: Kind::Gpu, compute, room, sees_peers: true };
    let is_told = config.device.device_memory.is_some();
    if config.device.device == DeviceKind::Cuda && is_told {
        return (on_gpu(Room::Unknown), None);
    }
    let options = CudaOptions { working_memory: NEXT_TO_NOTHING, ..surroundings::cuda() };
    match Device::choose(wish(config.device.device), &options) {
        Ok(Device::Cpu) => (world_size.into(), None),
        // Planned for another machine, it may be.
        Ok(Device::Cuda(_)) | Err(_) if is_told => (on_gpu(Room::Unknown), None),
        Ok(Device::Cuda(gpu)) => {
            // All of it: what others use of it now says nothing about the run that is planned.
            (on_gpu(Room::ForAll(without(gpu.properties().memory, left_to_libraries(world_size)))), None)
        }
        Err(error) => {
            let unknown = "the memory of a GPU is unknown, so all is kept: `device_memory` tells it";
            (on_gpu(Room::Unknown), Some(format!("no GPU can be asked ({}); {unknown}", with_causes(&error))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_share_a_gpu_are_found() {
        assert_eq!(same(&["a", "b", "c"]), None);
        assert_eq!(same(&["a", "b", "a", "b"]), Some((0, 2)));
        assert_eq!(same::<u8>(&[]), None);
    }
}
