//! One walk through the units of a pass, in the order of the schedule. A block's units become whole behind a guard;
//! the guard hands them out one by one, and what it hands out gives its memory back when the last reader is gone.

use std::collections::VecDeque;
use std::sync::Arc;

use scout_comm::gpu::{Arriving, Part};
use scout_comm::{Job, Pending};
use scout_core::{DType, Phase, UnitId};
use scout_device::{Account, Buffer, DeviceError, Lease, Purpose, Tensor, UnitSource, UnitWeights};

use crate::error::{Result, ShardError};
use crate::layout::RingLayout;
use crate::plan::{Schedule, ShardPlan};
use crate::ring::Ring;
use crate::store::{Kept, ShardStore};

/// A pass in progress. Every rank walks the same schedule, whatever its data, so that gathers meet.
pub struct Walk<'a> {
    plan: &'a ShardPlan,
    store: &'a ShardStore,
    job: &'a Job,
    account: &'a Account,
    schedule: &'a Schedule,
    /// Where units become whole on GPUs.
    layout: Option<&'a RingLayout>,
    // Invariant: `started` are exactly the units at places `next_taken..next_started` of the schedule, in this order.
    next_taken: usize,
    next_started: usize,
    started: VecDeque<Started>,
}

/// What a walk has begun for the next one of the same schedule.
#[derive(Default)]
pub struct Ahead(VecDeque<Started>);

/// A unit on its way.
enum Started {
    Whole {
        tensor: Tensor,
        lease: Option<Arc<Lease>>,
    },
    Gathering {
        pending: Pending,
        lease: Lease,
    },
    OnGpu(Arriving),
    /// It is started for a use before this one, which hands it on.
    Before,
}

