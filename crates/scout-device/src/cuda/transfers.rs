//! Elements on their way between the host and the GPU: all at once, while the host waits, or by way of pinned memory,
//! while neither of the two stops.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use scout_core::DType;

use super::device::CudaDevice;
use super::memory::DeviceBuffer;
use super::pinned::{Copying, Pinned};
use super::stream::Stream;
use crate::device::Device;
use crate::tensor::{Tensor, elsewhere};
use crate::{DeviceError, Result};

impl Tensor {
    /// The same elements on `device`. A tensor that is there already shares its memory. Stops the host until they are
    /// there: for loading and for tests.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        self.to_device_as(device, self.dtype())
    }

    /// As [`Tensor::to_device`], from f32 rounded to bf16 when that is asked for.
    pub fn to_device_as(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        const WHAT: &str = "tensor to the GPU";
        let Device::Cuda(device) = device else { return self.to_host() };
        if let Some(found) = self.cuda() {
            return match Arc::ptr_eq(found, device) && self.dtype() == dtype {
                true => Ok(self.clone()),
                false => Err(elsewhere(WHAT, "the host", found)),
            };
        }
        let bytes: Vec<u8> = match (self.dtype(), dtype) {
            (DType::F32, DType::F32) => bytemuck::cast_slice(&self.f32s()?).to_vec(),
            (DType::U32, DType::U32) => bytemuck::cast_slice(&self.u32s()?).to_vec(),
            (DType::F32, DType::BF16) => {
                let rounded: Vec<bf16> = self.f32s()?.iter().map(|&value| bf16::from_f32(value)).collect();
                bytemuck::cast_slice(&rounded).to_vec()
            }
            (found, expected) => return Err(DeviceError::DType { what: WHAT, found, expected }),
        };
        let mut buffer = device.buffer(dtype, self.shape().clone())?;
        buffer.write_bytes(&bytes)?;
        Ok(buffer.into_tensor())
    }
}

impl CudaDevice {
    /// The same elements, f32 or u32, on the GPU. Queues the copy on the compute stream; waits only where
    /// many copies before it are still under way.
    pub fn send(self: &Arc<CudaDevice>, tensor: &Tensor) -> Result<Tensor> {
        let mut buffer = self.buffer(tensor.dtype(), tensor.shape().clone())?;
        let len = tensor.bytes().0 as usize;
        if len == 0 {
            return Ok(buffer.into_tensor());
        }
        let mut upload = |from: &[u8]| -> Result<(Copying, usize)> {
            let (mut pinned, room) = self.uploads().take(self.context(), self.patience(), len)?;
            pinned.bytes_mut()[..len].copy_from_slice(from);
            Ok((pinned.upload(&mut buffer, self.compute())?, room))
        };
        let (copying, room) = match tensor.dtype() {
            DType::F32 => upload(bytemuck::cast_slice(&tensor.f32s()?))?,
            DType::U32 => upload(bytemuck::cast_slice(&tensor.u32s()?))?,
            found => return Err(DeviceError::DType { what: "tensor to the GPU", found, expected: DType::F32 }),
        };
        self.uploads().put(copying, room);
        Ok(buffer.into_tensor())
    }
}

impl Pinned {
    /// Queues a copy of the first bytes of `self` over all of `to`. Later work on `stream` finds them there; work on
    /// other streams has to wait for an event of it.
    pub fn upload(self, to: &mut DeviceBuffer, stream: &Arc<Stream>) -> Result<Copying> {
        let bytes = to.bytes().0 as usize;
        // SAFETY: the buffer has `bytes` bytes, and `to` is borrowed alone; its block learns of the stream.
        unsafe { self.copy_to((to.block(), to.address()), bytes, stream) }
    }

    /// Queues a copy of the first bytes of `self` over elements `range` of `to`. As for [`Pinned::upload`], other streams
    /// have to wait for it; copies to parts that do not overlap may be under way together.
    pub fn upload_part(self, to: &mut DeviceBuffer, range: Range<usize>, stream: &Arc<Stream>) -> Result<Copying> {
        let element = to.dtype().size();
        let bytes = (element * range.len() as u64).0 as usize;
        if range.start > range.end || range.end > to.num_elements() {
            let problem = format!("found elements {range:?}, expected at most {}", to.num_elements());
            return Err(DeviceError::Value { what: "copy to a part of a buffer", problem });
        }
        to.must_be_alone("copy to a part of a buffer")?;
        let address = to.address() + (element * range.start as u64).0;
        // SAFETY: the range was checked above, and nobody reads `to`, whose block learns of the stream.
        unsafe { self.copy_to((to.block(), address), bytes, stream) }
    }

    /// Queues a copy of `from`, a tensor on the GPU, to the first bytes of `self`.
    pub fn download(self, from: &Tensor, stream: &Arc<Stream>) -> Result<Copying> {
        let region = from.region("download to pinned memory")?;
        // SAFETY: the tensor's elements lie in its block, from its address on.
        unsafe { self.copy_from((&region.block, region.address()), from.bytes().0 as usize, stream) }
    }
}
