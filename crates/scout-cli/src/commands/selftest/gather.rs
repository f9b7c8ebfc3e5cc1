//! `selftest gather`: units become whole on every rank by each way of gathering, and every word that was brought there is
//! looked at. Ranks may share GPUs here, so that two GPUs are enough for what eight ranks do to each other. Nothing is timed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use scout_comm::gpu::{Arriving, GatherWay, OpenWay, Part, Ranks, Wish};
use scout_comm::{CommError, Job, words};
use scout_core::{ByteCount, DType, ExitCode};
use scout_device::cuda::{Arena, CudaDevice, CudaOptions, DeviceBuffer};
use scout_device::{Purpose, Tensor};
use scout_train::TrainError;

use crate::commands::bench::meeting;
use crate::failure::Mistake;
use crate::joined::{INIT_TIMEOUT, Identity, Waits};
use crate::ranks::Seat;
use crate::surroundings::{self, print};

/// Words of a rank's part of each unit.
const PARTS: [usize; 7] = [1, 127, 128, 100_003, 1 << 18, 700_001, 3 << 19];
const WORKING_MEMORY: ByteCount = ByteCount(64 << 20);
/// Whole units that are held while others come in.
const HELD: usize = 3;

#[derive(clap::Args)]
pub struct Gather {
    /// Units that are gathered by each way
    #[arg(long, default_value_t = 200)]
    rounds: usize,
}

pub fn run(arguments: &Gather) -> anyhow::Result<ExitCode> {
    let mut config = [0; 32];
    config[..8].copy_from_slice(&(arguments.rounds as u64).to_le_bytes());
    let waits = Waits { init_timeout: INIT_TIMEOUT, hang_limit: None };
    let (ranks, joined) = meeting::meet_as(Identity { config, model: [0; 32] }, waits)?;
    if joined.job.mesh().size() == 1 {
        let message = "`selftest gather` checks what several ranks do together".to_string();
        let hint = Some("start several: scout-dist launch -n 8 selftest gather".to_string());
        return Err(Mistake { message, code: ExitCode::Usage, hint }.into());
    }
    joined.work(|job| check(arguments, (&ranks.seat, job)))
}

/// Runs on every rank; the first one tells.
fn check(arguments: &Gather, (seat, job): (&Seat, &Job)) -> anyhow::Result<ExitCode> {
    let world_size = job.mesh().size();
    let options = CudaOptions { working_memory: WORKING_MEMORY, ordinal: seat.gpu(), ..surroundings::cuda() };
    let device = CudaDevice::open(&options).map_err(TrainError::from)?;
    let tell = |line: String| if job.mesh().is_first() { print(&line) } else { Ok(()) };
    let on_one = seat.ranks_of_a_gpu();
    tell(format!("{device:?}, {world_size} ranks, {on_one} on a GPU, {} units by each way", arguments.rounds))?;
    let (mut num_checked, mut num_wrong) = (0, 0);
    for &way in Wish::Auto.ways() {
        match Units::new(way, Ranks { device: &device, comm: &*job.comm }) {
            Ok(units) => {
                let wrong = units.check(arguments.rounds, job)?;
                units.leave(job)?;
                tell(format!("{way}: {wrong} wrong words of all ranks"))?;
                (num_checked, num_wrong) = (num_checked + 1, num_wrong + wrong);
            }
            Err(TrainError::Comm(error @ CommError::NoWay { .. })) => tell(format!("{way}: {error}"))?,
            Err(error) => return Err(error.into()),
        }
    }
    // Nothing compared is nothing proved.
    Ok(if num_wrong > 0 || num_checked == 0 { ExitCode::CheckFailed } else { ExitCode::Success })
}

/// Whether own parts stay where they are, as those of experts do. Each unit's do in some rounds, since there is an odd number of
/// units.
fn stays(way: GatherWay, round: usize) -> bool {
    way.brings_others_alone() && round.is_multiple_of(2)
}

/// Bytes of an arena that so many words take.
fn bytes(num_words: usize) -> usize {
    (num_words * size_of::<u32>()).next_multiple_of(Arena::GRAIN)
}

/// Bytes of the ring that any unit fits into.
fn room(world_size: usize) -> usize {
    bytes(PARTS[PARTS.len() - 1] * world_size)
}

/// Word `index` of a rank's part of a unit.
fn word(unit: usize, rank: usize, index: usize) -> u32 {
    (index as u32).wrapping_mul(0x9e37_79b9) ^ ((unit as u32) << 28 | (rank as u32) << 20)
}

