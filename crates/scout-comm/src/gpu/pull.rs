//! Gathering by copy engines that pull: each rank fetches the parts of the others out of their memory. No kernel runs, so
//! arithmetic keeps all multiprocessors, and nobody has to serve anybody.
//!
//! The base is frozen, so fetching needs no permission: a part is what it was when it was loaded. What does need care is who
//! fetches from whom at one time. In a rotation every rank serves one other, as long as all of them begin together. Ranks
//! that drift apart meet at one source, halve each other's speed and leave other sources idle, and nothing pulls them apart
//! again: four that pulled when they liked got 240 GB/s each, and 361 beginning each unit together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use scout_core::Mesh;
use scout_device::cuda::{Arena, CudaDevice, DeviceBuffer, Event, Stream};

use super::exchange;
use super::gather::{Gather, Part};
use super::mapped::{self, Lines, OfOthers};
use super::own_part::OwnPart;
use crate::communicator::Communicator;
use crate::error::Result;

pub(super) struct Pull {
    /// Ranks tell each other on it that they have come to a unit.
    begun: Lines<1>,
    /// Units so far.
    round: AtomicU32,
    mesh: Mesh,
    /// This rank's parts.
    own: Arena,
    parts: OfOthers,
    own_part: OwnPart,
    stream: Arc<Stream>,
}

impl Pull {
    /// Shows `own`, where this rank keeps its parts, to all others and maps theirs. All ranks fail where one does.
    pub fn map(device: &Arc<CudaDevice>, own: &Arena, comm: &dyn Communicator) -> Result<Pull> {
        mapped::must_be_one_host(comm)?;
        let mesh = comm.mesh();
        let own_part = exchange::must_agree(comm, OwnPart::of(mesh.rank(), device))?;
        Ok(Pull {
            parts: OfOthers::map(device, own, comm)?,
            begun: Lines::between(device, comm)?,
            round: AtomicU32::new(0),
            mesh,
            own: own.clone(),
            own_part,
            stream: device.copy().clone(),
        })
    }
}

impl Gather for Pull {
    fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    fn streams(&self) -> Vec<Arc<Stream>> {
        vec![self.stream.clone(), self.own_part.stream().clone()]
    }

    fn queue(&self, part: Part, full: &mut DeviceBuffer) -> Result<Vec<Event>> {
        let Pull { begun, stream, .. } = self;
        let round = self.round.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let (offset, len) = (part.tensor.offset_in(&self.own)?, part.tensor.num_elements());
        let own_part_is_there = self.own_part.copy(part, full, stream)?;
        begun.raise_to_all(0, round, stream)?;
        begun.wait_for_all(0, round, stream)?;
        for rank in mapped::rotation(self.mesh) {
            let place = part.place(rank, self.mesh.rank().0, self.mesh.size());
            full.pull(place * len..(place + 1) * len, self.parts.of(rank), offset, stream)?;
        }
        Ok(own_part_is_there.into_iter().chain([stream.record()?]).collect())
    }
}
