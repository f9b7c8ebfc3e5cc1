//! Gradients of weights on their way from the backward pass to the rank that updates them. A unit is sent as soon as its
//! backward pass is done, so that ranks sum it while the next block is computed; few are under way at a time, and what has
//! arrived is added to this rank's part. On the host alone: GPUs train adapters, whose sums are `adapter_sums.rs`.

use std::collections::{BTreeMap, VecDeque};

use scout_comm::{CommError, Job, Pending};
use scout_core::{ByteCount, DType, Phase, UnitId};
use scout_device::{Account, Buffer, Lease, Purpose, Tensor};
use scout_model::WeightGradients;
use scout_shard::{Schedule, ShardError, ShardPlan};

use crate::error::Result;
use crate::weight_set::WeightSet;

/// Units under way while the next block is computed. One would do on the wire; two never let it run dry.
const MOST_IN_FLIGHT: usize = 2;

/// The weight gradients of one update. Every rank sends the same units in the same order.
pub struct Reducer<'a> {
    set: &'a WeightSet,
    plan: &'a ShardPlan,
    job: &'a Job,
    account: &'a Account,
    /// Units whose backward pass is under way. Where only a part of a unit is trained its run covers all of it all the
    /// same, with zeros that the frozen rest costs on the wire: parts of units would need ranges of their own everywhere.
    open: BTreeMap<UnitId, Run>,
    in_flight: VecDeque<InFlight>,
    /// This rank's part of each unit, summed over ranks and micro-batches.
    sums: BTreeMap<UnitId, Buffer>,
}

/// A whole unit's gradient and the part that will arrive in its place.
struct Run {
    full: Buffer,
    lease: Lease,
}

struct InFlight {
    unit: UnitId,
    pending: Pending,
    // Held, never read: both buffers leave the account when the part has arrived.
    _lease: Lease,
}

impl<'a> Reducer<'a> {
    pub fn new(set: &'a WeightSet, plan: &'a ShardPlan, job: &'a Job, account: &'a Account) -> Reducer<'a> {
        let (open, in_flight, sums) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
        Reducer { set, plan, job, account, open, in_flight, sums }
    }

    /// Gives the gradients of `units` to all ranks. Waits only for units that were sent long before.
    pub fn send(&mut self, units: &[UnitId]) -> Result<()> {
        for &unit in units.iter().filter(|unit| self.set.has(**unit)) {
            let Run { full, lease } = match self.open.remove(&unit) {
                Some(run) => run,
                None => self.empty_run(unit)?,
            };
            let part = Buffer::zeros(DType::F32, self.plan.part_len(unit))?;
            let pending = self.job.comm.reduce_scatter(full, part).map_err(|cause| self.failed(unit, cause))?;
            self.in_flight.push_back(InFlight { unit, pending, _lease: lease });
            while self.in_flight.len() > MOST_IN_FLIGHT {
                self.take_oldest()?;
            }
        }
        Ok(())
    }

    /// Waits for everything that is under way: the end of a micro-batch.
    pub fn drain(&mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.take_oldest()?;
        }
        Ok(())
    }

    /// This rank's parts, once everything has arrived.
    pub fn into_sums(mut self) -> Result<BTreeMap<UnitId, Buffer>> {
        self.drain()?;
        Ok(self.sums)
    }

    fn take_oldest(&mut self) -> Result<()> {
        let Some(InFlight { unit, pending, .. }) = self.in_flight.pop_front() else { return Ok(()) };
        let part = self.job.whereabouts.during(Phase::Reduce, || pending.wait());
        let part = part.map_err(|cause| self.failed(unit, cause))?;
        match self.sums.get_mut(&unit) {
            None => {
                self.sums.insert(unit, part);
            }
            Some(sum) => sum.f32s_mut()?.iter_mut().zip(part.f32s()?).for_each(|(sum, value)| *sum += value),
        }
        Ok(())
    }

    fn empty_run(&self, unit: UnitId) -> scout_device::Result<Run> {
        let lease = self.account.lease(Purpose::Trained, run_bytes(self.plan, unit))?;
        Ok(Run { full: Buffer::zeros(DType::F32, self.plan.padded_len(unit))?, lease })
    }

    fn failed(&self, unit: UnitId, cause: CommError) -> ShardError {
        ShardError::Reduce { unit: self.plan.unit(unit).spec.name.clone(), cause: Box::new(cause) }
    }
}

impl WeightGradients for Reducer<'_> {
    fn wants(&self, unit: UnitId, param: usize) -> bool {
        self.set.contains(unit, param)
    }

    fn add(&mut self, unit: UnitId, param: usize, gradient: &Tensor) -> scout_device::Result<()> {
        if !self.open.contains_key(&unit) {
            let run = self.empty_run(unit)?;
            self.open.insert(unit, run);
        }
        let run = self.open.get_mut(&unit).expect("opened above");
        let params = &self.plan.unit(unit).spec.params;
        let start: usize = params[..param].iter().map(|param| param.num_elements()).sum();
        gradient.expect_dims("gradient of a weight", params[param].shape.dims())?;
        let sums = &mut run.full.f32s_mut()?[start..start + params[param].num_elements()];
        sums.iter_mut().zip(gradient.f32s()?.iter()).for_each(|(sum, value)| *sum += value);
        Ok(())
    }
}

/// A unit's whole gradient, padding included, and the part that becomes of it.
fn run_bytes(plan: &ShardPlan, unit: UnitId) -> ByteCount {
    DType::F32.size() * (plan.padded_len(unit) + plan.part_len(unit)) as u64
}

/// Most bytes of gradients that are being made or under way at one time. `sends` says, block by block of the backward
/// pass, which units are sent when it is done.
pub fn most_in_flight(set: &WeightSet, plan: &ShardPlan, sends: &Schedule) -> ByteCount {
    let mut in_flight: VecDeque<ByteCount> = VecDeque::new();
    let mut most = ByteCount(0);
    for step in sends.steps() {
        let units = sends.order()[step].iter().filter(|unit| set.has(**unit));
        let open: Vec<ByteCount> = units.map(|unit| run_bytes(plan, *unit)).collect();
        most = most.max(in_flight.iter().chain(&open).copied().sum());
        in_flight.extend(open);
        in_flight.drain(..in_flight.len().saturating_sub(MOST_IN_FLIGHT));
    }
    most
}
