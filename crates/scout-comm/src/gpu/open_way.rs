//! A way of gathering at work: its memory, which other ranks have mapped, and what moves bytes there.
//!
//! Ranks write into and read out of each other's memory, so nobody may give any back before all have come to an end. Where
//! one of them does not, because it failed, what it has stays as it is until its process ends: a peer that is still under
//! way finds memory, and no stream of this rank is let go to write where nobody expects it.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use scout_device::cuda::{CudaDevice, DeviceBuffer, Event, Stream};
use scout_device::{Purpose, Tensor};

use super::gather::{Gather, Part};
use super::mapped;
use super::nccl::ByNccl;
use super::pull::Pull;
use super::push::Push;
use super::ways::{GatherMemory, GatherWay, Ranks};
use crate::communicator::Communicator;
use crate::error::{CommError, Result};

/// Given back by [`OpenWay::leave`]; dropped, it is left to the end of the process.
pub struct OpenWay {
    way: GatherWay,
    device: Arc<CudaDevice>,
    world_size: usize,
    gather: ManuallyDrop<Box<dyn Gather>>,
    memory: ManuallyDrop<GatherMemory>,
}

/// A unit that is under way: nothing to be read before somebody waits for it.
pub struct Arriving {
    full: DeviceBuffer,
    /// It is there when all are past.
    arrived: Vec<Event>,
}

impl Arriving {
    /// What is queued on `stream` from now on may read it. The host goes on.
    pub fn wait_on(self, stream: &Stream) -> scout_device::Result<Tensor> {
        self.arrived.iter().try_for_each(|event| stream.wait_for(event))?;
        Ok(self.full.into_tensor())
    }
}

impl OpenWay {
    /// Ready to gather what lies in `memory`, which `way` asked for. All of this rank's parts must be there: others may fetch
    /// them as soon as they have called this too. All ranks fail where one does, with its reason.
    pub fn open(way: GatherWay, ranks: Ranks, memory: GatherMemory) -> Result<OpenWay> {
        match way_of(way, ranks, &memory) {
            Ok(gather) => {
                let (gather, memory) = (ManuallyDrop::new(gather), ManuallyDrop::new(memory));
                Ok(OpenWay { way, device: ranks.device.clone(), world_size: ranks.comm.mesh().size(), gather, memory })
            }
            Err(error) => {
                // All ranks say alike that there is no way, and have closed what they had mapped of each other when they meet.
                let all_have_closed = matches!(error, CommError::NoWay { .. }) && ranks.comm.barrier().is_ok();
                if !all_have_closed {
                    std::mem::forget(memory);
                }
                Err(error)
            }
        }
    }

    pub fn way(&self) -> GatherWay {
        self.way
    }

    /// As [`Gather::stream`].
    pub fn stream(&self) -> &Arc<Stream> {
        self.gather.stream()
    }

    /// Queues that a unit, of which `part` is this rank's, becomes whole from byte `start` of the ring on, where nothing is that
    /// this rank holds. All ranks gather the same units to the same places in the same order.
    pub fn gather(&self, part: Part, start: usize) -> Result<Arriving> {
        assert!(!part.stays || self.way.brings_others_alone(), "{} bring whole units", self.way);
        let len = part.tensor.num_elements() * part.num_brought(self.world_size);
        let bytes = (part.tensor.dtype().size() * len as u64).0 as usize;
        let block = self.memory.ring.take_at(Purpose::Gathered, start, bytes)?;
        let mut full = DeviceBuffer::new(&self.device, block, part.tensor.dtype(), [len])?;
        let arrived = self.gather.queue(part, &mut full)?;
        Ok(Arriving { full, arrived })
    }

    /// The end of all gathering. Every rank calls it, when all that it has queued will come to an end.
    pub fn leave(self, comm: &dyn Communicator) -> Result<()> {
        let OpenWay { device, gather, memory, .. } = self;
        let streams = gather.streams();
        let unmap = || drop(ManuallyDrop::into_inner(gather));
        let free = || {
            if let Some(nccl) = &memory.nccl {
                nccl.leave();
            }
            drop(ManuallyDrop::into_inner(memory));
        };
        mapped::part((&device, comm), &streams, unmap, free)
    }
}

fn way_of(way: GatherWay, Ranks { device, comm }: Ranks, memory: &GatherMemory) -> Result<Box<dyn Gather>> {
    Ok(match way {
        GatherWay::Push => Box::new(Push::map(device, &memory.ring, comm)?),
        GatherWay::Pull => Box::new(Pull::map(device, &memory.parts, comm)?),
        GatherWay::NcclByCopy | GatherWay::Nccl => {
            let nccl = memory.nccl.clone().expect("memory of these ways comes with what gathers in it");
            Box::new(ByNccl { nccl, stream: device.copy().clone() })
        }
    })
}
