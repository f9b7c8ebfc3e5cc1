//! The bytes of the weights that this rank keeps. Filled once, range by range, by whoever knows where they lie.

use std::ops::Range;

use scout_core::{Rank, UnitId, UnitSpec};
use scout_device::{Account, Buffer, DeviceError, Lease, Purpose, Tensor};

use crate::plan::{Placement, ShardPlan};

/// Puts a range of a unit's elements, as f32, where it is told.
pub type ReadRange<'a, E> = dyn FnMut(&UnitSpec, Range<usize>, &mut [f32]) -> Result<(), E> + 'a;

#[derive(Debug)]
pub struct ShardStore {
    kept: Vec<Kept>,
    // Held, never read: the kept bytes leave the account with the store.
    _lease: Lease,
}

#[derive(Debug)]
pub(crate) enum Kept {
    Whole(Tensor),
    Part(Buffer),
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
            });
        }
        Ok(ShardStore { kept, _lease: lease })
    }

    pub(crate) fn unit(&self, id: UnitId) -> &Kept {
        &self.kept[id.0]
    }
}
