//! What the GPU's clocks, power supply and counters say while it works.

use std::ffi::CString;
use std::ptr::{null, null_mut};

use scout_core::ByteCount;

use super::context::Context;
use super::foreign;
use super::tables::{Nvml, NvmlCounters, NvmlDevice, NvmlMemory, NvmlMetric, NvmlMetrics, NvmlSample, NvmlUtilization};
use crate::{DeviceError, Result};

/// A GPU as the management library sees it.
pub struct Gauge<'a> {
    nvml: &'a Nvml,
    counters: Option<&'a NvmlCounters>,
    device: NvmlDevice,
}

/// A GPU's counters at one time.
pub struct Counted<'a> {
    counters: &'a NvmlCounters,
    sample: NvmlSample,
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
        Ok(Gauge { nvml, counters: context.libraries.counters(), device })
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

    /// The counters now; none where the driver or the GPU has none or does not give them.
    pub fn count(&self) -> Option<Counted<'_>> {
        let counters = self.counters?;
        let mut sample: NvmlSample = null_mut();
        // SAFETY: writes one pointer.
        if unsafe { (counters.nvmlGpmSampleAlloc)(&mut sample) } != 0 {
            return None;
        }
        let counted = Counted { counters, sample };
        // SAFETY: writes to the sample, which was just made; the handle comes from the library.
        let code = unsafe { (counters.nvmlGpmSampleGet)(self.device, sample) };
        (code == 0).then_some(counted)
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

impl Counted<'_> {
    /// Multiprocessors that had work, in percent of all of them, on average since `before`.
    pub fn busy_multiprocessors_since(&self, before: &Counted) -> Option<f64> {
        const VERSION: u32 = 1;
        const SM_UTIL: u32 = 2;
        let none = NvmlMetric { id: 0, status: 0, value: 0.0, names: [null(); 3] };
        let mut metrics = [none; 512];
        metrics[0].id = SM_UTIL;
        let mut asked = NvmlMetrics { version: VERSION, count: 1, before: before.sample, after: self.sample, metrics };
        // SAFETY: reads two samples that live, and writes as many metrics as were asked for.
        let code = unsafe { (self.counters.nvmlGpmMetricsGet)(&mut asked) };
        let NvmlMetric { status, value, .. } = asked.metrics[0];
        (code == 0 && status == 0 && value.is_finite()).then_some(value)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `count`, given back once.
        let _ = unsafe { (self.counters.nvmlGpmSampleFree)(self.sample) };
    }
}

fn check(call: &'static str, code: foreign::Code) -> Result<()> {
    foreign::check(call, code, |code| format!("status {code}"))
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn metrics_lie_where_the_library_writes_them() {
        // As NVIDIA's own Python bindings have them, whose list has 477 places.
        assert_eq!((size_of::<NvmlMetric>(), offset_of!(NvmlMetric, value)), (40, 8));
        assert_eq!((offset_of!(NvmlMetrics, after), offset_of!(NvmlMetrics, metrics)), (16, 24));
    }
}
