//! The GPUs of a job as one group: sums of trained numbers, and their parts brought together again.

use std::ops::Range;
use std::sync::Arc;

use scout_core::{DType, Mesh};
use scout_device::cuda::{CudaDevice, DeviceBuffer, Nccl, Priority, Settings, Stream};

use super::{exchange, nccl};
use crate::communicator::Communicator;
use crate::error::Result;

/// How a sum beside arithmetic is named in profiles and traces.
pub const SUM: &str = "reduce-scatter, NCCL";

/// Gradients are summed on a stream of their own, under what is left of the backward pass; updated numbers are brought together
/// on the compute stream. Events order the two both ways, so that of the group's own collectives one runs at a time.
pub struct GpuGroup {
    mesh: Mesh,
    device: Arc<CudaDevice>,
    nccl: Arc<Nccl>,
    sums: Arc<Stream>,
}

impl GpuGroup {
    /// Every rank calls it with the GPU that is its own. Waits until all have come. Then NCCL has taken the memory that its
    /// collectives need, so that what is free is free for a run.
    pub fn connect(device: &Arc<CudaDevice>, comm: &dyn Communicator) -> Result<GpuGroup> {
        let nccl = nccl::connect(device, comm, Settings::default())?;
        // No higher than arithmetic: a sum that comes late is waited for once, at the end.
        let sums = exchange::must_agree(comm, Stream::new(device.context(), Priority::Low))?;
        let group = GpuGroup { mesh: comm.mesh(), device: device.clone(), nccl: Arc::new(nccl), sums: Arc::new(sums) };
        exchange::must_agree(comm, group.begin())?;
        Ok(group)
    }

    /// The same group, whose arithmetic runs on `device` from now on: the same GPU, opened again.
    pub fn on(self, device: &Arc<CudaDevice>) -> GpuGroup {
        GpuGroup { device: device.clone(), ..self }
    }

    /// One collective of each kind, at the first of which NCCL connects and takes memory.
    fn begin(&self) -> scout_device::Result<()> {
        let size = self.mesh.size();
        let (mut full, mut part) = (self.device.buffer(DType::F32, [size])?, self.device.buffer(DType::F32, [1])?);
        full.clear()?;
        let stream = self.device.compute();
        self.nccl.reduce_scatter_part((&full, 0..size), (&mut part, 0..1), stream)?;
        self.nccl.all_gather_part((&part, 0..1), (&mut full, 0..size), stream)?;
        self.device.finish()
    }

    pub fn mesh(&self) -> Mesh {
        self.mesh
    }

    /// Queues, beside arithmetic, that elements `to` of `part` become this rank's part of the sum of elements `from` of all
    /// ranks' `full`. It begins when arithmetic that is queued by now is done, which is the last that writes `from`; later
    /// arithmetic may write the rest of `full`. What it found is there after [`GpuGroup::wait_for_sums`].
    pub fn reduce_scatter(
        &self,
        (full, from): (&DeviceBuffer, Range<usize>),
        (part, to): (&mut DeviceBuffer, Range<usize>),
    ) -> Result<()> {
        self.sums.wait_for(&self.device.compute().record()?)?;
        let queue = || self.nccl.reduce_scatter_part((full, from), (part, to), &self.sums);
        Ok(self.device.communicate(&self.sums, || SUM.to_string(), queue)?)
    }

    /// Later arithmetic begins when all sums that are queued by now are there. The host goes on.
    pub fn wait_for_sums(&self) -> Result<()> {
        let compute = self.device.compute();
        let wait = || compute.wait_for(&self.sums.record()?);
        Ok(self.device.communicate(compute, || "waiting for sums".to_string(), wait)?)
    }

    /// Queues among arithmetic that elements `to` of `full` become elements `from` of all ranks' `part`.
    pub fn all_gather(
        &self,
        (part, from): (&DeviceBuffer, Range<usize>),
        (full, to): (&mut DeviceBuffer, Range<usize>),
    ) -> Result<()> {
        let compute = self.device.compute();
        let queue = || self.nccl.all_gather_part((part, from), (full, to), compute);
        Ok(self.device.communicate(compute, || "all-gather, NCCL".to_string(), queue)?)
    }

    /// Every rank calls it when all have come to a good end. Dropped without, the group is left to the end of the process.
    pub fn leave(&self) {
        self.nccl.leave();
    }

    /// Fails when NCCL has noticed on its own that something went wrong.
    pub fn check(&self) -> Result<()> {
        Ok(self.nccl.check()?)
    }
}
