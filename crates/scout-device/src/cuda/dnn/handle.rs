//! cuDNN's own state for a device.

use std::ptr;

use cudarc::cudnn::sys;

use super::api::{Api, RawHandle};
use crate::Result;

/// Made for the device whose context is current; graphs are planned and run with it.
pub(super) struct Handle {
    raw: RawHandle,
    api: Api,
}

impl Handle {
    pub fn new(api: Api) -> Result<Handle> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is a place for one handle.
        let code = unsafe { (api.table.cudnnCreate)(&mut raw) };
        api.check("cudnnCreate", code, || "a handle".to_string())?;
        Ok(Handle { raw, api })
    }

    pub fn raw(&self) -> RawHandle {
        self.raw
    }

    /// # Safety
    /// `stream` must be live until the last call that follows on this handle has been made.
    pub unsafe fn set_stream(&self, stream: sys::cudaStream_t) -> Result<()> {
        // SAFETY: the handle is live; the caller vouches for the stream.
        let code = unsafe { (self.api.table.cudnnSetStream)(self.raw, stream) };
        self.api.check("cudnnSetStream", code, || "a stream".to_string())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: live until here. A refusal leaves nothing to be done.
        let _ = unsafe { (self.api.table.cudnnDestroy)(self.raw) };
    }
}
