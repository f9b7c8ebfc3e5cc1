//! cuDNN's functions, and what a refusal of theirs says.

use std::ffi::CStr;

use cudarc::cudnn::sys;

use crate::cuda::foreign::{Code, failure, text};
use crate::cuda::tables::Cudnn;
use crate::{DeviceError, Result};

pub(super) type RawDescriptor = sys::cudnnBackendDescriptor_t;
pub(super) type RawHandle = sys::cudnnHandle_t;

/// The oldest cuDNN that the graphs written here were run with; the newest was 9.19.
const OLDEST_VERSION: usize = 91_400;

#[derive(Clone, Copy)]
pub(super) struct Api {
    pub table: Cudnn,
}

impl Api {
    pub fn new(table: Cudnn) -> Result<Api> {
        // SAFETY: takes nothing, returns a number.
        let version = unsafe { (table.cudnnGetVersion)() };
        if version < OLDEST_VERSION {
            let problem = format!("found version {version}, expected {OLDEST_VERSION} or later");
            return Err(DeviceError::Value { what: "cuDNN", problem });
        }
        Ok(Api { table })
    }

    /// `subject` says what was asked for, if cuDNN refused it.
    pub fn check(&self, call: &'static str, code: Code, subject: impl FnOnce() -> String) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        Err(failure(call, code, format!("{}: {} ({})", subject(), self.name(code), self.last_refusal())))
    }

    fn name(&self, code: Code) -> String {
        // SAFETY: any number is answered with a text.
        text(unsafe { (self.table.cudnnGetErrorString)(code) })
    }

    /// What cuDNN noted about the latest refusal on this thread; reading it forgets it.
    fn last_refusal(&self) -> String {
        let mut message = [0u8; 2048];
        // SAFETY: writes at most the bytes that there are, zero-terminated.
        unsafe { (self.table.cudnnGetLastErrorString)(message.as_mut_ptr().cast(), message.len()) };
        let text = CStr::from_bytes_until_nul(&message).map(|text| text.to_string_lossy().trim().to_string());
        text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "no detail".to_string())
    }
}
