//! Which way units are gathered: the fastest of those that a configuration means and that work here, found by gathering.

use scout_core::{ByteCount, DType};
use scout_device::cuda::DeviceBuffer;
use scout_device::{DeviceError, Purpose, Tensor};

use super::exchange;
use super::open_way::OpenWay;
use super::ways::{Ranks, Way};
use crate::error::{CommError, Result};

/// What a configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Whatever works and is fastest for a step.
    Auto,
    Copy,
    Nccl,
}

/// The way that was chosen and what was found on the way to it.
pub struct Chosen {
    pub way: Way,
    /// For people: each way that was tried with its rate, and why others were not.
    pub said: Vec<String>,
}

/// Gathers of each way that are timed, after one that is not.
const TIMED: usize = 3;

impl Wish {
    /// Ways that it allows, among so many ranks.
    pub fn ways(self, world_size: usize) -> Vec<Way> {
        // Two ranks are always in step: each has one other to turn to.
        let copying: &[Way] = match world_size {
            ..=2 => &[Way::Push, Way::Pull],
            _ => &[Way::Push, Way::Pull, Way::PullInStep],
        };
        let by_nccl = [Way::NcclByCopy, Way::Nccl];
        match self {
            Wish::Auto => [copying, &by_nccl].concat(),
            Wish::Copy => copying.to_vec(),
            Wish::Nccl => by_nccl.to_vec(),
        }
    }
}

/// Chooses on all ranks alike, by gathering a unit of which each rank keeps `part`, in memory that is given back.
pub fn choose(wish: Wish, ranks: Ranks, part: ByteCount) -> Result<Chosen> {
    let world_size = ranks.comm.mesh().size();
    let remote = part.as_f64() * (world_size - 1) as f64;
    let (mut tried, mut said): (Vec<(Way, f64)>, Vec<String>) = (Vec::new(), Vec::new());
    for way in wish.ways(world_size) {
        match time_on_all(way, ranks, part) {
            Ok(seconds) => {
                said.push(format!("gather by {way}: {:.0} GB/s into each GPU", remote / seconds / 1e9));
                tried.push((way, seconds));
            }
            Err(CommError::NoWay { reason, .. }) => said.push(format!("gather by {way}: not here, {reason}")),
            Err(error) => return Err(error),
        }
    }
    let Some(way) = best_under_products(&tried, world_size) else {
        return Err(CommError::NoWay { way: "any way that `gather` allows", reason: said.join("; ") });
    };
    said.push(format!("units are gathered by {way}"));
    Ok(Chosen { way, said })
}

/// Ways are timed alone, and will be used under products.
fn best_under_products(tried: &[(Way, f64)], world_size: usize) -> Option<Way> {
    // Gathers mostly hide behind arithmetic: a second that arithmetic loses weighs more than one of theirs.
    const LOST: f64 = 2.0;
    let weighed = |&(way, seconds): &(Way, f64)| {
        let UnderProducts { keeps, takes } = under_products(way, world_size);
        seconds / keeps * (1.0 + LOST * takes)
    };
    tried.iter().min_by(|a, b| weighed(a).total_cmp(&weighed(b))).map(|(way, _)| *way)
}

/// A way of gathering while products run without pause.
struct UnderProducts {
    /// Of its own speed.
    keeps: f64,
    /// Of the products' speed.
    takes: f64,
}

/// As `bench gather` found between two H200: from 384 to 370 GB/s, 344 to 350, 326 to 148, 272 to 156. What copy engines take
/// is mostly the copy of the own part: an eighth among eight, so that all of their ways take alike there. A trial begins all
/// gathers together; ranks that pull when they like drift apart later, and among four, in another program, halved each
/// other's speed.
fn under_products(way: Way, world_size: usize) -> UnderProducts {
    match (way, world_size) {
        (Way::Push, ..=2) => UnderProducts { keeps: 0.96, takes: 0.19 },
        (Way::Pull | Way::PullInStep, ..=2) => UnderProducts { keeps: 1.0, takes: 0.17 },
        (Way::Push, _) => UnderProducts { keeps: 0.96, takes: 0.1 },
        (Way::Pull, _) => UnderProducts { keeps: 0.6, takes: 0.1 },
        (Way::PullInStep, _) => UnderProducts { keeps: 1.0, takes: 0.1 },
        (Way::NcclByCopy, _) => UnderProducts { keeps: 0.45, takes: 0.07 },
        (Way::Nccl, _) => UnderProducts { keeps: 0.57, takes: 0.15 },
    }
}

