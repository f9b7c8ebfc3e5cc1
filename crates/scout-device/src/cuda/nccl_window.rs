//! Memory of NCCL's making that lies alike on all ranks, in one of its windows: between such memory it can gather with copy
//! engines alone. How it is divided is not known here.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use super::communicator::Communicator;
use super::tables::NcclWindow;
use crate::Result;

pub struct WindowMemory {
    communicator: Arc<Communicator>,
    start: *mut c_void,
    window: NcclWindow,
}

// SAFETY: both pointers are only handed back to NCCL, the window under the communicator's lock.
unsafe impl Send for WindowMemory {}
// SAFETY: as above; shared access only reads the pointers.
unsafe impl Sync for WindowMemory {}

impl WindowMemory {
    /// Every rank calls this at the same point, with the same number of bytes.
    pub fn new(communicator: &Arc<Communicator>, bytes: usize) -> Result<WindowMemory> {
        const SYMMETRIC: i32 = 1;
        communicator.context().count_allocation("device memory")?;
        let mut start = null_mut();
        communicator.call("ncclMemAlloc", |nccl, _| {
            // SAFETY: writes one pointer before it returns.
            unsafe { (nccl.ncclMemAlloc)(&mut start, bytes) }
        })?;
        let mut memory = WindowMemory { communicator: communicator.clone(), start, window: null_mut() };
        // NCCL writes the window while it is watched. Where that was given up it may write late: the place stays for good.
        let place: *mut NcclWindow = Box::into_raw(Box::new(null_mut()));
        communicator.call("ncclCommWindowRegister", |nccl, raw| {
            // SAFETY: the bytes were just allocated; `place` outlives the call, and what it began.
            unsafe { (nccl.ncclCommWindowRegister)(raw, start, bytes, place, SYMMETRIC) }
        })?;
        // SAFETY: made from a box above, and NCCL is done with it.
        memory.window = *unsafe { Box::from_raw(place) };
        Ok(memory)
    }

    pub fn address(&self) -> u64 {
        self.start as u64
    }
}

impl Drop for WindowMemory {
    fn drop(&mut self) {
        let (start, window) = (self.start, self.window);
        // What an aborted communicator leaves behind stays until the process ends: peers may still have it mapped.
        let _ = self.communicator.call("ncclCommWindowDeregister", |nccl, raw| {
            // SAFETY: the window comes from this communicator, or is null, which does nothing.
            match unsafe { (nccl.ncclCommWindowDeregister)(raw, window) } {
                // SAFETY: allocated in `new`, freed once; whoever used the memory waited for the streams.
                0 => unsafe { (nccl.ncclMemFree)(start) },
                code => code,
            }
        });
    }
}
