//! The bytes of the weights that this rank keeps. Filled once, range by range, by whoever knows where they lie; where they
//! are trained, each rank changes its part.

use std::ops::Range;

use scout_comm::Communicator;
use scout_core::{DType, Rank, UnitId, UnitSpec};
use scout_device::{Account, Buffer, DeviceError, Lease, Purpose, Tensor};

use crate::error::ShardError;
use crate::plan::{Placement, ShardPlan, UnitShard};
use crate::ring::Ring;

/// Puts a range of a unit's elements, as f32, where it is told.
pub type ReadRange<'a, E> = dyn FnMut(&UnitSpec, Range<usize>, &mut [f32]) -> Result<(), E> + 'a;

pub struct ShardStore {
    kept: Vec<Kept>,
    /// Where parts on a GPU become whole; none where nothing is gathered there.
    ring: Option<Ring>,
    // Held, never read: the kept bytes leave the account with the store. Memory of a GPU keeps its own account.
    _lease: Option<Lease>,
}

pub(crate) enum Kept {
    Whole(Tensor),
    Part(Buffer),
    PartOnGpu(Tensor),
    OwnExperts(Tensor),
}

impl ShardStore {
    /// Asks `read` for exactly the elements that `rank` keeps: a unit, a range of its elements, and where to put them.
    pub fn load<E: From<DeviceError>>(
        plan: &ShardPlan,
        rank: Rank,
        account: &Account,
        read: &mut ReadRange<'_, E>,
    ) -> Result<ShardStore, E> {
        let lease = account.lease(Purpose::Shard, plan.kept_bytes())?;
        let mut kept = Vec::with_capacity(plan.units().len());
        for unit in plan.units() {
            let range = plan.kept(unit.spec.id, rank);
            let mut values = vec![0.0; unit.shard_len];
            read(&unit.spec, range.clone(), &mut values[..range.len()])?;
            kept.push(match unit.placement {
                Placement::Resident => Kept::Whole(Buffer::from_f32(values).into_tensor()?),
                Placement::Sharded => Kept::Part(Buffer::from_f32(values)),
                Placement::OwnExperts => Kept::OwnExperts(Buffer::from_f32(values).into_tensor()?),
            });
        }
        Ok(ShardStore { kept, ring: None, _lease: Some(lease) })
    }

    /// What this rank keeps of each unit on its GPU, in their order: filled by whoever can write there. `ring` is needed
    /// where a unit is sharded.
    pub fn on_gpu(plan: &ShardPlan, kept: Vec<Tensor>, ring: Option<Ring>) -> ShardStore {
        let of_unit = |(unit, kept): (&UnitShard, Tensor)| match unit.placement {
            Placement::Resident => Kept::Whole(kept),
            Placement::Sharded => Kept::PartOnGpu(kept),
            Placement::OwnExperts => Kept::OwnExperts(kept),
        };
        ShardStore { kept: plan.units().iter().zip(kept).map(of_unit).collect(), ring, _lease: None }
    }

    /// Gives up the way to the parts of other ranks. Nothing can be gathered afterwards.
    pub fn take_ring(&mut self) -> Option<Ring> {
        self.ring.take()
    }

    /// Where units become whole on a GPU, when some do.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Lets `change` write to this rank's part of a unit, padding included; the next gather sees what it wrote.
    ///
    /// Every rank must call it for the same units in the same order: a whole copy is put together from the parts of all
    /// ranks. No pass may be under way.
    pub fn update<E: From<ShardError>>(
        &mut self,
        plan: &ShardPlan,
        id: UnitId,
        comm: &dyn Communicator,
        change: impl FnOnce(&mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let device = |cause: DeviceError| E::from(ShardError::from(cause));
        match &mut self.kept[id.0] {
            Kept::Part(part) => change(part.f32s_mut().map_err(device)?),
            Kept::Whole(tensor) => {
                let own = plan.part(id, comm.mesh().rank());
                let mut part = vec![0.0; plan.part_len(id)];
                part[..own.len()].copy_from_slice(&tensor.f32s().map_err(device)?[own]);
                change(&mut part)?;
                *tensor = whole(plan, id, Buffer::from_f32(part), comm)?;
                Ok(())
            }
            Kept::PartOnGpu(_) | Kept::OwnExperts(_) => Err(device(DeviceError::Place {
                what: "part of a trained unit",
                found: "a GPU, or experts to which rows come".to_string(),
                expected: "the host, in parts or whole".to_string(),
            })),
        }
    }

    pub(crate) fn unit(&self, id: UnitId) -> &Kept {
        &self.kept[id.0]
    }
}

/// A unit from the parts of all ranks, without its padding.
fn whole(plan: &ShardPlan, id: UnitId, part: Buffer, comm: &dyn Communicator) -> Result<Tensor, ShardError> {
    let spec = &plan.unit(id).spec;
    let failed = |cause| ShardError::Gather { unit: spec.name.clone(), cause: Box::new(cause) };
    let full = Buffer::zeros(DType::F32, plan.padded_len(id))?;
    let full = comm.all_gather(&part, full).map_err(failed)?.wait().map_err(failed)?;
    Ok(full.into_tensor()?.rows(0, spec.num_elements())?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use scout_comm::{Job, local_group};
    use scout_core::ParamSpec;
    use scout_device::UnitSource;

    use super::*;
    use crate::plan::Schedule;
    use crate::walk::Walk;

    const LEN: usize = 7;

    #[test]
    fn what_ranks_write_to_their_parts_is_what_all_of_them_gather() {
        let spec = UnitSpec { id: UnitId(0), name: "u".into(), params: vec![ParamSpec::new("p", [LEN])] };
        let specs = [Arc::new(spec)];
        let mut schedule = Schedule::default();
        schedule.push(&[UnitId(0)]);
        for (world_size, is_resident) in [1, 2, 3, 4, 9].into_iter().flat_map(|n| [(n, false), (n, true)]) {
            let plan = ShardPlan::new(&specs, world_size, &|_| is_resident, 1);
            std::thread::scope(|scope| {
                for comm in local_group(world_size, Duration::from_secs(5)) {
                    let (plan, schedule) = (&plan, &schedule);
                    scope.spawn(move || {
                        let job = Job::over(comm);
                        let (rank, account) = (job.mesh().rank(), Account::new(None));
                        let mut read = |_: &UnitSpec, range: Range<usize>, out: &mut [f32]| {
                            out.iter_mut().zip(range).for_each(|(out, at)| *out = at as f32);
                            Ok::<(), DeviceError>(())
                        };
                        let mut store = ShardStore::load(plan, rank, &account, &mut read).unwrap();
                        for _ in 0..2 {
                            let own = plan.part(UnitId(0), rank);
                            let change = |part: &mut [f32]| {
                                part[..own.len()].iter_mut().for_each(|value| *value = 10.0 * *value + 1.0);
                                Ok::<(), ShardError>(())
                            };
                            store.update(plan, UnitId(0), &*job.comm, change).unwrap();
                        }
                        let mut walk = Walk::new(plan, &store, &job, &account, schedule);
                        let found = walk.gather(&[UnitId(0)]).unwrap().take(UnitId(0)).unwrap().param(0).unwrap();
                        let expected: Vec<f32> = (0..LEN).map(|at| 100.0 * at as f32 + 11.0).collect();
                        assert_eq!(
                            found.to_f32_vec().unwrap(),
                            expected,
                            "resident: {is_resident}, {world_size} ranks"
                        );
                    });
                }
            });
        }
    }
}