/// Seconds of a gather on the slowest rank.
fn time_on_all(way: Way, ranks: Ranks, part: ByteCount) -> Result<f64> {
    let Ranks { device, comm } = ranks;
    let room = |bytes: u64| ByteCount(bytes.next_multiple_of(scout_device::cuda::Arena::GRAIN as u64));
    let ring = room(part.0 * comm.mesh().size() as u64);
    let memory = way.memory(ranks, room(part.0), ring)?;
    let own = (|| {
        let block = memory.parts.take(Purpose::Shard, part.0 as usize)?;
        let mut own = DeviceBuffer::new(device, block, DType::U8, [part.0 as usize])?;
        own.clear()?;
        device.finish()?;
        Ok::<Tensor, DeviceError>(own.into_tensor())
    })();
    let own = exchange::must_agree(comm, own)?;
    let opened = OpenWay::open(way, ranks, memory)?;
    let seconds = match time(&opened, &own, ranks) {
        Err(error @ CommError::NoWay { .. }) => {
            // Other ways need this stream and this memory: where they do not become free, there is no other way.
            exchange::must_agree(comm, opened.stream().finish(device.patience()))?;
            Err(error)
        }
        seconds => Ok(seconds?),
    };
    drop(own);
    opened.leave(comm)?;
    seconds
}

/// Seconds of one gather on the slowest rank. A way that fails on one rank is none for any of them.
fn time(gather: &OpenWay, part: &Tensor, Ranks { device, comm }: Ranks) -> Result<f64> {
    const WAY: &str = "what was tried";
    let once = || -> Result<()> {
        let arrived = gather.gather(part)?.arrived;
        Ok(arrived.iter().try_for_each(|event| gather.stream().wait_for(event))?)
    };
    let first = once().and_then(|()| Ok(gather.stream().finish(device.patience())?));
    exchange::all_can(comm, WAY, first)?; // and all begin together, so that nobody times the others' start
    let timed = || -> Result<f64> {
        let begun = gather.stream().record_time()?;
        for _ in 0..TIMED {
            once()?;
        }
        let done = gather.stream().record_time()?;
        done.wait(device.patience())?;
        Ok(done.since(&begun)?.as_secs_f64() / TIMED as f64)
    };
    exchange::largest(comm, exchange::all_can(comm, WAY, timed())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn among_eight_free_pulls_must_be_much_faster_in_a_trial_than_what_does_not_drift() {
        let (push, pull, step) = (Way::Push, Way::Pull, Way::PullInStep);
        for (gigabytes_a_second, expected) in [
            ([(push, 372.0), (pull, 363.0), (step, 330.0)], push),
            ([(push, 300.0), (pull, 363.0), (step, 340.0)], step),
            ([(push, 190.0), (pull, 363.0), (step, 190.0)], pull),
        ] {
            let tried = gigabytes_a_second.map(|(way, rate)| (way, 1.0 / rate));
            assert_eq!(best_under_products(&tried, 8), Some(expected), "{gigabytes_a_second:?}");
        }
    }

    #[test]
    fn what_is_fastest_alone_must_be_much_faster_where_it_loses_or_takes_most_under_products() {
        let (push, pull, step, windows, kernels) = (Way::Push, Way::Pull, Way::PullInStep, Way::NcclByCopy, Way::Nccl);
        for (tried, expected) in [
            // Two H200: seconds for the same bytes.
            (
                vec![(push, 1.0 / 384.0), (pull, 1.0 / 344.0), (windows, 1.0 / 326.0), (kernels, 1.0 / 272.0)],
                Some(push),
            ),
            (vec![(windows, 1.0 / 326.0), (kernels, 1.0 / 272.0)], Some(windows)),
            (vec![(pull, 1.0 / 344.0), (windows, 1.0 / 326.0), (kernels, 1.0 / 272.0)], Some(pull)),
            (vec![(pull, 2.0), (step, 1.1), (kernels, 1.0)], Some(step)),
            (vec![(pull, 2.0), (kernels, 1.0)], Some(kernels)),
            (vec![(pull, 4.0), (windows, 1.0), (kernels, 0.7)], Some(kernels)),
            (vec![(kernels, 9.0)], Some(kernels)),
            (vec![], None),
        ] {
            assert_eq!(best_under_products(&tried, 2), expected, "{tried:?}");
        }
    }

    #[test]
    fn a_wish_for_one_kind_never_tries_the_other() {
        assert_eq!(Wish::Copy.ways(2), [Way::Push, Way::Pull]);
        assert_eq!(Wish::Copy.ways(8), [Way::Push, Way::Pull, Way::PullInStep]);
        assert_eq!(Wish::Nccl.ways(8), [Way::NcclByCopy, Way::Nccl]);
        assert_eq!(Wish::Auto.ways(2), [Way::Push, Way::Pull, Way::NcclByCopy, Way::Nccl]);
    }
}
