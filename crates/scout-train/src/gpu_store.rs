//! The memory of a GPU that weights lie in, and, where they are sharded, the way in which units become whole there. The way
//! is chosen first, because each needs memory of its own kind; then the weights are read or made; then they can be walked.

use std::sync::Arc;

use scout_comm::Job;
use scout_comm::gpu::{self, Chosen, GatherMemory, GatherWay, OpenWay, Ranks, Sample, Wish};
use scout_device::cuda::{Arena, CudaDevice};
use scout_device::{Purpose, Tensor};
use scout_shard::{Placement, Ring, Schedule, ShardPlan, ShardStore, ring_bytes, with_whole_units};

use crate::error::{Result, TrainError};
use crate::gpu_weights;
use crate::schedules::Schedules;

/// For the choice of a way of gathering.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    pub wish: Wish,
    /// The share of a step in which nothing hides gathers, as far as that is known.
    pub exposed: f64,
}

/// Room for the weights of a rank.
pub struct GpuRoom<'a> {
    /// How weights are walked in the way that was chosen.
    plan: ShardPlan,
    device: &'a Arc<CudaDevice>,
    schedules: &'a Schedules,
    job: &'a Job,
    memory: Memory,
    /// What was found out about ways of gathering, for people.
    pub said: Vec<String>,
}

enum Memory {
    /// Nothing is gathered.
    Whole(Arena),
    Gathered(GatherWay, GatherMemory),
}

impl<'a> GpuRoom<'a> {
    /// Every rank calls it. Waits for all of them where units are sharded.
    pub fn new(
        plan: &ShardPlan,
        schedules: &'a Schedules,
        device: &'a Arc<CudaDevice>,
        Trial { wish, exposed }: Trial,
        job: &'a Job,
    ) -> Result<GpuRoom<'a>> {
        let bytes = gpu_weights::bytes(plan);
        let sharded = plan.units().iter().filter(|unit| unit.placement == Placement::Sharded);
        let (plan, memory, said) = match sharded.max_by_key(|unit| unit.shard_len) {
            None => {
                let arena = device.arena("weights", Purpose::Shard, bytes, device.compute())?;
                (plan.clone(), Memory::Whole(arena), Vec::new())
            }
            Some(largest) => {
                let ranks = Ranks { device, comm: &*job.comm };
                let part = plan.dtype().size() * largest.shard_len as u64;
                let sample = Sample { part, stays: plan.is_read_in_place(largest.spec.id) };
                let Chosen { way, mut said } = gpu::choose(wish, ranks, sample, exposed)?;
                let passes = [&schedules.train, &schedules.evaluate];
                let walked = plan_by(way, plan, &passes)?;
                let (ahead, planned) = (walked.lookahead(), plan.lookahead());
                if ahead != planned {
                    said.push(format!(
                        "{way} bring whole units, {ahead} ahead in place of {planned}: `gather: nccl` plans memory for that"
                    ));
                }
                let memory = way.memory(ranks, bytes, ring_bytes(&walked, &passes))?;
                (walked, Memory::Gathered(way, memory), said)
            }
        };
        Ok(GpuRoom { plan, device, schedules, job, memory, said })
    }

    /// Where what this rank keeps is to lie.
    pub fn arena(&self) -> &Arena {
        match &self.memory {
            Memory::Whole(arena) => arena,
            Memory::Gathered(_, memory) => &memory.parts,
        }
    }

    /// Weights, and the plan to walk them by, once `kept` holds what this rank keeps of each unit, in that arena. Every rank calls
    /// it.
    pub fn store(self, kept: Vec<Tensor>) -> Result<(ShardPlan, ShardStore)> {
        let GpuRoom { plan, device, schedules, job, memory, .. } = self;
        let ring = match memory {
            Memory::Whole(_) => None,
            Memory::Gathered(way, memory) => {
                // What was made is queued, and others are about to fetch it.
                device.finish()?;
                let opened = OpenWay::open(way, Ranks { device, comm: &*job.comm }, memory)?;
                Some(Ring::new(device, opened, &plan, &[&schedules.train, &schedules.evaluate]))
            }
        };
        let store = ShardStore::on_gpu(&plan, kept, ring);
        Ok((plan, store))
    }
}

/// The plan where `way` gathers, in the memory that `plan` says. The same on all ranks.
fn plan_by(way: GatherWay, plan: &ShardPlan, passes: &[&Schedule]) -> Result<ShardPlan> {
    if way.brings_others_alone() {
        return Ok(plan.clone());
    }
    let room = ring_bytes(plan, passes);
    with_whole_units(plan, room, passes).ok_or_else(|| {
        let needed = ring_bytes(&plan.bringing_whole_units(0), passes);
        let problem = format!(
            "a trial chose {way}, which bring whole units and need {needed} of memory, where {room} were planned for copy \
             engines; with `gather: nccl` that is planned for"
        );
        TrainError::Config { key: "gather", problem }
    })
}

#[cfg(test)]
mod tests {
    use scout_core::{ParamSpec, UnitId, UnitSpec};
    use scout_shard::none_resident;

    use super::*;

    #[test]
    fn whole_units_are_gathered_where_they_find_room_or_refused_with_what_they_need() {
        let unit = |index| {
            let params = vec![ParamSpec::new("p", [4, 256, 256])];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        let units: Vec<_> = (0..4).map(unit).collect();
        let mut pass = Schedule::default();
        (0..4).for_each(|index| pass.push(&[UnitId(index)]));
        let plan = |lookahead| ShardPlan::new(&units, 2, &none_resident, lookahead).reading_in_place();
        for way in [GatherWay::Push, GatherWay::Pull] {
            assert_eq!(plan_by(way, &plan(3), &[&pass]).unwrap(), plan(3));
        }
        for way in [GatherWay::NcclByCopy, GatherWay::Nccl] {
            let walked = plan_by(way, &plan(3), &[&pass]).unwrap();
            assert_eq!((walked.lookahead(), walked.is_read_in_place(UnitId(0))), (1, false));
            // Planned for NCCL, it stays as it is.
            assert_eq!(plan_by(way, &walked, &[&pass]).unwrap(), walked);
            let error = plan_by(way, &plan(0), &[&pass]).unwrap_err();
            let TrainError::Config { key: "gather", problem } = error else { panic!("{error}") };
            assert!(problem.contains("1.00 MiB") && problem.contains("512.00 KiB"), "{problem}");
        }
    }
}