/// This rank's parts, room for units to become whole, and one way to it.
struct Units<'a> {
    device: &'a Arc<CudaDevice>,
    rank: usize,
    world_size: usize,
    parts: Vec<Tensor>,
    opened: OpenWay,
}

impl<'a> Units<'a> {
    /// Every rank calls it.
    fn new(way: GatherWay, ranks: Ranks<'a>) -> Result<Units<'a>, TrainError> {
        let Ranks { device, comm } = ranks;
        let mesh = comm.mesh();
        let all_parts: usize = PARTS.into_iter().map(bytes).sum();
        let ring = (HELD + 1) * room(mesh.size());
        let memory = way.memory(ranks, ByteCount(all_parts as u64), ByteCount(ring as u64))?;
        let part = |(unit, len): (usize, usize)| -> Result<Tensor, TrainError> {
            let block = memory.parts.take(Purpose::Shard, len * size_of::<u32>())?;
            let mut part = DeviceBuffer::new(device, block, DType::U32, [len])?;
            let own = (0..len).flat_map(|index| word(unit, mesh.rank().0, index).to_le_bytes());
            part.write_bytes(&own.collect::<Vec<u8>>())?;
            Ok(part.into_tensor())
        };
        let parts = PARTS.into_iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?;
        device.finish()?;
        let opened = OpenWay::open(way, ranks, memory)?;
        Ok(Units { device, rank: mesh.rank().0, world_size: mesh.size(), parts, opened })
    }

    /// The number of wrong words on all ranks. Every rank calls it.
    fn check(&self, num_rounds: usize, job: &Job) -> Result<u64, TrainError> {
        let (mut coming, mut wrong) = (VecDeque::new(), 0);
        for round in 0..num_rounds {
            // Ranks drift apart and come together again: whoever is early must wait, whoever is late must not be
            // written over.
            thread::sleep(Duration::from_micros(u64::from(word(0, job.mesh().rank().0, round) % 2000)));
            let unit = round * 3 % PARTS.len();
            let part = Part { tensor: &self.parts[unit], stays: stays(self.opened.way(), round) };
            coming.push_back((round, unit, self.opened.gather(part, self.place(round, unit))?));
            if coming.len() > HELD {
                wrong += coming.pop_front().map_or(Ok(0), |oldest| self.num_wrong(oldest))?;
            }
        }
        for left in coming {
            wrong += self.num_wrong(left)?;
        }
        Ok(words::of_all_ranks(&*job.comm, wrong.to_le_bytes())?.into_iter().map(u64::from_le_bytes).sum())
    }

    /// The byte of the ring where a unit becomes whole in this round: in the room of the one that was looked at last, most of
    /// them not where one lay before.
    fn place(&self, round: usize, unit: usize) -> usize {
        let room = room(self.world_size);
        let free = room - bytes(PARTS[unit] * self.world_size);
        round % (HELD + 1) * room + round * 997 % (free / Arena::GRAIN + 1) * Arena::GRAIN
    }

    /// Looks at a unit as arithmetic does: on its own stream, behind the events.
    fn num_wrong(&self, (round, unit, arriving): (usize, usize, Arriving)) -> Result<u64, TrainError> {
        let whole = arriving.wait_on(self.device.compute())?.to_host()?;
        let found = whole.u32s()?;
        // Without the own part the next rank's comes first.
        let (first, count) = match stays(self.opened.way(), round) {
            true => (self.rank + 1, self.world_size - 1),
            false => (0, self.world_size),
        };
        let wrong = found.chunks(PARTS[unit]).enumerate().map(|(place, part)| {
            let rank = (first + place) % self.world_size;
            part.iter().enumerate().filter(|&(index, &found)| found != word(unit, rank, index)).count() as u64
        });
        let lacks = (count * PARTS[unit]).abs_diff(found.len()) as u64;
        Ok(lacks + wrong.sum::<u64>())
    }

    /// Every rank calls it.
    fn leave(self, job: &Job) -> Result<(), TrainError> {
        Ok(self.opened.leave(&*job.comm)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ranks_or_units_give_the_same_words() {
        let first_words = |unit, rank| (0..PARTS[0]).map(|index| word(unit, rank, index)).collect::<Vec<_>>();
        let mut seen = std::collections::HashSet::new();
        for unit in 0..PARTS.len() {
            assert!((0..64).all(|rank| seen.insert(first_words(unit, rank))), "unit {unit}");
        }
    }
}
