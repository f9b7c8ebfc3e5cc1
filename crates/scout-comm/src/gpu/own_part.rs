//! This rank's own part of a unit. It crosses no link, so it is copied on a stream beside the one where others' parts come in,
//! and the next unit does not wait for it: under products such a copy goes at a quarter of its speed alone.

use std::sync::Arc;

use scout_core::Rank;
use scout_device::cuda::{CudaDevice, DeviceBuffer, Event, Priority, Stream};

use super::gather::Part;
use crate::error::Result;

pub(super) struct OwnPart {
    rank: Rank,
    beside: Arc<Stream>,
}

impl OwnPart {
    pub fn of(rank: Rank, device: &Arc<CudaDevice>) -> scout_device::Result<OwnPart> {
        Ok(OwnPart { rank, beside: Arc::new(Stream::new(device.context(), Priority::High)?) })
    }

    pub fn stream(&self) -> &Arc<Stream> {
        &self.beside
    }

    /// Queues that `part`, unless it stays where it is, becomes this rank's of `full`, which may be written when `stream` comes
    /// to where it is now. The event is past when it has.
    pub fn copy(&self, part: Part, full: &mut DeviceBuffer, stream: &Stream) -> Result<Option<Event>> {
        if part.stays {
            return Ok(None);
        }
        self.beside.wait_for(&stream.record()?)?;
        full.copy_from_on(self.rank.0 * part.tensor.num_elements(), part.tensor, &self.beside)?;
        Ok(Some(self.beside.record()?))
    }
}
