//! Host memory that the GPU reads and writes by itself, and copies that own it while they are under way.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Duration;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use scout_core::{ByteCount, DType};

use super::arena::Block;
use super::context::Context;
use super::stream::{Event, Stream};
use crate::{DeviceError, Lease, Purpose, Result};

/// Page-locked bytes on the host.
pub struct Pinned {
    context: Arc<Context>,
    start: NonNull<u8>,
    len: usize,
    _lease: Lease,
}

// SAFETY: the bytes are owned, like those of a `Vec`; the driver frees them from any thread.
unsafe impl Send for Pinned {}
// SAFETY: shared access only reads.
unsafe impl Sync for Pinned {}

/// A copy between host and GPU that is under way and owns the host's side of it. Forgetting or dropping it too early
/// wastes that memory, but nobody can read or free what the GPU still uses.
#[must_use = "the memory can be used again only after `wait`"]
pub struct Copying {
    pinned: Option<Pinned>,
    done: Event,
}

impl Pinned {
    /// `len` zeros. Slow, so it is made once and used again; an error inside of a steady step.
    pub fn zeros(context: &Arc<Context>, len: usize) -> Result<Pinned> {
        let lease = context.account.lease(Purpose::Pinned, ByteCount(len as u64))?;
        context.count_allocation("pinned host memory")?;
        let mut start: *mut c_void = null_mut();
        let driver = context.driver()?;
        // SAFETY: writes one pointer.
        let code = unsafe { (driver.cuMemHostAlloc)(&mut start, len.max(1), 0) };
        context.check("cuMemHostAlloc", code)?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| DeviceError::Value {
            what: "pinned memory",
            problem: "found no memory, expected some after a successful allocation".to_string(),
        })?;
        // SAFETY: the driver just gave these bytes to us alone.
        unsafe { start.as_ptr().write_bytes(0, len) };
        Ok(Pinned { context: context.clone(), start, len, _lease: lease })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated and set in `zeros`, and no copy is under way: it would own `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Writes `values` from the beginning on, as f32 or rounded to bf16.
    pub fn write_f32s(&mut self, values: &[f32], dtype: DType) -> Result<()> {
        let bytes = (dtype.size() * values.len() as u64).0 as usize;
        self.must_hold(bytes)?;
        let to = &mut self.bytes_mut()[..bytes];
        match dtype {
            DType::F32 => to.copy_from_slice(bytemuck::cast_slice(values)),
            DType::BF16 => {
                let rounded: &mut [bf16] = bytemuck::cast_slice_mut(to);
                rounded.convert_from_f32_slice(values);
            }
            found => return Err(DeviceError::DType { what: "pinned memory", found, expected: DType::BF16 }),
        }
        Ok(())
    }

    /// Queues a copy of the first `bytes` of `self` to `address`, which lies in `block`. Later work on `stream` finds them
    /// there; work on other streams has to wait for an event of it.
    ///
    /// # Safety
    ///
    /// `block` has `bytes` from `address` on. No tensor looks at them, and what uses them next comes behind the copy: on
    /// `stream`, or after an event of it.
    pub(super) unsafe fn copy_to(
        self,
        (block, address): (&Block, u64),
        bytes: usize,
        stream: &Arc<Stream>,
    ) -> Result<Copying> {
        self.must_hold(bytes)?;
        block.fence_when_dropped(stream);
        let driver = self.context.driver()?;
        let from = self.start.as_ptr().cast::<c_void>();
        // SAFETY: both sides have `bytes` bytes (`must_hold`, and the caller's promise), the block knows of the stream, and
        // the result owns the host's side until the event has passed.
        let code = unsafe { (driver.cuMemcpyHtoDAsync_v2)(address, from, bytes, stream.raw()) };
        self.context.check("cuMemcpyHtoDAsync", code)?;
        Ok(Copying { done: stream.record()?, pinned: Some(self) })
    }

    /// Queues a copy of the `bytes` at `address`, which lies in `block`, to the first bytes of `self`.
    ///
    /// # Safety
    ///
    /// `block` has `bytes` from `address` on.
    pub(super) unsafe fn copy_from(
        self,
        (block, address): (&Block, u64),
        bytes: usize,
        stream: &Arc<Stream>,
    ) -> Result<Copying> {
        self.must_hold(bytes)?;
        block.fence_when_dropped(stream);
        let driver = self.context.driver()?;
        let to = self.start.as_ptr().cast::<c_void>();
        // SAFETY: both sides have `bytes` bytes (`must_hold`, and the caller's promise), the block stays until `stream` is
        // done with it, and the result owns the host's side until the event has passed.
        let code = unsafe { (driver.cuMemcpyDtoHAsync_v2)(to, address, bytes, stream.raw()) };
        self.context.check("cuMemcpyDtoHAsync", code)?;
        Ok(Copying { done: stream.record()?, pinned: Some(self) })
    }

    fn must_hold(&self, bytes: usize) -> Result<()> {
        if bytes <= self.len {
            return Ok(());
        }
        let problem = format!("found {} bytes of pinned memory, expected at least {bytes}", self.len);
        Err(DeviceError::Value { what: "copy between host and GPU", problem })
    }
}

impl Copying {
    /// Stops the host until the copy is done, and gives the host's side back. Fails after `deadline`.
    pub fn wait(mut self, deadline: Duration) -> Result<Pinned> {
        self.done.wait(deadline)?;
        Ok(self.pinned.take().expect("held until here"))
    }

    /// To make another stream wait for the copy.
    pub fn done(&self) -> &Event {
        &self.done
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned.take()
            && !self.done.is_past().unwrap_or(false)
        {
            // Lost rather than freed under the GPU's hands; waiting here could take for ever.
            std::mem::forget(pinned);
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let Ok(driver) = self.context.driver() else { return };
        // SAFETY: allocated in `zeros`, freed once; no copy is under way, it would own `self`.
        let _ = unsafe { (driver.cuMemFreeHost)(self.start.as_ptr().cast()) };
    }
}
