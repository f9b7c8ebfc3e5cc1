//! Where units become whole on a GPU: one arena, whose blocks are written by gathers and read by kernels in turns. How large
//! it must be is found by walking the schedule with numbers alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_comm::Communicator;
use scout_comm::gpu::{Arriving, OpenWay, Way};
use scout_core::ByteCount;
use scout_device::Tensor;
use scout_device::cuda::{Arena, CudaDevice, Event, FreeList};

use crate::error::{Result, ShardError};
use crate::plan::{Schedule, ShardPlan};

/// The home of its memory is the stream of the gathers: a block that is dropped while kernels still read it leaves an event,
/// for which the next gather waits. So nothing but order on the GPU gives memory back, and the host never stops.
pub struct Ring {
    device: Arc<CudaDevice>,
    opened: OpenWay,
    waits: Mutex<Waits>,
}

/// How long arithmetic stood still for units.
#[derive(Default)]
struct Waits {
    /// Where it came to a unit and where it could go on, since the last question.
    open: VecDeque<(Event, Event)>,
    before: Duration,
}

impl Ring {
    pub fn new(device: &Arc<CudaDevice>, opened: OpenWay) -> Ring {
        Ring { device: device.clone(), opened, waits: Mutex::default() }
    }

    pub fn way(&self) -> Way {
        self.opened.way()
    }

    /// The end of all gathering; every rank calls it. Without it the memory stays until the process ends.
    pub fn leave(self, comm: &dyn Communicator) -> Result<()> {
        self.opened.leave(comm).map_err(|cause| ShardError::Queue { cause: Box::new(cause) })
    }

    /// Queues the gather of the unit `name`, of which `part` is this rank's.
    pub(crate) fn start(&self, name: &str, part: &Tensor) -> Result<Arriving> {
        let queued = self.device.communicate(self.opened.stream(), || name.to_string(), || self.opened.gather(part));
        queued.map_err(|cause| ShardError::Queue { cause: Box::new(cause) })
    }

    /// Lets arithmetic wait for a unit; the host goes on.
    pub(crate) fn finish(&self, arriving: Arriving) -> Result<Tensor> {
        let compute = self.device.compute();
        let before = compute.record_time()?;
        let wait = || arriving.arrived.iter().try_for_each(|event| compute.wait_for(event));
        self.device.communicate(compute, || "waiting for units".to_string(), wait)?;
        let after = compute.record_time()?;
        let mut waits = self.waits.lock().expect("no holder of this lock panics");
        waits.open.push_back((before, after));
        // Few stay open: those that the GPU has not come to yet.
        while let Some((before, after)) = waits.open.front()
            && after.is_past()?
        {
            let waited = after.since(before)?;
            waits.before += waited;
            waits.open.pop_front();
        }
        Ok(arriving.full.into_tensor())
    }

    /// How long arithmetic has stood still for units. Stops the host until it is done with all that were handed out.
    pub fn waited(&self) -> Result<Duration> {
        let mut waits = self.waits.lock().expect("no holder of this lock panics");
        for (before, after) in std::mem::take(&mut waits.open) {
            after.wait(self.device.patience())?;
            waits.before += after.since(&before)?;
        }
        Ok(waits.before)
    }
}

/// Bytes of an arena in which the gathers of any of `passes` find room. More than the most that is whole at one time, where
/// units of different sizes leave gaps.
pub fn ring_bytes(plan: &ShardPlan, passes: &[&Schedule]) -> ByteCount {
    let least = passes.iter().map(|schedule| plan.gathered_peak(schedule).0 as usize).max().unwrap_or(0);
    let step = (least / 64).next_multiple_of(Arena::GRAIN).max(Arena::GRAIN);
    let mut bytes = least.next_multiple_of(Arena::GRAIN);
    // It ends: where every unit of a pass has room beside all others, nothing has to be given back.
    while bytes > 0 && !passes.iter().all(|schedule| has_room(plan, schedule, bytes)) {
        bytes += step;
    }
    ByteCount(bytes as u64)
}

