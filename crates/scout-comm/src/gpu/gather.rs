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
    /// Readers find it where it is. What comes to lie at its place in the whole unit has no meaning, and is best not
    /// moved at all: a copy inside of a GPU costs arithmetic more than one from another GPU.
    pub stays: bool,
}

/// A way from the parts that all ranks keep to whole units. Every rank gathers the same units in the same order.
pub(super) trait Gather: Send + Sync {
    /// Where gathers begin, one behind the other: the memory of a result may be written when this stream comes to it.
    fn stream(&self) -> &Arc<Stream>;

    /// Queues that `full` becomes the parts of all ranks in their order. `part` is this rank's. The two lie in the arenas that
    /// the way was opened with, of which others have one mapped: nobody writes to parts while gathers are under way. Readers
    /// wait for all of the events.
    fn queue(&self, part: Part, full: &mut DeviceBuffer) -> Result<Vec<Event>>;
}