impl<'a> Walk<'a> {
    pub fn new(
        plan: &'a ShardPlan,
        store: &'a ShardStore,
        job: &'a Job,
        account: &'a Account,
        schedule: &'a Schedule,
    ) -> Walk<'a> {
        let layout = store.ring().and_then(|ring| ring.layout(schedule));
        Walk { plan, store, job, account, schedule, layout, next_taken: 0, next_started: 0, started: VecDeque::new() }
    }

    /// A walk that has not begun yet goes on with what the one before it began.
    pub fn going_on_with(self, Ahead(started): Ahead) -> Walk<'a> {
        Walk { next_started: started.len(), started, ..self }
    }

    /// The end of a walk, all of whose units were taken.
    pub fn end(self) -> Ahead {
        assert_eq!(self.next_taken, self.schedule.len(), "a walk that goes on has not ended");
        Ahead(self.started)
    }

    /// Starts what is still missing of `units` and of those that come after them, and returns the guard that hands
    /// `units` out. Fails when the schedule does not go on with exactly these.
    pub fn gather(&mut self, units: &[UnitId]) -> Result<Guard<'_, 'a>> {
        let order = self.schedule.order();
        let expected = order.get(self.next_taken..self.next_taken + units.len()).unwrap_or_default();
        if expected != units {
            return Err(ShardError::OutOfSchedule { found: units.to_vec(), expected: expected.to_vec() });
        }
        let block = self.next_taken..self.next_taken + units.len();
        let end = self.plan.ahead_of(self.schedule, block.clone());
        while self.next_started < end {
            let started = self.start(self.next_started, block.start)?;
            self.started.push_back(started);
            self.next_started += 1;
        }
        Ok(Guard { block_end: block.end, walk: self })
    }

    fn start(&self, at: usize, block_start: usize) -> Result<Started> {
        let unit = self.schedule.unit(at);
        match self.store.unit(unit) {
            Kept::Whole(tensor) | Kept::OwnExperts(tensor) => {
                Ok(Started::Whole { tensor: tensor.clone(), lease: None })
            }
            _ if !self.plan.is_gathered(self.schedule, at, block_start) => Ok(Started::Before),
            Kept::Part(shard) => {
                let gathered_len = self.plan.gathered_len(unit);
                let lease = self.account.lease(Purpose::Gathered, DType::F32.size() * gathered_len as u64)?;
                let full = Buffer::zeros(DType::F32, gathered_len)?;
                let pending = self.job.comm.all_gather(shard, full).map_err(|cause| self.failed(unit, cause))?;
                Ok(Started::Gathering { pending, lease })
            }
            Kept::PartOnGpu(part) => {
                let (name, layout) = (&self.plan.unit(unit).spec.name, self.layout.ok_or(ShardError::NoRing)?);
                let part = Part { tensor: part, stays: self.plan.is_read_in_place(unit) };
                Ok(Started::OnGpu(self.ring()?.start(name, part, layout.start(at))?))
            }
        }
    }

    fn finish(&mut self) -> Result<UnitWeights> {
        let unit = self.schedule.order()[self.next_taken];
        let (tensor, lease) = match self.next() {
            Started::Whole { tensor, lease } => (tensor, lease),
            // Streams wait for each other, the host for nobody.
            Started::OnGpu(arriving) => (self.ring()?.finish(arriving)?, None),
            Started::Gathering { pending, lease } => {
                // Only a wait that is felt is a phase of its own.
                let full = self.job.whereabouts.during(Phase::Gather, || pending.wait());
                let full = full.map_err(|cause| self.failed(unit, cause))?;
                (full.into_tensor()?, Some(Arc::new(lease)))
            }
            Started::Before => unreachable!("whoever took the unit before has handed it on"),
        };
        if let Some(heir) = self.heir() {
            *heir = Started::Whole { tensor: tensor.clone(), lease: lease.clone() };
        }
        let spec = self.plan.unit(unit).spec.clone();
        Ok(match self.store.unit(unit) {
            Kept::PartOnGpu(own) if self.plan.is_read_in_place(unit) => {
                let start = self.plan.kept(unit, self.job.mesh().rank()).start;
                UnitWeights::around(spec, (start, own.clone()), tensor)
            }
            Kept::OwnExperts(own) => UnitWeights::of_own_experts(spec, own.clone()),
            _ => UnitWeights::new(spec, tensor, lease)?,
        })
    }

    /// Goes on by one place.
    fn next(&mut self) -> Started {
        self.next_taken += 1;
        self.started.pop_front().expect("a guard exists only for units that were started")
    }

    /// The place that waits to be handed the unit that was taken last.
    fn heir(&mut self) -> Option<&mut Started> {
        let after = self.schedule.used_after(self.next_taken - 1)?;
        self.started.get_mut(after - self.next_taken).filter(|after| matches!(after, Started::Before))
    }

    fn ring(&self) -> Result<&'a Ring> {
        self.store.ring().ok_or(ShardError::NoRing)
    }

    fn failed(&self, unit: UnitId, cause: scout_comm::CommError) -> ShardError {
        ShardError::Gather { unit: self.plan.unit(unit).spec.name.clone(), cause: Box::new(cause) }
    }
}

impl Ahead {
    /// For whoever walks no further on this schedule: what is under way comes to its end, and its memory becomes free.
    pub fn let_go(self) -> scout_comm::Result<()> {
        self.0.into_iter().try_for_each(|started| match started {
            Started::Gathering { pending, lease: _lease } => pending.wait().map(drop),
            Started::Whole { .. } | Started::OnGpu(_) | Started::Before => Ok(()),
        })
    }
}

/// The units of one block. Dropping it drops those that nobody took.
pub struct Guard<'w, 'a> {
    walk: &'w mut Walk<'a>,
    block_end: usize,
}

impl UnitSource for Guard<'_, '_> {
    fn take(&mut self, unit: UnitId) -> scout_device::Result<UnitWeights> {
        let expected = self.walk.schedule.order().get(self.walk.next_taken);
        if self.walk.next_taken == self.block_end || expected != Some(&unit) {
            return Err(DeviceError::Gather(Box::new(ShardError::OutOfSchedule {
                found: vec![unit],
                expected: expected.copied().into_iter().collect(),
            })));
        }
        self.walk.finish().map_err(|cause| DeviceError::Gather(Box::new(cause)))
    }
}

