//! The time of work on a GPU between two events, and kernels measured by it one after the other.

use std::sync::Arc;
use std::time::Duration;

use scout_device::cuda::{CudaDevice, Event, Reading};

use crate::Result;

/// A measured kernel.
#[derive(Debug, Clone)]
pub struct KernelRate {
    pub name: &'static str,
    /// Read once and written once.
    pub bytes: u64,
    pub time: Duration,
    pub gigabytes_per_second: f64,
}

/// The time of each of `count` runs, queued one behind the other.
pub(super) fn runs(
    device: &Arc<CudaDevice>,
    count: usize,
    mut run: impl FnMut() -> Result<()>,
) -> Result<(Vec<Event>, Vec<Duration>)> {
    let mut marks = vec![device.compute().record_time()?];
    for _ in 0..count {
        run()?;
        marks.push(device.compute().record_time()?);
    }
    marks[count].wait(device.patience())?;
    let times = marks.windows(2).map(|pair| pair[1].since(&pair[0])).collect::<Result<_>>()?;
    Ok((marks, times))
}

pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Clock, power and utilisation on average, and the most memory; none of no readings.
pub fn mean_reading(readings: &[Reading]) -> Option<Reading> {
    let count = readings.len();
    let clocks: u64 = readings.iter().map(|reading| u64::from(reading.sm_clock_megahertz)).sum();
    let watts: f64 = readings.iter().map(|reading| reading.power_watts).sum();
    let known: Vec<u32> = readings.iter().filter_map(|reading| reading.utilization_percent).collect();
    (count > 0).then(|| Reading {
        sm_clock_megahertz: (clocks / count as u64) as u32,
        power_watts: watts / count as f64,
        utilization_percent: (!known.is_empty()).then(|| known.iter().sum::<u32>() / known.len() as u32),
        memory_used: readings.iter().filter_map(|reading| reading.memory_used).max(),
    })
}

/// Measures kernels one after the other.
pub(super) struct Meter {
    pub(super) device: Arc<CudaDevice>,
    pub(super) rates: Vec<KernelRate>,
}

impl Meter {
    pub(super) fn new(device: &Arc<CudaDevice>) -> Meter {
        Meter { device: device.clone(), rates: Vec::new() }
    }

    /// The median time of 20 runs, of which each moves at least `bytes`.
    pub(super) fn measure(
        &mut self,
        name: &'static str,
        bytes: u64,
        run: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        run()?;
        let time = median(runs(&self.device, 20, run)?.1);
        let gigabytes_per_second = bytes as f64 / time.as_secs_f64() / 1e9;
        self.rates.push(KernelRate { name, bytes, time, gigabytes_per_second });
        Ok(())
    }
}
