//! How long arithmetic on a GPU has stood still for what comes from other ranks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_device::Result;
use scout_device::cuda::{CudaDevice, Event};

pub struct Waits {
    device: Arc<CudaDevice>,
    passed: Mutex<Passed>,
}

#[derive(Default)]
struct Passed {
    /// Where arithmetic came to a wait and where it could go on, since the last question.
    open: VecDeque<(Event, Event)>,
    before: Duration,
}

impl Waits {
    pub fn of(device: &Arc<CudaDevice>) -> Waits {
        Waits { device: device.clone(), passed: Mutex::default() }
    }

    /// Queues on the compute stream what `wait` queues there, as a wait called `name`. The host goes on.
    pub fn wait<T>(&self, name: &str, wait: impl FnOnce() -> Result<T>) -> Result<T> {
        let compute = self.device.compute();
        let before = compute.record_time()?;
        let waited_for = self.device.communicate(compute, || name.to_string(), wait)?;
        let after = compute.record_time()?;
        let mut passed = self.passed.lock().expect("no holder of this lock panics");
        passed.open.push_back((before, after));
        // Few stay open: those that the GPU has not come to yet.
        while let Some((before, after)) = passed.open.front()
            && after.is_past()?
        {
            let waited = after.since(before)?;
            passed.before += waited;
            passed.open.pop_front();
        }
        Ok(waited_for)
    }

    /// In all so far. Stops the host until arithmetic is past all that were queued.
    pub fn waited(&self) -> Result<Duration> {
        let mut passed = self.passed.lock().expect("no holder of this lock panics");
        for (before, after) in std::mem::take(&mut passed.open) {
            after.wait(self.device.patience())?;
            passed.before += after.since(&before)?;
        }
        Ok(passed.before)
    }
}
