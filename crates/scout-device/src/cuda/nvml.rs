//! What the GPU's clocks and power supply say while it works.

use std::ffi::CString;
use std::ptr::null_mut;

use super::context::Context;
use super::foreign;
use super::tables::{Nvml, NvmlDevice};
use crate::{DeviceError, Result};

/// A GPU as the management library sees it.
pub struct Gauge<'a> {
    nvml: &'a Nvml,
    device: NvmlDevice,
}

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub sm_clock_megahertz: u32,
    pub power_watts: f64,
}

impl Gauge<'_> {
    pub fn open(context: &Context) -> Result<Gauge<'_>> {
        let nvml = context.libraries.nvml()?;
        // SAFETY: may be called any number of times.
        check("nvmlInit", unsafe { (nvml.nvmlInit_v2)() })?;
        let id = CString::new(context.properties.pci_bus_id.as_str())
            .map_err(|_| DeviceError::Value { what: "GPU", problem: "found a zero byte in its bus id".to_string() })?;
        let mut device: NvmlDevice = null_mut();
        // SAFETY: writes one pointer; the text is zero-terminated.
        let code = unsafe { (nvml.nvmlDeviceGetHandleByPciBusId_v2)(id.as_ptr(), &mut device) };
        check("nvmlDeviceGetHandleByPciBusId", code)?;
        Ok(Gauge { nvml, device })
    }

    pub fn read(&self) -> Result<Reading> {
        const SM_CLOCK: u32 = 1;
        let (mut megahertz, mut milliwatts) = (0, 0);
        // SAFETY: writes one number; the handle comes from the library.
        let code = unsafe { (self.nvml.nvmlDeviceGetClockInfo)(self.device, SM_CLOCK, &mut megahertz) };
        check("nvmlDeviceGetClockInfo", code)?;
        // SAFETY: as above.
        let code = unsafe { (self.nvml.nvmlDeviceGetPowerUsage)(self.device, &mut milliwatts) };
        check("nvmlDeviceGetPowerUsage", code)?;
        Ok(Reading { sm_clock_megahertz: megahertz, power_watts: f64::from(milliwatts) / 1e3 })
    }
}

fn check(call: &'static str, code: foreign::Code) -> Result<()> {
    foreign::check(call, code, |code| format!("status {code}"))
}
