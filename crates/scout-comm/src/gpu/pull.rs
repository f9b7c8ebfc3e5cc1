//! Gathering by copy engines that pull: each rank fetches the parts of the others out of their memory. No kernel runs, so
//! arithmetic keeps all multiprocessors, and nobody has to serve anybody.
//!
//! The base is frozen, so fetching needs no permission: a part is what it was when it was loaded. What does need care is who
//! fetches from whom at one time. In a rotation every rank serves one other, as long as all of them begin together. Ranks
//! that drift apart meet at one source, halve each other's speed and leave other sources idle, and nothing pulls them apart
//! again. `InStep` lets them begin each unit together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use scout_core::Mesh;
use scout_device::Tensor;
use scout_device::cuda::{Arena, CudaDevice, DeviceBuffer, Event, Stream};

use super::gather::Gather;
use super::mapped::{self, Lines, OfOthers};
use super::own_part::OwnPart;
use crate::communicator::Communicator;
use crate::error::Result;

/// Whether ranks begin units together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Free,
    InStep,
}

pub(super) struct Pull {
    together: Option<Together>,
    mesh: Mesh,
    /// This rank's parts.
    own: Arena,
    parts: OfOthers,
    own_part: OwnPart,
    stream: Arc<Stream>,
}

/// What ranks that begin units together need.
struct Together {
    begun: Lines<1>,
    /// Units so far.
    round: AtomicU32,
}

impl Pull {
    /// Shows `own`, where this rank keeps its parts, to all others and maps theirs. All ranks fail where one does.
    pub fn map(device: &Arc<CudaDevice>, own: &Arena, pace: Pace, comm: &dyn Communicator) -> Result<Pull> {
        mapped::must_be_one_host(comm)?;
        let parts = OfOthers::map(device, own, comm)?;
        let together = match pace {
            Pace::Free => None,
            Pace::InStep => Some(Together { begun: Lines::between(device, comm)?, round: AtomicU32::new(0) }),
        };
        let mesh = comm.mesh();
        let own_part = OwnPart::of(mesh.rank(), device)?;
        Ok(Pull { together, mesh, own: own.clone(), parts, own_part, stream: device.copy().clone() })
    }
}

impl Together {
    /// Queues a wait until every rank has come to this unit.
    fn begin(&self, mesh: Mesh, stream: &Arc<Stream>) -> Result<()> {
        let round = self.round.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for rank in mapped::rotation(mesh) {
            self.begun.raise(0, rank, round, stream)?;
        }
        mapped::rotation(mesh).try_for_each(|rank| self.begun.wait_for(0, rank, round, stream))
    }
}

impl Gather for Pull {
    fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    fn queue(&self, part: &Tensor, full: &mut DeviceBuffer) -> Result<Vec<Event>> {
        let (stream, offset, len) = (&self.stream, part.offset_in(&self.own)?, part.num_elements());
        let own_part_is_there = self.own_part.copy(part, full, stream)?;
        if let Some(together) = &self.together {
            together.begin(self.mesh, stream)?;
        }
        for rank in mapped::rotation(self.mesh) {
            full.pull(rank * len..(rank + 1) * len, self.parts.of(rank), offset, stream)?;
        }
        Ok(vec![own_part_is_there, stream.record()?])
    }
}
