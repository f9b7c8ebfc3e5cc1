//! Memory on the GPU with a shape that is being written, until it becomes a tensor.

use std::ffi::c_void;
use std::sync::Arc;

use scout_core::{ByteCount, DType, Shape};

use super::arena::Block;
use super::device::CudaDevice;
use super::region::Region;
use super::stream::Stream;
use crate::tensor::Tensor;
use crate::{DeviceError, Purpose, Result};

/// Memory that may be written, because nobody else looks at it. Kernels write it as an argument `Out`; then it becomes
/// a [`Tensor`], which is only read.
pub struct DeviceBuffer {
    device: Arc<CudaDevice>,
    block: Arc<Block>,
    dtype: DType,
    shape: Shape,
}

impl DeviceBuffer {
    /// The beginning of `block`, which must be long enough.
    pub fn new(device: &Arc<CudaDevice>, block: Block, dtype: DType, shape: impl Into<Shape>) -> Result<DeviceBuffer> {
        let shape = shape.into();
        let wanted = dtype.size() * shape.num_elements() as u64;
        if wanted > block.bytes() {
            let expected = format!("at most {}", block.bytes());
            return Err(DeviceError::Shape { what: "buffer on the GPU", found: shape, expected });
        }
        Ok(DeviceBuffer { device: device.clone(), block: Arc::new(block), dtype, shape })
    }

    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    pub fn num_elements(&self) -> usize {
        self.shape.num_elements()
    }

    pub fn bytes(&self) -> ByteCount {
        self.dtype.size() * self.num_elements() as u64
    }

    pub(crate) fn address(&self) -> u64 {
        self.block.address()
    }

    pub(crate) fn block(&self) -> &Block {
        &self.block
    }

    /// Queues on the stream that is home to the memory, the compute stream for working memory: every byte becomes 0.
    pub fn clear(&mut self) -> Result<()> {
        self.must_be_alone("clear")?;
        self.block.fill(0)
    }

    /// The same memory as a tensor, for as long as the tensor and its clones live. Until then it cannot be written.
    pub fn view(&self) -> Tensor {
        let region = Region { device: self.device.clone(), block: self.block.clone(), start: 0 };
        Tensor::on_device(region, self.shape.clone(), self.dtype)
    }

    /// Gives the memory over to a tensor.
    pub fn into_tensor(self) -> Tensor {
        let region = Region { device: self.device, block: self.block, start: 0 };
        Tensor::on_device(region, self.shape, self.dtype)
    }

    /// The other way round. Fails when something else looks at the memory, or when `tensor` is a part of it.
    pub fn from_tensor(tensor: Tensor) -> Result<DeviceBuffer> {
        const WHAT: &str = "tensor to be written in place";
        let (shape, dtype) = (tensor.shape().clone(), tensor.dtype());
        let region = tensor.into_region(WHAT)?;
        if region.start != 0 {
            return Err(DeviceError::Value { what: WHAT, problem: "found a part of a larger tensor".to_string() });
        }
        let buffer = DeviceBuffer { device: region.device, block: region.block, dtype, shape };
        buffer.must_be_alone(WHAT)?;
        Ok(buffer)
    }

    /// Fails while tensors look at this memory.
    pub(super) fn must_be_alone(&self, what: &'static str) -> Result<()> {
        match Arc::strong_count(&self.block) {
            1 => Ok(()),
            count => {
                let problem = format!("found {} tensors that read the memory to be written", count - 1);
                Err(DeviceError::Value { what, problem })
            }
        }
    }

    /// Queues on the compute stream: elements from `start` on become those of `from`, which has the same element type.
    pub fn copy_from(&mut self, start: usize, from: &Tensor) -> Result<()> {
        let compute = self.device.compute().clone();
        self.copy_from_on(start, from, &compute)
    }

    /// As [`DeviceBuffer::copy_from`], on another stream, which has to wait for whatever was queued on either side before.
    pub fn copy_from_on(&mut self, start: usize, from: &Tensor, stream: &Arc<Stream>) -> Result<()> {
        const WHAT: &str = "copy on the GPU";
        self.must_be_alone(WHAT)?;
        if from.dtype() != self.dtype {
            return Err(DeviceError::DType { what: WHAT, found: from.dtype(), expected: self.dtype });
        }
        if start.checked_add(from.num_elements()).is_none_or(|end| end > self.num_elements()) {
            let expected = format!("at most {} elements", self.num_elements().saturating_sub(start));
            return Err(DeviceError::Shape { what: WHAT, found: from.shape().clone(), expected });
        }
        let region = from.region(WHAT)?;
        let (context, bytes) = (self.block.context(), from.bytes().0 as usize);
        if !Arc::ptr_eq(context, region.block.context()) {
            let problem = "found a tensor on another device".to_string();
            return Err(DeviceError::Value { what: WHAT, problem });
        }
        if bytes == 0 {
            return Ok(());
        }
        region.block.fence_when_dropped(stream);
        let to = self.address() + (self.dtype.size() * start as u64).0;
        let driver = context.driver()?;
        // SAFETY: the range was checked above; nobody else looks at this buffer, so the two do not overlap; both blocks
        // stay until the stream is done with them.
        let code = unsafe { (driver.cuMemcpyDtoDAsync_v2)(to, region.address(), bytes, stream.raw()) };
        context.check("cuMemcpyDtoDAsync", code)?;
        self.block.fence_now(stream)
    }

    /// Copies `bytes` over all of the buffer, on the compute stream. Stops the host until they are there: for loading
    /// and tests; [`super::Pinned::upload`] does not stop it.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.must_be_alone("copy to the GPU")?;
        if bytes.len() as u64 != self.bytes().0 {
            let problem = format!("found {} bytes, expected {}", bytes.len(), self.bytes().0);
            return Err(DeviceError::Value { what: "copy to the GPU", problem });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let (context, stream) = (self.block.context(), self.device.compute());
        // The driver may wait for what was queued before, without a deadline.
        stream.finish(self.device.patience())?;
        self.block.fence_when_dropped(stream);
        let driver = context.driver()?;
        let from = bytes.as_ptr().cast::<c_void>();
        // SAFETY: both sides have as many bytes, nobody else looks at the buffer, and `bytes` is borrowed until the
        // stream is done, below; where waiting fails the context is lost and reads no more.
        let code = unsafe { (driver.cuMemcpyHtoDAsync_v2)(self.address(), from, bytes.len(), stream.raw()) };
        context.check("cuMemcpyHtoDAsync", code)?;
        stream.finish(self.device.patience())
    }
}

impl CudaDevice {
    /// Working memory of this shape, with arbitrary contents.
    pub fn buffer(self: &Arc<CudaDevice>, dtype: DType, shape: impl Into<Shape>) -> Result<DeviceBuffer> {
        let shape = shape.into();
        let bytes = (dtype.size() * shape.num_elements() as u64).0 as usize;
        DeviceBuffer::new(self, self.working_memory().take(Purpose::Activations, bytes)?, dtype, shape)
    }

    /// Working memory of this shape, all bits 0.
    pub fn zeros(self: &Arc<CudaDevice>, dtype: DType, shape: impl Into<Shape>) -> Result<DeviceBuffer> {
        let mut buffer = self.buffer(dtype, shape)?;
        buffer.clear()?;
        Ok(buffer)
    }
}