impl Drop for Guard<'_, '_> {
    fn drop(&mut self) {
        // A block that failed half-way leaves units behind; the walk ends with it, so they are only let go.
        while self.walk.next_taken < self.block_end {
            let started = self.walk.next();
            if let Some(heir) = self.walk.heir() {
                *heir = started;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{all_resident, none_resident};
    use scout_comm::local_group;
    use scout_core::{ByteCount, ParamSpec, Rank, UnitSpec};
    use std::time::Duration;

    const LENS: [usize; 4] = [5, 8, 1, 13];

    fn specs() -> Vec<Arc<UnitSpec>> {
        let unit = |(index, &len): (usize, &usize)| {
            let params = vec![ParamSpec::new("p", [len])];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        LENS.iter().enumerate().map(unit).collect()
    }

    fn schedule() -> Schedule {
        let mut schedule = Schedule::default();
        for units in [&[0][..], &[1, 2, 3], &[3, 2], &[0]] {
            schedule.push(&units.iter().map(|&unit| UnitId(unit)).collect::<Vec<_>>());
        }
        schedule
    }

    /// All units one by one, which is eight uses.
    fn there_and_back() -> Schedule {
        let mut schedule = Schedule::default();
        [0, 1, 2, 3, 3, 2, 1, 0].into_iter().for_each(|unit| schedule.push(&[UnitId(unit)]));
        schedule
    }

    fn value(unit: usize, element: usize) -> f32 {
        (100 * unit + element) as f32
    }

    /// What `rank` keeps, filled with [`value`].
    fn store(plan: &ShardPlan, rank: Rank, account: &Account) -> ShardStore {
        let mut read = |spec: &UnitSpec, range: std::ops::Range<usize>, out: &mut [f32]| {
            out.iter_mut().zip(range).for_each(|(out, element)| *out = value(spec.id.0, element));
            Ok::<(), DeviceError>(())
        };
        ShardStore::load(plan, rank, account, &mut read).unwrap()
    }

    /// Of the units behind the first `known` that are under way.
    fn gathers_begun(guard: &Guard, known: usize) -> usize {
        let new = guard.walk.started.iter().skip(known);
        new.filter(|started| matches!(started, Started::Gathering { .. })).count()
    }

    #[test]
    fn a_walk_hands_out_whole_units_in_order_and_holds_no_more_than_the_plan_says() {
        for world_size in [1, 2, 3, 4] {
            for lookahead in [0, 1, 2, 5] {
                let plan = ShardPlan::new(&specs(), world_size, &none_resident, lookahead);
                let schedule = schedule();
                std::thread::scope(|scope| {
                    for comm in local_group(world_size, Duration::from_secs(5)) {
                        let (plan, schedule) = (&plan, &schedule);
                        scope.spawn(move || {
                            let job = Job::over(comm);
                            let account = Account::new(None);
                            let store = store(plan, job.mesh().rank(), &account);
                            let mut walk = Walk::new(plan, &store, &job, &account, schedule);
                            for step in schedule.steps() {
                                let units = &schedule.order()[step];
                                let mut guard = walk.gather(units).unwrap();
                                for &unit in units {
                                    let weights = guard.take(unit).unwrap().param(0).unwrap();
                                    let expected: Vec<f32> = (0..LENS[unit.0]).map(|i| value(unit.0, i)).collect();
                                    assert_eq!(weights.to_f32_vec().unwrap(), expected);
                                }
                            }
                            assert_eq!(account.in_use(Purpose::Gathered), ByteCount(0));
                            assert!(account.peak(Purpose::Gathered) <= plan.gathered_peak(schedule));
                            assert_eq!(account.peak(Purpose::Shard), plan.kept_bytes());
                        });
                    }
                });
            }
        }
    }

    #[test]
    fn units_that_are_still_whole_where_a_walk_turns_round_are_gathered_once() {
        // Units there and back, which is eight uses, and how many of them are gathers.
        for (lookahead, takes_all, expected) in [(0, true, 7), (1, true, 6), (3, true, 4), (0, false, 7), (3, false, 4)]
        {
            let plan = ShardPlan::new(&specs(), 2, &none_resident, lookahead);
            let schedule = there_and_back();
            std::thread::scope(|scope| {
                for comm in local_group(2, Duration::from_secs(5)) {
                    let (plan, schedule) = (&plan, &schedule);
                    scope.spawn(move || {
                        let (job, account) = (Job::over(comm), Account::new(None));
                        let store = store(plan, job.mesh().rank(), &account);
                        let mut walk = Walk::new(plan, &store, &job, &account, schedule);
                        let mut gathers = 0;
                        for step in schedule.steps() {
                            let (known, unit) = (walk.started.len(), schedule.order()[step.start]);
                            let mut guard = walk.gather(&[unit]).unwrap();
                            gathers += gathers_begun(&guard, known);
                            // What nobody took is handed on all the same.
                            if takes_all || step.start >= 4 {
                                guard.take(unit).unwrap();
                            }
                        }
                        assert_eq!(gathers, expected, "{lookahead} ahead");
                        assert_eq!(account.in_use(Purpose::Gathered), ByteCount(0));
                        assert_eq!(account.peak(Purpose::Gathered), plan.gathered_peak(schedule));
                    });
                }
            });
        }
    }

    #[test]
    fn a_walk_goes_on_with_what_the_one_before_it_began() {
        // Gathers of three passes there and back, of eight uses each.
        for (lookahead, expected) in [(0, [7, 6, 6]), (1, [6, 4, 4]), (2, [5, 2, 2])] {
            let plan = ShardPlan::new(&specs(), 2, &none_resident, lookahead);
            let schedule = there_and_back().repeated();
            std::thread::scope(|scope| {
                for comm in local_group(2, Duration::from_secs(5)) {
                    let (plan, schedule) = (&plan, &schedule);
                    scope.spawn(move || {
                        let (job, account) = (Job::over(comm), Account::new(None));
                        let store = store(plan, job.mesh().rank(), &account);
                        let mut ahead = Ahead::default();
                        let gathers = expected.map(|_| {
                            let mut walk = Walk::new(plan, &store, &job, &account, schedule)
                                .going_on_with(std::mem::take(&mut ahead));
                            let mut gathers = 0;
                            for step in schedule.steps() {
                                let (known, unit) = (walk.started.len(), schedule.order()[step.start]);
                                let mut guard = walk.gather(&[unit]).unwrap();
                                gathers += gathers_begun(&guard, known);
                                let weights = guard.take(unit).unwrap().param(0).unwrap();
                                let expected: Vec<f32> = (0..LENS[unit.0]).map(|i| value(unit.0, i)).collect();
                                assert_eq!(weights.to_f32_vec().unwrap(), expected);
                            }
                            ahead = walk.end();
                            gathers
                        });
                        assert_eq!(gathers, expected, "{lookahead} ahead");
                        assert!(account.in_use(Purpose::Gathered) > ByteCount(0), "something is under way");
                        assert_eq!(account.peak(Purpose::Gathered), plan.gathered_peak(schedule));
                        ahead.let_go().unwrap();
                        assert_eq!(account.in_use(Purpose::Gathered), ByteCount(0));
                    });
                }
            });
        }
    }

    #[test]
    fn a_unit_out_of_order_is_an_error() {
        let plan = ShardPlan::new(&specs(), 1, &all_resident, 1);
        let schedule = schedule();
        let account = Account::new(None);
        let store = store(&plan, Rank(0), &account);
        let job = Job::alone(Duration::from_secs(1));
        let mut walk = Walk::new(&plan, &store, &job, &account, &schedule);
        assert!(walk.gather(&[UnitId(1)]).is_err());
        let mut guard = walk.gather(&[UnitId(0)]).unwrap();
        assert!(guard.take(UnitId(1)).is_err());
        assert!(guard.take(UnitId(0)).is_ok());
        assert!(guard.take(UnitId(1)).is_err(), "the next unit belongs to the next block");
    }
}
