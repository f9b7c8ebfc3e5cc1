//! In which order units are used and their gradients are complete: decided before the first batch, for the trainer to walk by and
//! for the plan to count memory by.

use scout_model::{Block, Model};
use scout_shard::Schedule;

use crate::weight_set::WeightSet;

/// The order in which units are used, forward and back again or forward alone, and in which their gradients are ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedules {
    pub train: Schedule,
    pub evaluate: Schedule,
    pub send: Schedule,
    /// Blocks below this one are not walked back: nothing in them or under them is trained.
    pub first_backward: usize,
}

impl Schedules {
    /// For adapters, which sit on every layer. The base is frozen, so a unit that is whole at the end of a pass is as good for
    /// the next one, and update follows update without a link that stands idle.
    pub fn of(model: &Model) -> Schedules {
        let Schedules { train, evaluate, send, first_backward } = Schedules::from_block(model, 0);
        Schedules { train: train.repeated(), evaluate, send, first_backward }
    }

    /// For weights, which change, so that no pass begins with what the one before has gathered. The way back ends at the lowest
    /// block of which something is trained.
    pub fn of_weights(model: &Model, set: &WeightSet) -> Schedules {
        let is_trained = |block: &Block| block.backward_units().iter().any(|unit| set.has(*unit));
        let lowest = model.blocks.iter().position(is_trained).unwrap_or(model.blocks.len());
        Schedules::from_block(model, if set.has(model.embedding.unit) { 0 } else { lowest })
    }

    fn from_block(model: &Model, first_backward: usize) -> Schedules {
        let mut forward = Schedule::default();
        forward.push(&[model.embedding.unit]);
        for block in &model.blocks {
            forward.push(&block.forward_units());
        }
        forward.push(&[model.head.unit]);
        let (mut train, mut send) = (forward.clone(), Schedule::default());
        send.push(&[model.head.unit]);
        for block in model.blocks[first_backward..].iter().rev() {
            train.push(&block.backward_units());
            send.push(&block.backward_units());
        }
        send.push(&[model.embedding.unit]);
        Schedules { train, evaluate: forward, send, first_backward }
    }
}