/// Whether a pass finds room for every unit. Takes and gives what a walk takes and gives, in its order.
fn has_room(plan: &ShardPlan, schedule: &Schedule, bytes: usize) -> bool {
    let order = schedule.order();
    let mut free: FreeList<()> = FreeList::new(bytes);
    // By place in the order.
    let mut whole: Vec<Option<(usize, usize)>> = Vec::with_capacity(order.len());
    for block in schedule.steps() {
        let (begun, ahead) = (whole.len(), plan.ahead_of(schedule, block.clone()));
        for (at, &unit) in order.iter().enumerate().take(ahead).skip(begun) {
            if !plan.is_gathered(schedule, at, block.start) {
                whole.push(None);
                continue;
            }
            let len = (plan.dtype().size() * plan.gathered_len(unit) as u64).0 as usize;
            let len = len.next_multiple_of(Arena::GRAIN);
            let Some(taken) = free.take(len) else { return false };
            whole.push(Some((taken.start, len)));
        }
        for at in block {
            let Some((start, len)) = whole[at].take() else { continue };
            match schedule.used_after(at) {
                Some(after) if after < whole.len() => whole[after] = Some((start, len)),
                _ => free.give(start, len, Vec::new()),
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use scout_core::{DType, ParamSpec, UnitId, UnitSpec};

    use super::*;
    use crate::plan::none_resident;

    fn plan(lens: &[usize], lookahead: usize) -> ShardPlan {
        let unit = |(index, &len): (usize, &usize)| {
            let params = vec![ParamSpec::new("p", [len])];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        let units: Vec<_> = lens.iter().enumerate().map(unit).collect();
        ShardPlan::new(&units, 2, &none_resident, lookahead)
    }

    fn schedule(blocks: &[&[usize]]) -> Schedule {
        let mut schedule = Schedule::default();
        for units in blocks {
            schedule.push(&units.iter().map(|&unit| UnitId(unit)).collect::<Vec<_>>());
        }
        schedule
    }

    #[test]
    fn a_ring_has_room_for_every_unit_and_little_more() {
        // Blocks of one small and of three larger units, there and back, as a layer's are.
        let plan = plan(&[128 * 2, 128 * 4, 128 * 43, 128 * 21], 4);
        let (forward, back) = ([&[0][..], &[1, 2, 3]], [&[3, 2, 1][..], &[0]]);
        let blocks: Vec<&[usize]> =
            std::iter::repeat_n(forward, 6).chain(std::iter::repeat_n(back, 6)).flatten().collect();
        let schedule = schedule(&blocks);
        let (bytes, most) = (ring_bytes(&plan, &[&schedule]), plan.gathered_peak(&schedule));
        assert!(has_room(&plan, &schedule, bytes.0 as usize));
        assert!(!has_room(&plan, &schedule, most.0 as usize - Arena::GRAIN));
        assert!(most <= bytes && bytes.0 <= most.0 * 3 / 2, "{bytes} for {most}");
    }

    #[test]
    fn gaps_that_nothing_fits_into_are_counted() {
        // Units of one, two and two grains, one ahead. At most the last two are whole, four grains. In four of them the first
        // unit lies in grain 0, the second in 1 and 2, and when the third comes, 0 and 3 are free, which do not touch. In
        // five of them it finds 3 and 4.
        let grain = Arena::GRAIN / DType::F32.size().0 as usize;
        let plan = plan(&[grain, 2 * grain, 2 * grain], 1);
        let schedule = schedule(&[&[0], &[1], &[2]]);
        let (bytes, most) = (ring_bytes(&plan, &[&schedule]).0 as usize, plan.gathered_peak(&schedule).0 as usize);
        assert_eq!(most, 4 * Arena::GRAIN);
        assert!(!has_room(&plan, &schedule, most));
        assert_eq!(bytes, 5 * Arena::GRAIN);
        assert!(has_room(&plan, &schedule, bytes));
    }

    #[test]
    fn a_plan_without_sharded_units_needs_no_ring() {
        let specs: Vec<_> = plan(&[100, 7], 2).units().iter().map(|unit| unit.spec.clone()).collect();
        let plan = ShardPlan::new(&specs, 2, &|_| true, 2);
        assert_eq!(ring_bytes(&plan, &[&schedule(&[&[0], &[1]])]), ByteCount(0));
    }
}
