//! How fast a rank's weights are read, beside what the disk gives: the same bytes of the same files, read by as many
//! threads that do nothing else. All ranks read at the same time, as they do before training.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use scout_checkpoint::{AlignedBuffer, ModelFolder, RawFile};
use scout_comm::Job;
use scout_core::{ByteCount, Phase, Rank};
use scout_device::{Account, Device, Purpose};
use scout_shard::ShardPlan;

use crate::error::Result;
use crate::readers::{CHUNK, Progressed, Readers, with_signs_of_life};
use crate::sums::sum_over_ranks;
use crate::{gpu_weights, load};

/// The disk is measured for so long: its rate is known by then.
const DISK_LIMIT: Duration = Duration::from_secs(20);

/// Bytes that all ranks read together, and how long the slowest took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub bytes: ByteCount,
    pub took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadRates {
    pub load: Rate,
    /// Before and after: storage behind the disk may remember what was read.
    pub disk: [Rate; 2],
    /// Whether the disk could be read past the system's memory, on every rank.
    pub is_direct: bool,
}

impl Rate {
    pub fn gigabytes_per_second(self) -> f64 {
        // A clock may not notice the reading of a toy.
        self.bytes.as_f64() / self.took.as_secs_f64().max(1e-9) / 1e9
    }
}

impl LoadRates {
    pub fn disk_gigabytes_per_second(&self) -> f64 {
        self.disk.map(Rate::gigabytes_per_second).into_iter().fold(0.0, f64::max)
    }

    /// Loading as a share of what the disk gives.
    pub fn ratio(&self) -> f64 {
        self.load.gigabytes_per_second() / self.disk_gigabytes_per_second()
    }
}

/// Reads what this rank keeps of the model in `folder` to where it is kept, and forgets it. Each rank must call it; `tell`
/// hears of the reading of this one.
pub fn measure(
    folder: &Path,
    plan: &ShardPlan,
    (device, num_readers): (&Device, usize),
    job: &Job,
    tell: &mut dyn FnMut(Progressed),
) -> Result<LoadRates> {
    job.whereabouts.enter(Phase::Load);
    let (files, rank) = (&ModelFolder::open(folder)?, job.mesh().rank());
    let disk = Disk::of(files, plan, rank)?;
    let read_disk = || disk.read(&mut Readers::new(num_readers));
    files.leave_the_page_cache()?;
    let before = timed(job, read_disk)?;
    files.leave_the_page_cache()?;
    // Held until the time is taken: giving back so much memory takes time of its own.
    let (mut on_host, mut on_gpu) = (None, None);
    let load = timed(job, || {
        let mut readers = Readers::new(num_readers).telling(with_signs_of_life(&job.whereabouts, tell));
        match device {
            Device::Cpu => on_host = Some(load::weights_by(files, plan, rank, &Account::new(None), &mut readers)?),
            Device::Cuda(gpu) => {
                let arena = gpu.arena("weights", Purpose::Shard, gpu_weights::bytes(plan), gpu.compute())?;
                on_gpu = Some(gpu_weights::read(files, plan, rank, (gpu, &arena), &mut readers)?);
            }
        }
        Ok(readers.done())
    })?;
    drop((on_host, on_gpu));
    files.leave_the_page_cache()?;
    let after = timed(job, read_disk)?;
    let [num_indirect] = sum_over_ranks(&*job.comm, [f64::from(u8::from(!disk.is_direct()))])?;
    Ok(LoadRates { load, disk: [before, after], is_direct: num_indirect == 0.0 })
}

/// From when the first rank begins until the last one is done.
fn timed(job: &Job, read: impl FnOnce() -> Result<ByteCount>) -> Result<Rate> {
    job.comm.barrier()?;
    let begun = Instant::now();
    let bytes = read()?;
    job.comm.barrier()?;
    let took = begun.elapsed();
    let [bytes] = sum_over_ranks(&*job.comm, [bytes.as_f64()])?;
    Ok(Rate { bytes: ByteCount(bytes as u64), took })
}

