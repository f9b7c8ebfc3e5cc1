//! How fast a rank's weights are read, beside what the disk gives: the same bytes of the same files, read by as many
//! threads that do nothing else. All ranks read at the same time, as they do before training.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use scout_checkpoint::{AlignedBuffer, ModelFolder, RawFile};
use scout_comm::Job;
use scout_core::{ByteCount, Mesh, Phase};
use scout_device::{Account, Device, Purpose};
use scout_shard::{Placement, ShardPlan};

use crate::error::Result;
use crate::readers::{CHUNK, Progressed, Readers, with_signs_of_life};
use crate::sums::sum_over_ranks;
use crate::{gpu_weights, load};

/// The disk is measured for so long: its rate is known by then.
const DISK_LIMIT: Duration = Duration::from_secs(20);

/// Bytes that all ranks read together, each counted once, and how long the slowest took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub bytes: ByteCount,
    pub took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadRates {
    pub load: Rate,
    /// Read beside these by ranks that keep what another one keeps too: the system's memory has it by then, or the disk
    /// has to give it but once.
    pub repeated: ByteCount,
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
    let disk = Disk::of(files, plan, job.mesh())?;
    let read_disk = || disk.read(&mut Readers::new(num_readers));
    files.leave_the_page_cache()?;
    let before = timed(job, read_disk)?;
    files.leave_the_page_cache()?;
    // Held until the time is taken: giving back so much memory takes time of its own.
    let (mut on_host, mut on_gpu) = (None, None);
    let all = timed(job, || {
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
    let load = Rate { bytes: distinct(files, plan)?, ..all };
    let repeated = ByteCount(all.bytes.0.saturating_sub(load.bytes.0));
    Ok(LoadRates { load, repeated, disk: [before, after], is_direct: num_indirect == 0.0 })
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

/// Of what any rank keeps, which is the whole model.
fn distinct(files: &ModelFolder, plan: &ShardPlan) -> Result<ByteCount> {
    let params = plan.units().iter().flat_map(|unit| &unit.spec.params);
    let bytes = params.map(|param| Ok(files.stored_bytes(&param.name, param.num_elements())?));
    bytes.sum()
}

/// What a rank reads of what all of them keep, as places of files. Together they read nothing twice.
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
    fn of(files: &ModelFolder, plan: &ShardPlan, mesh: Mesh) -> Result<Disk> {
        let (mut opened, mut index_of) = (Vec::new(), HashMap::new());
        let mut blocks = Vec::new();
        for (path, run) in runs(files, plan, mesh)? {
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

/// Runs of bytes that hold what this rank keeps and its share of what all of them keep. Parameters that follow each other in
/// a file are one run.
fn runs<'a>(files: &'a ModelFolder, plan: &ShardPlan, mesh: Mesh) -> Result<Vec<(&'a Path, Range<u64>)>> {
    let mut runs: Vec<(&Path, Range<u64>)> = Vec::new();
    for unit in plan.units() {
        let read = match unit.placement {
            Placement::Sharded | Placement::OwnExperts => plan.kept(unit.spec.id, mesh.rank()),
            Placement::Resident => share(unit.spec.num_elements(), mesh),
        };
        for (param, range) in load::pieces(&unit.spec, read) {
            let (path, place) = files.place(&param.name, range)?;
            match runs.last_mut() {
                Some((last_path, last)) if *last_path == path && last.end == place.start => last.end = place.end,
                _ => runs.push((path, place)),
            }
        }
    }
    Ok(runs)
}

/// One of as many even parts as there are ranks.
fn share(num_elements: usize, mesh: Mesh) -> Range<usize> {
    let part = num_elements.div_ceil(mesh.size());
    let cut = |rank: usize| (rank * part).min(num_elements);
    cut(mesh.rank().0)..cut(mesh.rank().0 + 1)
}

/// Start and length of the whole blocks of a disk around a run.
fn blocks_of(run: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let alignment = RawFile::ALIGNMENT as u64;
    let (start, end) = (run.start / alignment * alignment, run.end.next_multiple_of(alignment));
    (start..end).step_by(CHUNK.0 as usize).map(move |start| (start, (end - start).min(CHUNK.0) as usize))
}

#[cfg(test)]
mod tests {
    use scout_core::{DType, Rank};
    use scout_model::{NameStyle, UnitPlan};
    use scout_shard::{all_resident, none_resident};

    use super::*;
    use crate::synth::{SynthRequest, SynthShape, config, write_folder};

    #[test]
    fn together_ranks_read_the_disk_once_however_many_keep_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let request = SynthRequest { shape: SynthShape::Tiny, num_layers: Some(1), dtype: DType::F32, seed: 3 };
        write_folder(folder.path(), &request).unwrap();
        let files = ModelFolder::open(folder.path()).unwrap();
        let units = UnitPlan::new(&config(SynthShape::Tiny, Some(1)), NameStyle::of_names(files.names()));
        for is_resident in [all_resident, none_resident] {
            let plan = ShardPlan::new(units.units(), 3, &is_resident, 0);
            let of_rank = |rank| runs(&files, &plan, Mesh::new(Rank(rank), 3).unwrap()).unwrap();
            let mut all: Vec<(&Path, Range<u64>)> = (0..3).flat_map(of_rank).collect();
            all.sort_by_key(|(path, run)| (path.to_path_buf(), run.start));
            assert!(all.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].1.end <= pair[1].1.start), "{all:?}");
            let bytes: u64 = all.iter().map(|(_, run)| run.end - run.start).sum();
            assert_eq!(ByteCount(bytes), distinct(&files, &plan).unwrap());
        }
    }

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
