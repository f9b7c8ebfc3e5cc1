//! Where the elements of a tensor on a GPU lie.

use std::ffi::c_void;
use std::sync::Arc;

use super::arena::Block;
use super::device::CudaDevice;
use crate::Result;

/// Where the elements of a tensor lie: a block, shared with other looks at it, and a byte in it.
#[derive(Clone)]
pub(crate) struct Region {
    pub(crate) device: Arc<CudaDevice>,
    pub(crate) block: Arc<Block>,
    pub(crate) start: u64,
}

impl Region {
    pub(crate) fn address(&self) -> u64 {
        self.block.address() + self.start
    }
}

/// The elements of a tensor on the GPU. Stops the host until everything queued before is done.
pub(crate) fn read<E: bytemuck::Pod>(region: &Region, len: usize) -> Result<Vec<E>> {
    let mut elements = vec![E::zeroed(); len];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut elements);
    if bytes.is_empty() {
        return Ok(elements);
    }
    let (context, stream) = (region.block.context(), region.device.compute());
    // Here, where waiting has a deadline, and not in the driver.
    stream.finish(region.device.patience())?;
    region.block.fence_when_dropped(stream);
    let driver = context.driver()?;
    let to = bytes.as_mut_ptr().cast::<c_void>();
    // SAFETY: the caller's tensor has `len` elements from its address on, and so has `elements`, which is neither read
    // nor dropped before the copy is done: from copies to memory that is not pinned the driver returns when they are.
    let code = unsafe { (driver.cuMemcpyDtoHAsync_v2)(to, region.address(), bytes.len(), stream.raw()) };
    context.check("cuMemcpyDtoHAsync", code)?;
    stream.finish(region.device.patience())?;
    Ok(elements)
}
