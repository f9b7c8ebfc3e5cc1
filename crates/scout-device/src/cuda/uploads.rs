//! Small tensors on their way from the host to the GPU, while neither of the two stops.

use std::sync::{Arc, Mutex};

use scout_core::{ByteCount, DType};

use super::device::CudaDevice;
use super::pinned::{Copying, Pinned};
use crate::tensor::Tensor;
use crate::{DeviceError, Result};

/// The least that one piece of pinned memory holds: the index of 65,536 documents, or 262,144 tokens.
const ROOM: ByteCount = ByteCount(1 << 20);

/// Pinned memory of copies that are done, or soon will be. A steady step that sends no more at a time than an earlier
/// one did finds all it needs here.
#[derive(Default)]
pub(super) struct Uploads(Mutex<Vec<Upload>>);

struct Upload {
    copying: Copying,
    room: usize,
}

impl Uploads {
    /// Pinned memory of at least `bytes`, from a copy that is done, or fresh.
    fn take(&self, device: &CudaDevice, bytes: usize) -> Result<(Pinned, usize)> {
        let mut uploads = self.0.lock().expect("no holder of this lock panics");
        for index in 0..uploads.len() {
            if uploads[index].room >= bytes && uploads[index].copying.done().is_past()? {
                let Upload { copying, room } = uploads.swap_remove(index);
                return Ok((copying.wait(device.patience())?, room));
            }
        }
        let room = bytes.next_power_of_two().max(ROOM.0 as usize);
        Ok((Pinned::zeros(device.context(), room)?, room))
    }

    fn put(&self, copying: Copying, room: usize) {
        self.0.lock().expect("no holder of this lock panics").push(Upload { copying, room });
    }
}

impl CudaDevice {
    /// The same elements, f32 or u32, on the GPU. Queues the copy on the compute stream and does not wait.
    pub fn send(self: &Arc<CudaDevice>, tensor: &Tensor) -> Result<Tensor> {
        let mut buffer = self.buffer(tensor.dtype(), tensor.shape().clone())?;
        let len = tensor.bytes().0 as usize;
        if len == 0 {
            return Ok(buffer.into_tensor());
        }
        let (mut pinned, room) = self.uploads().take(self, len)?;
        let to = &mut pinned.bytes_mut()[..len];
        match tensor.dtype() {
            DType::F32 => to.copy_from_slice(bytemuck::cast_slice(&tensor.f32s()?)),
            DType::U32 => to.copy_from_slice(bytemuck::cast_slice(&tensor.u32s()?)),
            found => return Err(DeviceError::DType { what: "tensor to the GPU", found, expected: DType::F32 }),
        }
        let copying = pinned.upload(&mut buffer, self.compute())?;
        self.uploads().put(copying, room);
        Ok(buffer.into_tensor())
    }
}
