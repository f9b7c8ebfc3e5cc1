//! The memory of a GPU that weights lie in, and, where they are sharded, the way in which units become whole there. The way
//! is chosen first, because each needs memory of its own kind; then the weights are read or made; then they can be walked.

use std::sync::Arc;

use scout_comm::Job;
use scout_comm::gpu::{self, Chosen, GatherMemory, OpenWay, Ranks, Sample, Way, Wish};
use scout_device::cuda::{Arena, CudaDevice};
use scout_device::{Purpose, Tensor};
use scout_shard::{Placement, Ring, ShardPlan, ShardStore, ring_bytes};

use crate::error::Result;
use crate::gpu_weights;
use crate::trainer::Schedules;

/// Room for the weights of a rank.
pub struct GpuRoom<'a> {
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
    Gathered(Way, GatherMemory),
}

impl<'a> GpuRoom<'a> {
    /// Every rank calls it. Waits for all of them where units are sharded. `exposed` is the share of a step in which nothing
    /// hides gathers, as far as that is known.
    pub fn new(
        (plan, schedules): (&ShardPlan, &'a Schedules),
        device: &'a Arc<CudaDevice>,
        (wish, exposed): (Wish, f64),
        job: &'a Job,
    ) -> Result<GpuRoom<'a>> {
        let bytes = gpu_weights::bytes(plan);
        let sharded = plan.units().iter().filter(|unit| unit.placement == Placement::Sharded);
        let (memory, said) = match sharded.max_by_key(|unit| unit.shard_len) {
            None => (Memory::Whole(device.arena("weights", Purpose::Shard, bytes, device.compute())?), Vec::new()),
            Some(largest) => {
                let ranks = Ranks { device, comm: &*job.comm };
                let part = plan.dtype().size() * largest.shard_len as u64;
                let sample = Sample { part, stays: plan.is_read_in_place(largest.spec.id) };
                let Chosen { way, said } = gpu::choose(wish, ranks, sample, exposed)?;
                let ring = ring_bytes(plan, &[&schedules.train, &schedules.evaluate]);
                (Memory::Gathered(way, way.memory(ranks, bytes, ring)?), said)
            }
        };
        Ok(GpuRoom { device, schedules, job, memory, said })
    }

    /// Where what this rank keeps is to lie.
    pub fn arena(&self) -> &Arena {
        match &self.memory {
            Memory::Whole(arena) => arena,
            Memory::Gathered(_, memory) => &memory.parts,
        }
    }

    /// Weights that can be walked, once `kept` holds what this rank keeps of each unit, in that arena. Every rank calls it.
    pub fn store(self, plan: &ShardPlan, kept: Vec<Tensor>) -> Result<ShardStore> {
        let GpuRoom { device, schedules, job, memory, .. } = self;
        let ring = match memory {
            Memory::Whole(_) => None,
            Memory::Gathered(way, memory) => {
                // What was made is queued, and others are about to fetch it.
                device.finish()?;
                let opened = OpenWay::open(way, Ranks { device, comm: &*job.comm }, memory)?;
                Some(Ring::new(device, opened, plan, &[&schedules.train, &schedules.evaluate]))
            }
        };
        Ok(ShardStore::on_gpu(plan, kept, ring))
    }
}
