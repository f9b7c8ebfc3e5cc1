//! What the GPU's clocks, power supply and counters say while it works.

use std::ffi::CString;
use std::ptr::null_mut;

use scout_core::ByteCount;

use super::context::Context;
use super::foreign;
use super::tables::{Nvml, NvmlDevice, NvmlMemory, NvmlUtilization};
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
    /// Part of the last sample, up to a second, in which kernels ran; none where NVML refuses to say.
    pub utilization_percent: Option<u32>,
    /// Of all processes together; none where NVML refuses to say.
    pub memory_used: Option<ByteCount>,
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
        Ok(Reading {
            sm_clock_megahertz: megahertz,
            power_watts: f64::from(milliwatts) / 1e3,
            utilization_percent: self.utilization_percent(),
            memory_used: self.memory_used(),
        })
    }

    fn utilization_percent(&self) -> Option<u32> {
        let mut utilization = NvmlUtilization::default();
        // SAFETY: writes two numbers; the handle comes from the library.
        let code = unsafe { (self.nvml.nvmlDeviceGetUtilizationRates)(self.device, &mut utilization) };
        (code == 0).then_some(utilization.gpu)
    }

    fn memory_used(&self) -> Option<ByteCount> {
        let mut memory = NvmlMemory::default();
        // SAFETY: writes three numbers; the handle comes from the library.
        let code = unsafe { (self.nvml.nvmlDeviceGetMemoryInfo)(self.device, &mut memory) };
        (code == 0).then_some(ByteCount(memory.used))
    }
}

fn check(call: &'static str, code: foreign::Code) -> Result<()> {
    foreign::check(call, code, |code| format!("status {code}"))
}
