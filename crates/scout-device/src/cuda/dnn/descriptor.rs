//! A cuDNN backend descriptor: made, filled, finished, destroyed. Every refusal names the descriptor by the word that
//! its maker gave it, and the attribute.

use std::ffi::c_void;
use std::ptr;

use cudarc::cudnn::sys;
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendAttributeType_t as Type;
use sys::cudnnBackendDescriptorType_t as Kind;

use super::api::{Api, RawDescriptor, RawHandle};
use crate::Result;

/// A finished descriptor. Nothing changes it any more, so others may refer to it.
pub(super) struct Descriptor {
    // Invariant: made by `cudnnBackendCreateDescriptor`, destroyed only by `drop`.
    raw: RawDescriptor,
    api: Api,
    subject: String,
}

/// A descriptor that is being filled.
pub(super) struct Draft(Descriptor);

impl Draft {
    pub fn new(api: Api, kind: Kind, subject: impl Into<String>) -> Result<Draft> {
        let subject = subject.into();
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is a place for one descriptor; `kind` is a kind that cuDNN 9 lists.
        let code = unsafe { (api.table.cudnnBackendCreateDescriptor)(kind, &mut raw) };
        api.check("cudnnBackendCreateDescriptor", code, || format!("{kind:?} for {subject}"))?;
        Ok(Draft(Descriptor { raw, api, subject }))
    }

    pub fn i64s(self, name: Name, values: &[i64]) -> Result<Draft> {
        // SAFETY: `values` are 64-bit integers, as many as stated.
        unsafe { self.set(name, Type::CUDNN_TYPE_INT64, values.len(), values.as_ptr().cast()) }
    }

    pub fn bool(self, name: Name, value: bool) -> Result<Draft> {
        // SAFETY: `value` is one C bool.
        unsafe { self.set(name, Type::CUDNN_TYPE_BOOLEAN, 1, (&raw const value).cast()) }
    }

    pub fn data_type(self, name: Name, value: sys::cudnnDataType_t) -> Result<Draft> {
        // SAFETY: `value` is one enumerator of the type that is named.
        unsafe { self.set(name, Type::CUDNN_TYPE_DATA_TYPE, 1, (&raw const value).cast()) }
    }

    pub fn pointwise_mode(self, value: sys::cudnnPointwiseMode_t) -> Result<Draft> {
        let name = Name::CUDNN_ATTR_POINTWISE_MODE;
        // SAFETY: `value` is one enumerator of the type that is named.
        unsafe { self.set(name, Type::CUDNN_TYPE_POINTWISE_MODE, 1, (&raw const value).cast()) }
    }

    pub fn reduction_operator(self, value: sys::cudnnReduceTensorOp_t) -> Result<Draft> {
        let name = Name::CUDNN_ATTR_REDUCTION_OPERATOR;
        // SAFETY: `value` is one enumerator of the type that is named.
        unsafe { self.set(name, Type::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, (&raw const value).cast()) }
    }

    pub fn heuristic_mode(self, value: sys::cudnnBackendHeurMode_t) -> Result<Draft> {
        let name = Name::CUDNN_ATTR_ENGINEHEUR_MODE;
        // SAFETY: `value` is one enumerator of the type that is named.
        unsafe { self.set(name, Type::CUDNN_TYPE_HEUR_MODE, 1, (&raw const value).cast()) }
    }

