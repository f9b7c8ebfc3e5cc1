//! A few whole numbers on their way from the GPU to the host: what a host must know to queue its next work.

use std::sync::{Arc, Mutex, OnceLock};

use scout_core::DType;

use super::device::CudaDevice;
use super::envelopes::Envelopes;
use super::pinned::Copying;
use super::stream::Stream;
use crate::tensor::Tensor;
use crate::{DeviceError, Result};

/// Numbers that were sent to the host and are read, there, as late as possible: between sending and reading the host
/// queues other work, so that the GPU has something to do while the host waits.
pub struct Numbers {
    device: Arc<CudaDevice>,
    len: usize,
    coming: Mutex<Option<Copying>>,
    here: OnceLock<Vec<u32>>,
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.here.get() {
            Some(numbers) => numbers.fmt(f),
            None => write!(f, "{} numbers under way from {:?}", self.len, self.device),
        }
    }
}

impl Numbers {
    /// Queues a copy of `tensor`, at most 1,024 whole numbers, behind what the compute stream has to do. Does not wait.
    pub fn send(device: &Arc<CudaDevice>, tensor: &Tensor) -> Result<Numbers> {
        // Not on the copy stream, which may have whole layers in front of these few bytes.
        Numbers::send_on(device, tensor, device.compute())
    }

    /// As [`Numbers::send`], on another stream.
    pub fn send_on(device: &Arc<CudaDevice>, tensor: &Tensor, stream: &Arc<Stream>) -> Result<Numbers> {
        const WHAT: &str = "numbers for the host";
        if tensor.dtype() != DType::U32 {
            return Err(DeviceError::DType { what: WHAT, found: tensor.dtype(), expected: DType::U32 });
        }
        if tensor.bytes() > Envelopes::ROOM {
            let expected = format!("at most {} numbers", Envelopes::ROOM.0 / 4);
            return Err(DeviceError::Shape { what: WHAT, found: tensor.shape().clone(), expected });
        }
        let pinned = device.envelopes().take(device.context())?;
        let copying = pinned.download(tensor, stream)?;
        let len = tensor.num_elements();
        Ok(Numbers { device: device.clone(), len, coming: Mutex::new(Some(copying)), here: OnceLock::new() })
    }

    /// The numbers. The first call stops the host until they are there.
    pub fn get(&self) -> Result<&[u32]> {
        let mut coming = self.coming.lock().expect("no holder of this lock panics");
        if let Some(copying) = coming.take() {
            let pinned = copying.wait(self.device.patience())?;
            let words = pinned.bytes()[..4 * self.len].as_chunks::<4>().0;
            let numbers = words.iter().map(|&word| u32::from_ne_bytes(word)).collect();
            self.here.set(numbers).expect("a message is read once");
            self.device.envelopes().give(pinned);
        }
        drop(coming);
        self.here.get().map(Vec::as_slice).ok_or_else(|| DeviceError::Value {
            what: "numbers for the host",
            problem: "found a message that failed before, expected one that arrived".to_string(),
        })
    }
}
