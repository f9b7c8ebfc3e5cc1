//! Which way units are gathered: the fastest of those that a configuration means and that work here, found by gathering.

use std::time::Duration;

use scout_core::{ByteCount, DType};
use scout_device::cuda::DeviceBuffer;
use scout_device::{DeviceError, Purpose, Tensor};

use super::exchange;
use super::gather::Part;
use super::open_way::OpenWay;
use super::ways::{GatherWay, Ranks};
use crate::communicator::Communicator;
use crate::error::{CommError, Result};

/// A unit to try ways with: the largest that steps gather.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Of each rank.
    pub part: ByteCount,
    /// As in [`Part`].
    pub stays: bool,
}

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
    pub way: GatherWay,
    /// For people: each way that was tried with its rate, and why others were not.
    pub said: Vec<String>,
}

/// Gathers of each way that are timed, after one that is not.
const TIMED: usize = 3;
/// A gather takes milliseconds: what has not come by then never comes, and the job is not to wait for it as for a step.
const AT_MOST: Duration = Duration::from_secs(30);

impl Wish {
    /// Ways that it allows.
    pub fn ways(self) -> &'static [GatherWay] {
        match self {
            Wish::Auto => &[GatherWay::Push, GatherWay::Pull, GatherWay::NcclByCopy, GatherWay::Nccl],
            Wish::Copy => &[GatherWay::Push, GatherWay::Pull],
            Wish::Nccl => &[GatherWay::NcclByCopy, GatherWay::Nccl],
        }
    }
}

/// Chooses on all ranks alike, by gathering `sample` in memory that is given back. `exposed` is the share of a step in which
/// arithmetic will only wait for units, as far as that is known.
pub fn choose(wish: Wish, ranks: Ranks, sample: Sample, exposed: f64) -> Result<Chosen> {
    let world_size = ranks.comm.mesh().size();
    let remote = sample.part.as_f64() * (world_size - 1) as f64;
    let (mut tried, mut said): (Vec<(GatherWay, f64)>, Vec<String>) = (Vec::new(), Vec::new());
    for &way in wish.ways() {
        match time_on_all(way, ranks, sample) {
            Ok(seconds) => {
                said.push(format!("gather by {way}: {:.0} GB/s into each GPU", remote / seconds / 1e9));
                tried.push((way, seconds));
            }
            Err(CommError::NoWay { reason, .. }) => said.push(format!("gather by {way}: not here, {reason}")),
            Err(error) => return Err(error),
        }
    }
    let Some(way) = best_under_products(&tried, (world_size, exposed)) else {
        return Err(CommError::NoWay { way: "any way that `gather` allows", reason: said.join("; ") });
    };
    said.push(format!("units are gathered by {way}"));
    Ok(Chosen { way, said })
}

/// Ways are timed alone, and will be used under products: a gather costs a step what products lose by it, and of its own
/// time the share for which nothing hides it.
fn best_under_products(tried: &[(GatherWay, f64)], (world_size, exposed): (usize, f64)) -> Option<GatherWay> {
    let cost = |&(way, seconds): &(GatherWay, f64)| {
        let measured = way.measured(world_size);
        let seconds_under_products = seconds * measured.alone / measured.under_products;
        seconds_under_products * (exposed.max(measured.never_hidden) + measured.slowdown())
    };
    tried.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).map(|(way, _)| *way)
}

/// Seconds of a gather on the slowest rank.
fn time_on_all(way: GatherWay, ranks: Ranks, Sample { part, stays }: Sample) -> Result<f64> {
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
    let stays = stays && way.brings_others_alone();
    let seconds = match time(&opened, Part { tensor: &own, stays }, comm) {
        Err(error @ CommError::NoWay { .. }) => {
            // Other ways need this stream and this memory: where they do not become free, there is no other way.
            exchange::must_agree(comm, opened.stream().finish(AT_MOST))?;
            Err(error)
        }
        seconds => Ok(seconds?),
    };
    drop(own);
    opened.leave(comm)?;
    seconds
}

/// Seconds of one gather on the slowest rank. A way that fails on one rank is none for any of them.
fn time(gather: &OpenWay, part: Part, comm: &dyn Communicator) -> Result<f64> {
    const WAY: &str = "what was tried";
    let once = || -> Result<()> { Ok(gather.gather(part, 0)?.wait_on(gather.stream()).map(drop)?) };
    let first = once().and_then(|()| Ok(gather.stream().finish(AT_MOST)?));
    exchange::all_can(comm, WAY, first)?; // and all begin together, so that nobody times the others' start
    let timed = || -> Result<f64> {
        let begun = gather.stream().record_time()?;
        for _ in 0..TIMED {
            once()?;
        }
        let done = gather.stream().record_time()?;
        done.wait(AT_MOST)?;
        Ok(done.since(&begun)?.as_secs_f64() / TIMED as f64)
    };
    exchange::largest(comm, exchange::all_can(comm, WAY, timed())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fastest_alone_must_be_much_faster_where_it_loses_or_takes_most_under_products() {
        let (push, pull, windows, kernels) = (GatherWay::Push, GatherWay::Pull, GatherWay::NcclByCopy, GatherWay::Nccl);
        // GB/s alone, of two H200 and of four.
        let two = [(push, 387.0), (pull, 370.0), (windows, 325.0), (kernels, 273.0)];
        let four = [(push, 383.0), (pull, 368.0), (windows, 362.0), (kernels, 332.0)];
        for (found, world_size, exposed, expected) in [
            (&two[..], 2, 0.15, Some(push)),
            (&two, 2, 0.0, Some(pull)),
            (&two[1..], 2, 0.15, Some(pull)),
            (&two[2..], 2, 0.0, Some(windows)),
            // A step that waits for units needs the faster link, another the way in which ranks wait less for each other: 1 and
            // 16 rows of Scout were faster so.
            (&four, 4, 0.15, Some(push)),
            (&four, 4, 0.05, Some(push)),
            (&four, 4, 0.0, Some(pull)),
            (&four[2..], 4, 0.0, Some(windows)),
            (&four[2..], 4, 0.5, Some(windows)),
            (&four[3..], 4, 0.0, Some(kernels)),
            (&[], 4, 0.0, None),
        ] {
            let tried: Vec<(GatherWay, f64)> = found.iter().map(|&(way, rate)| (way, 1.0 / rate)).collect();
            assert_eq!(best_under_products(&tried, (world_size, exposed)), expected, "{found:?}, {exposed} exposed");
        }
    }

    #[test]
    fn a_wish_for_one_kind_never_tries_the_other() {
        let [copy, nccl] = [Wish::Copy.ways(), Wish::Nccl.ways()];
        assert!(copy.iter().all(|way| !nccl.contains(way)));
        assert_eq!(Wish::Auto.ways(), [copy, nccl].concat());
    }
}