/// What a rank keeps, as places of files.
struct Disk {
    files: Vec<RawFile>,
    blocks: Vec<Block>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    file_index: usize,
    start: u64,
    len: usize,
}

impl Disk {
    fn of(files: &ModelFolder, plan: &ShardPlan, rank: Rank) -> Result<Disk> {
        let (mut opened, mut index_of) = (Vec::new(), HashMap::new());
        let mut blocks = Vec::new();
        for (path, run) in runs(files, plan, rank)? {
            let file_index = match index_of.get(path) {
                Some(&index) => index,
                None => {
                    opened.push(RawFile::open(path)?);
                    index_of.insert(path, opened.len() - 1);
                    opened.len() - 1
                }
            };
            blocks.extend(blocks_of(run).map(|(start, len)| Block { file_index, start, len }));
        }
        Ok(Disk { files: opened, blocks })
    }

    fn is_direct(&self) -> bool {
        self.files.iter().all(RawFile::is_direct)
    }

    /// Reads every block, or as many as can be read in time.
    fn read(&self, readers: &mut Readers) -> Result<ByteCount> {
        let begun = Instant::now();
        let in_all: ByteCount = self.blocks.iter().map(|block| ByteCount(block.len as u64)).sum();
        let room = self.blocks.iter().map(|block| block.len).max().unwrap_or(0);
        readers.begin(in_all);
        readers.share_out(in_all, self.blocks.clone(), |jobs| {
            let mut buffer = AlignedBuffer::zeros(room);
            while let Some(Block { file_index, start, len }) = jobs.next() {
                let found = self.files[file_index].read(start, len, &mut buffer)?;
                jobs.did(ByteCount(found as u64));
                if begun.elapsed() > DISK_LIMIT {
                    break;
                }
            }
            Ok(())
        })?;
        Ok(readers.done())
    }
}

/// Runs of bytes that hold what `rank` keeps. Parameters that follow each other in a file are one run.
fn runs<'a>(files: &'a ModelFolder, plan: &ShardPlan, rank: Rank) -> Result<Vec<(&'a Path, Range<u64>)>> {
    let mut runs: Vec<(&Path, Range<u64>)> = Vec::new();
    for unit in plan.units() {
        for (param, range) in load::pieces(&unit.spec, plan.kept(unit.spec.id, rank)) {
            let (path, place) = files.place(&param.name, range)?;
            match runs.last_mut() {
                Some((last_path, last)) if *last_path == path && last.end == place.start => last.end = place.end,
                _ => runs.push((path, place)),
            }
        }
    }
    Ok(runs)
}

/// Start and length of the whole blocks of a disk around a run.
fn blocks_of(run: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let alignment = RawFile::ALIGNMENT as u64;
    let (start, end) = (run.start / alignment * alignment, run.end.next_multiple_of(alignment));
    (start..end).step_by(CHUNK.0 as usize).map(move |start| (start, (end - start).min(CHUNK.0) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_blocks_of_a_disk_and_cover_a_run_once() {
        let alignment = RawFile::ALIGNMENT as u64;
        for run in [0..1, 5..alignment, alignment..2 * alignment, alignment - 1..alignment + 1, 100..3 * CHUNK.0 + 7] {
            let blocks: Vec<_> = blocks_of(run.clone()).collect();
            let mut next = run.start / alignment * alignment;
            for &(start, len) in &blocks {
                assert_eq!((start, start % alignment, len as u64 % alignment), (next, 0, 0), "{run:?}: {blocks:?}");
                assert!(len as u64 <= CHUNK.0, "{run:?}: {blocks:?}");
                next += len as u64;
            }
            assert!((run.end..run.end + alignment).contains(&next), "{run:?}: {blocks:?}");
        }
    }
}
