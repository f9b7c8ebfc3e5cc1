//! What the ranks of one host show each other of their GPUs' memory, and the flags by which their streams wait for each
//! other. Neither the host nor a multiprocessor takes part in a wait.

use std::sync::Arc;

use scout_core::{ByteCount, Mesh};
use scout_device::cuda::{Arena, ArenaHandle, CudaDevice, Flags, PeerArena, Stream};
use scout_device::{DeviceError, host};

use super::exchange;
use super::ways::Ranks;
use crate::communicator::Communicator;
use crate::error::{CommError, Result};
use crate::words;

const WAY: &str = "copy engines";

/// An arena of every other rank, by rank; none for this one. All are as large as this rank's.
pub(super) struct OfOthers {
    arenas: Vec<Option<PeerArena>>,
}

impl OfOthers {
    /// Shows `own` to all others and maps theirs. All ranks fail where one does.
    pub fn map(device: &Arc<CudaDevice>, own: &Arena, comm: &dyn Communicator) -> Result<OfOthers> {
        let shown = exchange::all_can(comm, WAY, own.handle())?;
        OfOthers::open(device, (shown, own.capacity()), comm)
    }

    fn open(
        device: &Arc<CudaDevice>,
        (shown, bytes): (ArenaHandle, ByteCount),
        comm: &dyn Communicator,
    ) -> Result<OfOthers> {
        let own_rank = comm.mesh().rank().0;
        let of_rank = |(rank, handle): (usize, &[u8; 64])| {
            let open = || PeerArena::open(device.context(), &ArenaHandle::from_bytes(*handle), bytes);
            (rank != own_rank).then(open).transpose()
        };
        let handles = words::of_all_ranks(comm, shown.to_bytes())?;
        let opened = handles.iter().enumerate().map(of_rank).collect::<scout_device::Result<Vec<_>>>();
        Ok(OfOthers { arenas: exchange::all_can(comm, WAY, opened)? })
    }

    pub fn of(&self, rank: usize) -> &PeerArena {
        self.arenas[rank].as_ref().expect("only others are asked for")
    }
}

/// Every rank has a flag for every other on each of `N` lines, which that other raises.
pub(super) struct Lines<const N: usize> {
    own: Flags,
    theirs: OfOthers,
    mesh: Mesh,
}

impl<const N: usize> Lines<N> {
    /// All ranks fail where one does.
    pub fn between(device: &Arc<CudaDevice>, comm: &dyn Communicator) -> Result<Lines<N>> {
        let mesh = comm.mesh();
        let shown = Flags::new(device, N * mesh.size()).and_then(|own| Ok((own.handle()?, own)));
        let (handle, own) = exchange::all_can(comm, WAY, shown)?;
        let theirs = OfOthers::open(device, (handle, own.bytes()), comm)?;
        Ok(Lines { own, theirs, mesh })
    }

    /// Queues on `stream` that this rank's flag at `rank` becomes `round`: whoever waits for it sees what was queued before.
    pub fn raise(&self, line: usize, rank: usize, round: u32, stream: &Arc<Stream>) -> Result<()> {
        Ok(self.theirs.of(rank).write_flag(self.index(line, self.mesh.rank().0), round, stream)?)
    }

    /// The same to every other rank.
    pub fn raise_to_all(&self, line: usize, round: u32, stream: &Arc<Stream>) -> Result<()> {
        rotation(self.mesh).try_for_each(|rank| self.raise(line, rank, round, stream))
    }

    /// Queues on `stream` a wait until every other rank has come to `round`.
    pub fn wait_for_all(&self, line: usize, round: u32, stream: &Arc<Stream>) -> Result<()> {
        rotation(self.mesh).try_for_each(|rank| Ok(self.own.wait_for(self.index(line, rank), round, stream)?))
    }

    fn index(&self, line: usize, rank: usize) -> usize {
        line * self.mesh.size() + rank
    }
}

/// The others in the order in which this rank turns to them: as all do, each is turned to by one other at a time, as long
/// as they begin together.
pub(super) fn rotation(mesh: Mesh) -> impl Iterator<Item = usize> {
    let (rank, size) = (mesh.rank().0, mesh.size());
    (1..size).map(move |step| (rank + step) % size)
}

/// The end of what ranks show each other. Every rank calls it, when all that it has queued, on `streams` and among arithmetic, will
/// come to an end. `unmap` gives up what is others', `free` what is this rank's own.
pub(super) fn part(
    (device, comm): (&CudaDevice, &dyn Communicator),
    streams: &[Arc<Stream>],
    unmap: impl FnOnce(),
    free: impl FnOnce(),
) -> Result<()> {
    device.finish()?;
    streams.iter().try_for_each(|stream| stream.finish(device.patience()))?;
    comm.barrier()?; // nobody writes or fetches any more
    unmap();
    comm.barrier()?; // nobody has mapped what is freed now
    free();
    Ok(())
}

/// Whether all ranks can show each other memory of their GPUs; every rank calls it. Where they cannot, units are gathered by
/// NCCL, and rows do not travel.
pub fn see_each_other(Ranks { device, comm }: Ranks) -> Result<bool> {
    match must_be_one_host(comm).and_then(|()| Lines::<1>::between(device, comm).map(drop)) {
        Ok(()) => Ok(true),
        Err(CommError::NoWay { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Fails on all ranks where they are on several hosts. A handle of another host may open something here all the same, so it
/// is never tried. All processes under one kernel read the same name of its run, whatever containers they are in.
pub(super) fn must_be_one_host(comm: &dyn Communicator) -> Result<()> {
    let own = host::boot_id().into_bytes();
    let all = words::of_any_length(comm, own.clone())?;
    exchange::all_can(
        comm,
        WAY,
        match all.iter().all(|other| *other == own) {
            true => Ok(()),
            false => Err(DeviceError::Value { what: "ranks", problem: "found on several hosts".to_string() }),
        },
    )
}

#[cfg(test)]
mod tests {
    use scout_core::Rank;

    use super::*;

    #[test]
    fn in_a_rotation_nobody_is_turned_to_by_two_at_a_time() {
        let of = |rank| rotation(Mesh::new(Rank(rank), 5).unwrap()).collect::<Vec<_>>();
        assert_eq!(of(3), [4, 0, 1, 2]);
        for step in 0..4 {
            let mut turned_to: Vec<usize> = (0..5).map(|rank| of(rank)[step]).collect();
            turned_to.sort_unstable();
            assert_eq!(turned_to, [0, 1, 2, 3, 4]);
        }
    }
}
