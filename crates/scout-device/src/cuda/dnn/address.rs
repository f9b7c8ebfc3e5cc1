//! Addresses as cuDNN takes them.

use std::ffi::c_void;

/// An address on the device.
pub(in crate::cuda) type Address = u64;

pub(super) fn at(address: Address) -> *mut c_void {
    address as *mut c_void
}

/// The address of a number on the host; cuDNN only reads it.
pub(super) fn host(value: &f32) -> *mut c_void {
    (&raw const *value).cast_mut().cast()
}
