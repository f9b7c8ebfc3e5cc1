//! Gathering by copy engines: each rank fetches the parts of the others out of their memory, mapped here once. No kernel
//! runs, so arithmetic keeps all multiprocessors, and nobody has to serve anybody.
//!
//! The base is frozen, so fetching needs no permission: a part is what it was when it was loaded. What does need care is who
//! fetches from whom at one time. Rank r fetches from r + 1, r + 2 and so on, which is a rotation in which every rank serves
//! one other, as long as all of them begin together. Ranks that drift apart meet at one source, halve each other's speed and
//! leave other sources idle, and nothing pulls them apart again. `InStep` lets them begin each unit together: a flag in every
//! peer's memory, written and awaited by the streams themselves. Neither the host nor a multiprocessor takes part.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use scout_core::{ByteCount, Mesh};
use scout_device::cuda::{Arena, ArenaHandle, CudaDevice, DeviceBuffer, Flags, PeerArena, Priority, Stream};
use scout_device::{DeviceError, Tensor, host};

use super::exchange;
use super::gather::Gather;
use crate::communicator::Communicator;
use crate::error::Result;

/// The memory of all other ranks, mapped.
pub(super) struct Peers {
    // Dropped first: it lets streams go on that wait for a lost peer, and what follows waits for those streams.
    flags: Flags,
    mesh: Mesh,
    /// This rank's parts.
    own: Arena,
    /// By rank; none for this one.
    parts: Vec<Option<PeerArena>>,
    /// Their flags, by rank.
    their_flags: Vec<Option<PeerArena>>,
    /// Units that were begun together so far.
    round: AtomicU32,
    stream: Arc<Stream>,
    /// Where this rank's own part is copied, which no copy engine does, while the others come in.
    beside: Arc<Stream>,
}

/// Whether ranks begin units together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Free,
    InStep,
}

pub(super) struct CopyEngines {
    pub peers: Peers,
    pub pace: Pace,
}

impl Peers {
    /// Shows `own`, where this rank keeps its parts, to all others and maps theirs. All ranks fail where one does.
    pub fn map(device: &Arc<CudaDevice>, own: &Arena, comm: &dyn Communicator) -> Result<Peers> {
        const WAY: &str = "copy engines";
        let mesh = comm.mesh();
        exchange::all_can(comm, WAY, on_one_host(comm)?)?;
        let shown = Flags::new(device, mesh.size()).and_then(|flags| Ok((own.handle()?, flags.handle()?, flags)));
        let (parts, flags_handle, flags) = exchange::all_can(comm, WAY, shown)?;
        let all_parts = exchange::of_all_ranks(comm, parts.to_bytes())?;
        let all_flags = exchange::of_all_ranks(comm, flags_handle.to_bytes())?;
        let map = |handles: &[[u8; 64]], bytes: ByteCount| {
            let of_rank = |(rank, handle): (usize, &[u8; 64])| {
                let is_own = rank == mesh.rank().0;
                let open = || PeerArena::open(device.context(), &ArenaHandle::from_bytes(*handle), bytes);
                (!is_own).then(open).transpose()
            };
            handles.iter().enumerate().map(of_rank).collect::<scout_device::Result<Vec<_>>>()
        };
        let mapped = map(&all_parts, own.capacity()).and_then(|parts| Ok((parts, map(&all_flags, flags.bytes())?)));
        let (parts, their_flags) = exchange::all_can(comm, WAY, mapped)?;
        let (own, stream, round) = (own.clone(), device.copy().clone(), AtomicU32::new(0));
        let beside = Arc::new(Stream::new(device.context(), Priority::High)?);
        Ok(Peers { mesh, own, parts, flags, their_flags, round, stream, beside })
    }

    /// The others in the order in which this rank turns to them.
    fn rotation(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, size) = (self.mesh.rank().0, self.mesh.size());
        (1..size).map(move |step| (rank + step) % size)
    }

    /// Queues a wait until every rank has come to this unit.
    fn begin_together(&self) -> Result<()> {
        let round = self.round.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for rank in self.rotation() {
            if let Some(theirs) = &self.their_flags[rank] {
                theirs.write_flag(self.mesh.rank().0, round, &self.stream)?;
            }
        }
        for rank in self.rotation() {
            self.flags.wait_for(rank, round, &self.stream)?;
        }
        Ok(())
    }
}

/// A handle of another host may open something here all the same, so it is never tried. All processes under one kernel
/// read the same name of its run, whatever containers they are in.
fn on_one_host(comm: &dyn Communicator) -> Result<scout_device::Result<()>> {
    let mut own = [0; 64];
    let name = host::boot_id();
    let len = name.len().min(own.len());
    own[..len].copy_from_slice(&name.as_bytes()[..len]);
    let all = exchange::of_all_ranks(comm, own)?;
    Ok(match all.iter().all(|other| *other == own) {
        true => Ok(()),
        false => Err(DeviceError::Value { what: "ranks", problem: "found on several hosts".to_string() }),
    })
}

impl Gather for CopyEngines {
    fn stream(&self) -> &Arc<Stream> {
        &self.peers.stream
    }

    fn queue(&self, part: &Tensor, full: &mut DeviceBuffer) -> Result<()> {
        let Peers { mesh, own, parts, stream, beside, .. } = &self.peers;
        let (offset, len) = (part.offset_in(own)?, part.num_elements());
        beside.wait_for(&stream.record()?)?; // the memory may be written from here on
        full.copy_from_on(mesh.rank().0 * len, part, beside)?;
        let own_part_is_there = beside.record()?;
        if self.pace == Pace::InStep {
            self.peers.begin_together()?;
        }
        for rank in self.peers.rotation() {
            if let Some(theirs) = &parts[rank] {
                full.pull(rank * len..(rank + 1) * len, theirs, offset, stream)?;
            }
        }
        Ok(stream.wait_for(&own_part_is_there)?)
    }
}