    /// cuDNN keeps what the descriptors say, not the descriptors.
    pub fn descriptors(self, name: Name, values: &[&Descriptor]) -> Result<Draft> {
        let raw: Vec<RawDescriptor> = values.iter().map(|descriptor| descriptor.raw).collect();
        // SAFETY: `raw` are live, finished descriptors, as many as stated.
        unsafe { self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, raw.len(), raw.as_ptr().cast()) }
    }

    pub fn descriptor(self, name: Name, value: &Descriptor) -> Result<Draft> {
        self.descriptors(name, &[value])
    }

    /// # Safety
    /// `handle` must be live, and outlive what is built on this descriptor.
    pub unsafe fn handle(self, name: Name, handle: RawHandle) -> Result<Draft> {
        // SAFETY: `handle` is one handle; the caller keeps it alive.
        unsafe { self.set(name, Type::CUDNN_TYPE_HANDLE, 1, (&raw const handle).cast()) }
    }

    /// Only remembers the addresses: whoever executes with them vouches for what lies there.
    pub fn addresses(self, name: Name, values: &[*mut c_void]) -> Result<Draft> {
        // SAFETY: `values` are as many pointers as stated, and none is followed here.
        unsafe { self.set(name, Type::CUDNN_TYPE_VOID_PTR, values.len(), values.as_ptr().cast()) }
    }

    pub fn finish(self) -> Result<Descriptor> {
        let Draft(descriptor) = self;
        // SAFETY: the descriptor is live and not finished yet, because a draft is.
        let code = unsafe { (descriptor.api.table.cudnnBackendFinalize)(descriptor.raw) };
        descriptor.api.check("cudnnBackendFinalize", code, || descriptor.subject.clone())?;
        Ok(descriptor)
    }

    /// # Safety
    /// `values` must point to `count` values of what `value_type` stands for.
    unsafe fn set(self, name: Name, value_type: Type, count: usize, values: *const c_void) -> Result<Draft> {
        let Draft(Descriptor { raw, api, subject }) = &self;
        // SAFETY: the descriptor is live and a draft; the caller vouches for the values, which cuDNN copies.
        let code = unsafe { (api.table.cudnnBackendSetAttribute)(*raw, name, value_type, count as i64, values) };
        api.check("cudnnBackendSetAttribute", code, || format!("{subject}, {name:?}"))?;
        Ok(self)
    }
}

impl Descriptor {
    pub fn raw(&self) -> RawDescriptor {
        self.raw
    }

    pub fn i64(&self, name: Name) -> Result<i64> {
        let mut value = 0i64;
        // SAFETY: there is room for the one integer that is asked for.
        unsafe { self.get(name, Type::CUDNN_TYPE_INT64, 1, (&raw mut value).cast()) }?;
        Ok(value)
    }

    /// The descriptors of kind `kind` that this one holds, in its order.
    pub fn held(&self, name: Name, kind: Kind) -> Result<Vec<Descriptor>> {
        let value_type = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        // SAFETY: no room is offered and none is needed: cuDNN answers the number.
        let count = unsafe { self.get(name, value_type, 0, ptr::null_mut()) }?;
        let empty = |index| Draft::new(self.api, kind, format!("{} #{index}", self.subject));
        let mut held = (0..count).map(|index| Ok(empty(index)?.0)).collect::<Result<Vec<Descriptor>>>()?;
        let mut raw: Vec<RawDescriptor> = held.iter().map(|descriptor| descriptor.raw).collect();
        // SAFETY: `raw` are `count` live descriptors of the kind that is held here, for cuDNN to fill.
        let filled = unsafe { self.get(name, value_type, count, raw.as_mut_ptr().cast()) }?;
        held.truncate(filled);
        Ok(held)
    }

    /// Answers how many values there are.
    ///
    /// # Safety
    /// At `values` there must be room for `room` values of what `value_type` stands for.
    unsafe fn get(&self, name: Name, value_type: Type, room: usize, values: *mut c_void) -> Result<usize> {
        let mut count = 0i64;
        let read = self.api.table.cudnnBackendGetAttribute;
        // SAFETY: the descriptor is live; the caller vouches for the room.
        let code = unsafe { read(self.raw, name, value_type, room as i64, &mut count, values) };
        self.api.check("cudnnBackendGetAttribute", code, || format!("{}, {name:?}", self.subject))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: live until here. A refusal leaves nothing to be done.
        let _ = unsafe { (self.api.table.cudnnBackendDestroyDescriptor)(self.raw) };
    }
}
