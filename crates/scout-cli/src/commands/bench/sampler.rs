//! Clock, power and use of a GPU, read again and again while it works, by a thread of its own: whoever queues work must
//! not stop for it.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use scout_device::cuda::{CudaDevice, Reading};

/// Between two readings.
const INTERVAL: Duration = Duration::from_millis(50);

/// Dropping it ends the thread.
pub struct Sampler {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Sampled>>,
}

#[derive(Default)]
pub struct Sampled {
    pub readings: Vec<Reading>,
    /// Percent of the multiprocessors, on average over all the time; none where the GPU does not give it.
    pub busy_multiprocessors: Option<f64>,
}

impl Sampler {
    /// Without NVML there will be no readings.
    pub fn start(gpu: &Arc<CudaDevice>) -> std::io::Result<Sampler> {
        let (stop, is_stopped) = mpsc::channel();
        let gpu = gpu.clone();
        let read = move || {
            let Ok(gauge) = gpu.gauge() else { return Sampled::default() };
            let (begun, mut readings) = (gauge.count(), Vec::new());
            while is_stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                readings.extend(gauge.read());
            }
            let (begun, ended) = (begun.as_ref(), gauge.count());
            let busy_multiprocessors = begun.and_then(|begun| ended?.busy_multiprocessors_since(begun));
            // Work may have been over before the first interval was.
            if readings.is_empty() {
                readings.extend(gauge.read());
            }
            Sampled { readings, busy_multiprocessors }
        };
        let thread = thread::Builder::new().name("gpu-gauge".to_string()).spawn(read)?;
        Ok(Sampler { stop: Some(stop), thread: Some(thread) })
    }

    /// All that was found so far.
    pub fn finish(mut self) -> Sampled {
        self.end()
    }

    fn end(&mut self) -> Sampled {
        self.stop.take();
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}
