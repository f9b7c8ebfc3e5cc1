//! Where units become whole on a GPU: one arena, whose blocks are written by gathers and read by kernels in turns. How large
//! it must be, and where in it each unit lies, is known beforehand (`layout`).

use std::sync::Arc;
use std::time::Duration;

use scout_comm::Communicator;
use scout_comm::gpu::{Arriving, GatherWay, OpenWay, Part, Waits};
use scout_device::Tensor;
use scout_device::cuda::CudaDevice;

use crate::error::{Result, ShardError};
use crate::layout::RingLayout;
use crate::plan::{Schedule, ShardPlan};

/// The home of its memory is the stream of the gathers: a block that is dropped while kernels still read it leaves an event,
/// for which the next gather waits. So nothing but order on the GPU gives memory back, and the host never stops.
pub struct Ring {
    device: Arc<CudaDevice>,
    opened: OpenWay,
    layouts: Vec<(Schedule, RingLayout)>,
    waits: Waits,
}

impl Ring {
    /// For walks of `passes`, with [`ring_bytes`] of memory.
    pub fn new(device: &Arc<CudaDevice>, opened: OpenWay, plan: &ShardPlan, passes: &[&Schedule]) -> Ring {
        let layout = |&schedule: &&Schedule| (schedule.clone(), RingLayout::of(plan, schedule));
        let layouts = passes.iter().map(layout).collect();
        Ring { device: device.clone(), opened, layouts, waits: Waits::of(device) }
    }

    pub fn way(&self) -> GatherWay {
        self.opened.way()
    }

    /// The end of all gathering; every rank calls it. Without it the memory stays until the process ends.
    pub fn leave(self, comm: &dyn Communicator) -> Result<()> {
        self.opened.leave(comm).map_err(|cause| ShardError::Queue { cause: Box::new(cause) })
    }

    /// Where the units of a pass become whole.
    pub(crate) fn layout(&self, schedule: &Schedule) -> Option<&RingLayout> {
        self.layouts.iter().find(|(other, _)| other == schedule).map(|(_, layout)| layout)
    }

    /// Queues the gather of the unit `name`, of which `part` is this rank's, to byte `start` of the ring.
    pub(crate) fn start(&self, name: &str, part: Part, start: usize) -> Result<Arriving> {
        let gather = || self.opened.gather(part, start);
        let queued = self.device.communicate(self.opened.stream(), || name.to_string(), gather);
        queued.map_err(|cause| ShardError::Queue { cause: Box::new(cause) })
    }

    /// Lets arithmetic wait for a unit; the host goes on.
    pub(crate) fn finish(&self, arriving: Arriving) -> Result<Tensor> {
        Ok(self.waits.wait("waiting for units", || arriving.wait_on(self.device.compute()))?)
    }

    /// How long arithmetic has stood still for units. Stops the host until it is done with all that were handed out.
    pub fn waited(&self) -> Result<Duration> {
        Ok(self.waits.waited()?)
    }
}
