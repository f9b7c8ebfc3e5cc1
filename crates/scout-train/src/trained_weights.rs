//! What a rank keeps of weights that are trained, beside the weights themselves: AdamW's moments of its own parts.
//! On the host alone: GPUs train adapters.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use scout_comm::Communicator;
use scout_core::{ByteCount, DType, UnitId};
use scout_device::{Account, Buffer, Lease, Purpose};
use scout_shard::{ShardPlan, ShardStore};

use crate::error::{Result, TrainError};
use crate::optimizer::Update;
use crate::weight_set::WeightSet;

#[derive(Debug)]
pub struct TrainedWeights {
    set: Arc<WeightSet>,
    // Invariant: one entry for each unit of the set, as long as a part of it.
    moments: BTreeMap<UnitId, Moments>,
    // Held, never read: moments and summed gradients leave the account with this state.
    _lease: Lease,
}

/// AdamW's moments of one part, padding included.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl TrainedWeights {
    /// Moments that begin at zero.
    pub fn new(set: Arc<WeightSet>, plan: &ShardPlan, account: &Account) -> Result<TrainedWeights> {
        let lease = account.lease(Purpose::Trained, TrainedWeights::bytes(&set, plan))?;
        let zeros = |unit| vec![0.0; plan.part_len(unit)];
        let moments = set.units().map(|unit| (unit, Moments { first: zeros(unit), second: zeros(unit) })).collect();
        Ok(TrainedWeights { set, moments, _lease: lease })
    }

    /// Bytes on each rank: two moments and the summed gradient of every part.
    pub fn bytes(set: &WeightSet, plan: &ShardPlan) -> ByteCount {
        set.units().map(|unit| DType::F32.size() * 3 * plan.part_len(unit) as u64).sum()
    }

    pub fn set(&self) -> &WeightSet {
        &self.set
    }

    pub fn moments(&self) -> &BTreeMap<UnitId, Moments> {
        &self.moments
    }

    /// Moves every trained weight by one step of AdamW, unit by unit. Frozen parameters of a unit are not touched.
    pub fn update(
        &mut self,
        gradients: &BTreeMap<UnitId, Buffer>,
        update: &Update,
        store: &mut ShardStore,
        plan: &ShardPlan,
        comm: &dyn Communicator,
    ) -> Result<()> {
        for (&unit, Moments { first, second }) in &mut self.moments {
            let gradient = gradients.get(&unit).expect("every unit of the set was sent").f32s()?;
            let spans = self.set.spans(&plan.unit(unit).spec, plan.part(unit, comm.mesh().rank()));
            store.update(plan, unit, comm, |part| {
                for span in spans {
                    let Range { start, end } = span.range;
                    let moments = (&mut first[start..end], &mut second[start..end]);
                    update.apply(&mut part[start..end], &gradient[start..end], moments, span.decays)?;
                }
                Ok::<(), TrainError>(())
            })?;
        }
        Ok(())
    }
}
