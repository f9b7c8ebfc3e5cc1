//! What it means to bring the parts of a unit together on GPUs. Who keeps the memory, and when a gather begins, is decided
//! by whoever asks.

use std::sync::Arc;

use scout_device::Tensor;
use scout_device::cuda::{DeviceBuffer, Event, Stream};

use crate::error::Result;

/// This rank's part of a unit.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub tensor: &'a Tensor,
    /// Readers find it where it is, and only the parts of others are brought together, beginning with the next rank's: it
    /// takes no memory twice, and a copy inside of a GPU costs arithmetic more than one from another GPU. Only for ways of
    /// which [`super::GatherWay::brings_others_alone`].
    pub stays: bool,
}

impl Part<'_> {
    /// Of how many parts a unit consists when it has come.
    pub(super) fn num_brought(&self, world_size: usize) -> usize {
        world_size - usize::from(self.stays)
    }

    /// Which of them is that of rank `from`, in the memory of rank `to`.
    pub(super) fn place(&self, from: usize, to: usize, world_size: usize) -> usize {
        if self.stays { (from + world_size - to - 1) % world_size } else { from }
    }
}

/// A way from the parts that all ranks keep to whole units. Every rank gathers the same units in the same order.
pub(super) trait Gather: Send + Sync {
    /// Where gathers begin, one behind the other: the memory of a result may be written when this stream comes to it.
    fn stream(&self) -> &Arc<Stream>;

    /// All streams that it queues on.
    fn streams(&self) -> Vec<Arc<Stream>>;

    /// Queues that `full` becomes the parts of all ranks in their order, or, where its own stays, of the others. `part` is this
    /// rank's. The two lie in the arenas that the way was opened with, of which others have one mapped: nobody writes to parts
    /// while gathers are under way. Readers wait for all of the events.
    fn queue(&self, part: Part, full: &mut DeviceBuffer) -> Result<Vec<Event>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_others_follow_each_other_from_the_next_rank_on() {
        let tensor = Tensor::from_f32(vec![0.0], [1]).unwrap();
        for world_size in [2, 3, 8] {
            let (stays, comes) = (Part { tensor: &tensor, stays: true }, Part { tensor: &tensor, stays: false });
            assert_eq!((stays.num_brought(world_size), comes.num_brought(world_size)), (world_size - 1, world_size));
            for to in 0..world_size {
                let from_next_on = (1..world_size).map(|step| (to + step) % world_size);
                let places: Vec<usize> = from_next_on.map(|from| stays.place(from, to, world_size)).collect();
                assert_eq!(places, (0..world_size - 1).collect::<Vec<_>>(), "into {to} of {world_size}");
                assert!((0..world_size).all(|from| comes.place(from, to, world_size) == from));
            }
        }
    }
}
