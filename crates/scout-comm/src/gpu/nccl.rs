//! Gathering by NCCL, and how its ranks meet.

use std::sync::Arc;

use scout_device::cuda::{CudaDevice, DeviceBuffer, Event, Nccl, NcclId, Settings, Stream};

use super::exchange;
use super::gather::{Gather, Part};
use crate::communicator::Communicator;
use crate::error::Result;
use crate::words;

pub(super) struct ByNccl {
    pub nccl: Arc<Nccl>,
    pub stream: Arc<Stream>,
}

impl Gather for ByNccl {
    fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    fn streams(&self) -> Vec<Arc<Stream>> {
        vec![self.stream.clone()]
    }

    fn queue(&self, part: Part, full: &mut DeviceBuffer) -> Result<Vec<Event>> {
        self.nccl.all_gather(part.tensor, full, &self.stream)?;
        Ok(vec![self.stream.record()?])
    }
}

/// Every rank calls it with the GPU that is its own. Waits until all have come; all fail where one does.
pub fn connect(device: &Arc<CudaDevice>, comm: &dyn Communicator, settings: Settings) -> Result<Nccl> {
    let mesh = comm.mesh();
    // Where it is missing on one rank, the others are not to wait for it inside of NCCL.
    let own = match mesh.is_first() {
        true => NcclId::new(device.context()),
        false => Nccl::must_be_there(device.context()).map(|()| NcclId::from_bytes([0; 128])),
    };
    let own = exchange::must_agree(comm, own)?;
    let id = NcclId::from_bytes(words::of_first_rank(comm, own.to_bytes())?);
    exchange::must_agree(comm, Nccl::new(device, &id, mesh.rank().0, mesh.size(), settings))
}
