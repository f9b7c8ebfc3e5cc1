//! What a rank keeps, from files to wherever a sink takes it: chunk by chunk through a few buffers, as the bytes that the
//! files hold wherever those are wanted. A buffer is read into while the one before it is still being taken.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;

use scout_checkpoint::{ModelFolder, TensorFile};
use scout_core::{ByteCount, DType, ParamSpec, Rank};
use scout_shard::ShardPlan;

use crate::error::Result;
use crate::load;
use crate::readers::{CHUNK, Jobs, MOST_READERS, Readers};

/// Of each reader: one is filled while the other is on its way.
const BUFFERS: usize = 2;

/// The host's memory that a rank reads through, at most.
const HOST_BYTES: ByteCount = ByteCount(MOST_READERS as u64 * (BUFFERS as u64 * CHUNK.0 + TensorFile::SCRATCH.0));
const _: () = assert!(HOST_BYTES.0 <= 2_000_000_000, "ranks of one host share its memory");

/// A run of a parameter's elements, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    pub param: &'a ParamSpec,
    pub range: Range<usize>,
    /// Place of the unit in the plan.
    pub unit_index: usize,
    /// Elements of what the rank keeps of that unit.
    pub to: Range<usize>,
}

/// Takes chunks to where they are kept. Chunks do not overlap and come in any order, from several threads.
pub(crate) trait Sink: Sync {
    /// Memory of the host that chunks are read into.
    type Buffer;
    /// A buffer whose chunk is on its way.
    type UnderWay;

    fn buffer(&self, bytes: usize) -> Result<Self::Buffer>;
    fn bytes_of<'b>(&self, buffer: &'b mut Self::Buffer) -> &'b mut [u8];
    /// Sends off the first bytes of `buffer`, as many as `chunk` takes.
    fn send(&self, buffer: Self::Buffer, chunk: &Chunk) -> Result<Self::UnderWay>;
    /// Gives the buffer back when its chunk has arrived. Has a deadline.
    fn wait(&self, under_way: Self::UnderWay) -> Result<Self::Buffer>;
}

/// Brings all that `rank` keeps to `sink`, as numbers of the plan's element type.
pub(crate) fn fill(
    files: &ModelFolder,
    (plan, rank): (&ShardPlan, Rank),
    sink: &impl Sink,
    readers: &mut Readers,
) -> Result<()> {
    let dtype = plan.dtype();
    let chunks = chunks(plan, rank, readers.chunk());
    let bytes = load::stored_bytes(files, plan, rank)?;
    let room = chunks.iter().map(|chunk| chunk.range.len()).max().unwrap_or(0) * element_bytes(dtype);
    readers.begin(bytes);
    readers.share_out(bytes, chunks, |jobs| read(files, jobs, (dtype, room), sink))
}

/// The work of one reader.
fn read<S: Sink>(files: &ModelFolder, jobs: &Jobs<Chunk>, (dtype, room): (DType, usize), sink: &S) -> Result<()> {
    let announced = || -> Result<Option<Chunk>> {
        let Some(chunk) = jobs.next() else { return Ok(None) };
        files.announce(&chunk.param.name, chunk.range.clone())?;
        Ok(Some(chunk))
    };
    let mut under_way: VecDeque<S::UnderWay> = VecDeque::with_capacity(BUFFERS);
    let mut next = announced()?;
    while let Some(chunk) = next {
        // The disk fetches it while this one is looked at and sent.
        next = announced()?;
        let oldest = if under_way.len() == BUFFERS { under_way.pop_front() } else { None };
        let mut buffer = match oldest {
            Some(oldest) => sink.wait(oldest)?,
            None => sink.buffer(room)?,
        };
        let bytes = &mut sink.bytes_of(&mut buffer)[..chunk.range.len() * element_bytes(dtype)];
        files.read_as(&chunk.param.name, chunk.range.clone(), dtype, bytes)?;
        under_way.push_back(sink.send(buffer, &chunk)?);
        jobs.did(files.stored_bytes(&chunk.param.name, chunk.range.len())?);
    }
    under_way.into_iter().try_for_each(|last| sink.wait(last).map(drop))
}

/// All that `rank` keeps, in pieces of at most `limit` bytes.
fn chunks(plan: &ShardPlan, rank: Rank, limit: ByteCount) -> Vec<Chunk<'_>> {
    let limit = (limit.0 as usize / element_bytes(plan.dtype())).max(1);
    let mut chunks = Vec::new();
    for (unit_index, unit) in plan.units().iter().enumerate() {
        let mut next = 0;
        for (param, range) in load::pieces(&unit.spec, plan.kept(unit.spec.id, rank)) {
            for range in load::parts(range, limit) {
                let to = next..next + range.len();
                next = to.end;
                chunks.push(Chunk { param, range, unit_index, to });
            }
        }
    }
    chunks
}

fn element_bytes(dtype: DType) -> usize {
    dtype.size().0 as usize
}
