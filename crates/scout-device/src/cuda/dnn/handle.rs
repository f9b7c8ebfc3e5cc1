//! What graphs are planned for: a device at hand, or the description of one.

use std::ptr;

use cudarc::cudnn::sys;
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendDescriptorType_t as Kind;

use super::descriptor::{Descriptor, Draft};
use super::api::{Api, RawHandle};
use crate::Result;

/// cuDNN's own state for the device that is current when it is made.
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

/// What a plan is made for.
pub(super) enum Target<'a> {
    Device(&'a Handle),
    /// A device that is not here, as cuDNN describes itself in JSON. Plans for it are real but cannot run.
    Described(Descriptor),
}

impl Target<'_> {
    pub fn described(api: Api, json: &str) -> Result<Target<'static>> {
        let draft = Draft::new(api, Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, "a described device")?;
        Ok(Target::Described(draft.text(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, json)?.finish()?))
    }

    pub fn bind_graph(&self, draft: Draft) -> Result<Draft> {
        match self {
            // SAFETY: the handle is live, and whoever owns it drops the plans first (field order of `Dnn`).
            Target::Device(handle) => unsafe { draft.handle(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle.raw()) },
            Target::Described(_) => Ok(draft),
        }
    }

    pub fn bind_heuristics(&self, draft: Draft) -> Result<Draft> {
        match self {
            Target::Device(_) => Ok(draft),
            Target::Described(device) => draft.descriptor(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device),
        }
    }

    pub fn bind_plan(&self, draft: Draft) -> Result<Draft> {
        match self {
            Target::Device(_) => Ok(draft),
            Target::Described(device) => draft.descriptor(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device),
        }
    }
}
