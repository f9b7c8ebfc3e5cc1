//! What one pass through the model carries beside activations and weights.

use std::cell::{Cell, RefCell};
use std::fmt;

use scout_device::{Dealt, Evenness, RowExchange, Tensor};

use crate::batch::{Batch, Routes};
use crate::lora::LoraWeights;

/// What a block keeps for its backward pass; the rest is computed again there, with the stored routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything but what a norm or an activation function gives back in one sweep.
    Everything,
    /// Everything but the gate and up halves of the experts, the widest tensors of a layer.
    AllButGateUp,
    /// The block's input, and which expert each token chose.
    InputOnly,
}

impl Keep {
    fn next_more(self) -> Keep {
        match self {
            Keep::InputOnly => Keep::AllButGateUp,
            Keep::AllButGateUp | Keep::Everything => Keep::Everything,
        }
    }
}

/// What each layer keeps: all of them the least of it, and some the next more. Between two ways of keeping this is how memory
/// that is left over saves work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    pub least: Keep,
    /// Layers that keep the next more, evenly among all.
    pub num_more: usize,
    num_layers: usize,
}

impl Keeping {
    /// Some of `num_layers` keep more.
    pub fn mixed(least: Keep, num_more: usize, num_layers: usize) -> Keeping {
        assert!(0 < num_more && num_more < num_layers, "{num_more} of {num_layers} are all or none");
        Keeping { least, num_more, num_layers }
    }

    pub fn of_layer(self, layer_index: usize) -> Keep {
        let keeps_more = self.num_more > 0 && lies_evenly(layer_index, self.num_more, self.num_layers);
        if keeps_more { self.least.next_more() } else { self.least }
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let num_least = self.num_layers - self.num_more;
        match (self.least, self.num_more) {
            (Keep::Everything, _) => write!(f, "all kept"),
            (Keep::AllButGateUp, 0) => write!(f, "gate and up computed again"),
            (Keep::AllButGateUp, _) => write!(f, "gate and up of {num_least} again"),
            (Keep::InputOnly, 0) => write!(f, "blocks computed again"),
            (Keep::InputOnly, more) => write!(f, "blocks of {num_least}, gate and up of {more} again"),
        }
    }
}

/// Of layers that all keep the same.
impl From<Keep> for Keeping {
    fn from(keep: Keep) -> Keeping {
        Keeping { least: keep, num_more: 0, num_layers: 0 }
    }
}

/// Whether one of `all` is among `count` that lie evenly among them, the first one first.
pub fn lies_evenly(index: usize, count: usize, all: usize) -> bool {
    index * count % all < count
}

/// How much ranks keep of what they make of rows that come to their experts. How many come follows from the data; so a rank
/// keeps gate and up of them as long as there is room, and of the layers behind that makes them again.
#[derive(Debug)]
pub struct KeptRows {
    /// Of each rank, in all layers of a pass.
    most: usize,
    of_ranks: RefCell<Vec<usize>>,
}

/// What is kept of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptOfLayer {
    pub by_this_rank: bool,
    /// Else rows must set out once more.
    pub by_all_ranks: bool,
}

impl KeptOfLayer {
    pub const NOTHING: KeptOfLayer = KeptOfLayer { by_this_rank: false, by_all_ranks: false };
    pub const ALL: KeptOfLayer = KeptOfLayer { by_this_rank: true, by_all_ranks: true };
}

impl KeptRows {
    pub fn at_most(most: usize) -> KeptRows {
        KeptRows { most, of_ranks: RefCell::default() }
    }

    /// To be called for each layer that is to be kept, by all ranks alike: each knows what all keep.
    pub fn keep(&self, dealt: &Dealt) -> KeptOfLayer {
        let mut of_ranks = self.of_ranks.borrow_mut();
        of_ranks.resize(dealt.num_ranks(), 0);
        let mut kept = KeptOfLayer::ALL;
        for (rank, kept_before) in of_ranks.iter_mut().enumerate() {
            let with_these = *kept_before + dealt.num_arriving_at(rank);
            if with_these <= self.most {
                *kept_before = with_these;
                continue;
            }
            kept.by_all_ranks = false;
            kept.by_this_rank &= rank != dealt.rank();
        }
        kept
    }
}

/// Dropout of this pass: every adapter sees the same batch with different elements dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    pub probability: f32,
    pub seed: u64,
    pub step: u64,
}

#[derive(Debug)]
pub struct Pass<'a> {
    pub batch: &'a Batch,
    pub lora: &'a LoraWeights,
    pub dropout: Option<Dropout>,
    pub keep: Keeping,
    pub routes: Option<&'a Routes>,
    /// Where other ranks keep some of the experts: how rows get there. Then units of experts are this rank's own.
    pub exchange: Option<&'a dyn RowExchange>,
    pub kept_rows: KeptRows,
    /// Of the rows that have come to experts so far.
    pub evenness: Cell<Evenness>,
}

impl Pass<'_> {
    pub(crate) fn count_arrivals(&self, dealt: &Dealt) {
        self.evenness.set(self.evenness.get() + Evenness::of(dealt));
    }
}

/// Sees intermediate tensors by name; training sees none of them.
pub trait Trace {
    /// Whether tensors are wanted at all, so that none is made only to be thrown away.
    fn is_on(&self) -> bool;
    fn record(&mut self, name: &str, tensor: &Tensor);

    /// Records a tensor of a layer: `layer.3.attn_in`.
    fn record_layer(&mut self, layer_index: usize, name: &str, tensor: &Tensor) {
        if self.is_on() {
            self.record(&format!("layer.{layer_index}.{name}"), tensor);
        }
    }
}

pub struct NoTrace;

impl Trace for NoTrace {
    fn is_on(&self) -> bool {
        false
    }

    fn record(&mut self, _name: &str, _tensor: &Tensor) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_keep_rows_as_long_as_there_is_room_and_know_it_of_each_other() {
        // One expert on each of two ranks: what each sends to the first, and to the second.
        let dealt = |rank, to_first: u32, to_second: u32| {
            let own = vec![0, to_first, to_first + to_second];
            Dealt::new(rank, vec![own.clone(), own]).unwrap()
        };
        let layers = [(2, 3), (4, 1), (1, 1), (0, 4), (0, 1)];
        let [first, second] = [0, 1].map(|rank| {
            let kept = KeptRows::at_most(12);
            layers.map(|(to_first, to_second)| kept.keep(&dealt(rank, to_first, to_second)))
        });
        // 4, 12, 14 and 6, 8, 10, 18, 12 rows: of what does not fit nothing is kept, and the next may fit again.
        let own = |kept: [KeptOfLayer; 5]| kept.map(|kept| kept.by_this_rank);
        assert_eq!(own(first), [true, true, false, true, true]);
        assert_eq!(own(second), [true, true, true, false, true]);
        let all = [first, second].map(|kept| kept.map(|kept| kept.by_all_ranks));
        assert_eq!(all, [[true, true, false, false, true]; 2]);
    }
}
