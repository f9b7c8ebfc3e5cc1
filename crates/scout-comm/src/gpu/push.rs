//! Gathering by copy engines that push: each rank writes its part into the others' memory, on a stream for each of them.
//! Between two H200 a link carried 392 GB/s in writes and 374 in reads; among four, in another program, pushes that nobody
//! ordered got 361 to 383 where such pulls got 220 to 363.
//!
//! Writing needs permission, which reading does not. When the memory of a unit is free, its rank says so to all others;
//! their streams wait for that, write, and say that the part is there; the stream of the gathers goes on when all have. The
//! place of a unit in the ring is the same on all ranks: all take and give blocks in the order of one schedule.
//!
//! The driver does not know who waits for whom here. Nobody waits for ever even if all streams of a rank were one queue: a
//! round says that its memory is free before it waits for anything, and writes to others before it waits for what they write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use scout_core::Mesh;
use scout_device::Tensor;
use scout_device::cuda::{Arena, CudaDevice, DeviceBuffer, Event, Priority, Stream};

use super::gather::Gather;
use super::mapped::{self, Lines, OfOthers};
use super::own_part::OwnPart;
use crate::communicator::Communicator;
use crate::error::Result;

pub(super) struct Push {
    said: Lines<2>,
    /// Units so far.
    round: AtomicU32,
    mesh: Mesh,
    /// Where this rank's units become whole.
    own: Arena,
    rings: OfOthers,
    own_part: OwnPart,
    /// For each other rank, in rotation.
    outward: Vec<(usize, Arc<Stream>)>,
    stream: Arc<Stream>,
}

/// What ranks say to each other, on a line each.
const MAY_BE_WRITTEN: usize = 0;
const IS_THERE: usize = 1;

impl Push {
    /// Shows `own`, where this rank's units become whole, to all others and maps theirs. All ranks fail where one does.
    pub fn map(device: &Arc<CudaDevice>, own: &Arena, comm: &dyn Communicator) -> Result<Push> {
        mapped::must_be_one_host(comm)?;
        let mesh = comm.mesh();
        let rings = OfOthers::map(device, own, comm)?;
        let said = Lines::between(device, comm)?;
        let outward = |rank| Ok((rank, Arc::new(Stream::new(device.context(), Priority::High)?)));
        Ok(Push {
            said,
            round: AtomicU32::new(0),
            mesh,
            own: own.clone(),
            rings,
            own_part: OwnPart::of(mesh.rank(), device)?,
            outward: mapped::rotation(mesh).map(outward).collect::<Result<_>>()?,
            stream: device.copy().clone(),
        })
    }
}

impl Gather for Push {
    fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    fn queue(&self, part: &Tensor, full: &mut DeviceBuffer) -> Result<Vec<Event>> {
        let Push { said, stream, .. } = self;
        let round = self.round.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let own_place = full.view().offset_in(&self.own)? + part.bytes() * self.mesh.rank().0 as u64;
        let own_part_is_there = self.own_part.copy(part, full, stream)?;
        for rank in mapped::rotation(self.mesh) {
            said.raise(MAY_BE_WRITTEN, rank, round, stream)?;
        }
        for (rank, outward) in &self.outward {
            said.wait_for(MAY_BE_WRITTEN, *rank, round, outward)?;
            self.rings.of(*rank).push(own_place, part, outward)?;
            said.raise(IS_THERE, *rank, round, outward)?;
        }
        for rank in mapped::rotation(self.mesh) {
            said.wait_for(IS_THERE, rank, round, stream)?;
        }
        Ok(vec![own_part_is_there, stream.record()?])
    }
}
