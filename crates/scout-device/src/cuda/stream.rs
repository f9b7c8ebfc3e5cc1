//! Streams with priorities and the events that order them. The host stops only in `Event::wait`, which has a deadline.

use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUevent, CUevent_flags, CUstream, CUstream_flags};

use super::context::Context;
use super::foreign::Code;
use crate::{DeviceError, Result};

/// The variable that says how many queues of the hardware a process takes. The driver reads it once, when it is opened. With
/// its own eight, streams share some, and one that waits for a peer holds up another.
pub const QUEUES: &str = "CUDA_DEVICE_MAX_CONNECTIONS";
/// As many as a GPU has for processes that run on it at one time.
pub const MOST_QUEUES: usize = 32;

/// Which of two streams the GPU serves first when both have work to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    High,
    Low,
}

/// A queue of work on the GPU: its parts run in order. Work of two streams is ordered by events only.
pub struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: streams may be used from any thread; the driver orders the calls.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A place in a stream: everything that was queued before it was recorded.
pub struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: events may be used from any thread; the driver orders the calls.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Stream {
    pub fn new(context: &Arc<Context>, priority: Priority) -> Result<Stream> {
        let driver = context.driver()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: writes two numbers.
        let code = unsafe { (driver.cuCtxGetStreamPriorityRange)(&mut least, &mut greatest) };
        context.check("cuCtxGetStreamPriorityRange", code)?;
        let wanted = match priority {
            Priority::High => greatest,
            Priority::Low => least,
        };
        let mut raw: CUstream = null_mut();
        // Not blocking: the legacy default stream, which a library might use, orders nothing here.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one pointer.
        let code = unsafe { (driver.cuStreamCreateWithPriority)(&mut raw, flags, wanted) };
        context.check("cuStreamCreateWithPriority", code)?;
        Ok(Stream { context: context.clone(), raw })
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// For foreign calls that queue work.
    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    /// A place after everything that was queued here so far.
    pub fn record(&self) -> Result<Event> {
        self.record_with(CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// As [`Stream::record`], with the time at which the place was reached.
    pub fn record_time(&self) -> Result<Event> {
        self.record_with(CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn record_with(&self, flags: CUevent_flags) -> Result<Event> {
        let driver = self.context.driver()?;
        let mut raw: CUevent = null_mut();
        // SAFETY: writes one pointer.
        self.context.check("cuEventCreate", unsafe { (driver.cuEventCreate)(&mut raw, flags as u32) })?;
        let event = Event { context: self.context.clone(), raw };
        // SAFETY: both belong to this context and are alive.
        self.context.check("cuEventRecord", unsafe { (driver.cuEventRecord)(raw, self.raw) })?;
        Ok(event)
    }

    /// Work queued here from now on begins after `event`. The host does not stop.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        let driver = self.context.driver()?;
        // SAFETY: both are alive; the driver keeps what it needs of the event until the wait is over.
        self.context.check("cuStreamWaitEvent", unsafe { (driver.cuStreamWaitEvent)(self.raw, event.raw, 0) })
    }

    /// Stops the host until everything queued here is done. Fails after `deadline`.
    pub fn finish(&self, deadline: Duration) -> Result<()> {
        self.record()?.wait(deadline)
    }
}

impl Event {
    /// Whether everything before it is done. Fails when that work failed.
    pub fn is_past(&self) -> Result<bool> {
        const NOT_READY: Code = 600;
        let driver = self.context.driver()?;
        // SAFETY: the event is alive.
        match unsafe { (driver.cuEventQuery)(self.raw) } {
            NOT_READY => Ok(false),
            code => self.context.check("work on the GPU", code).map(|()| true),
        }
    }

    /// Stops the host until everything before it is done. Fails after `deadline`, and when that work failed.
    pub fn wait(&self, deadline: Duration) -> Result<()> {
        // Short waits are the rule, so the first ones are spent awake.
        const AWAKE: Duration = Duration::from_micros(200);
        let begun = Instant::now();
        while !self.is_past()? {
            match begun.elapsed() {
                waited if waited > deadline => return Err(DeviceError::Late { waited: deadline }),
                waited if waited > AWAKE => std::thread::sleep(Duration::from_micros(50)),
                _ => std::hint::spin_loop(),
            }
        }
        Ok(())
    }

    /// Time from `start` to `self`, both recorded with [`Stream::record_time`] and past.
    pub fn since(&self, start: &Event) -> Result<Duration> {
        let mut milliseconds = 0.0f32;
        let driver = self.context.driver()?;
        // SAFETY: writes one number; the driver refuses events without times.
        let code = unsafe { (driver.cuEventElapsedTime_v2)(&mut milliseconds, start.raw, self.raw) };
        self.context.check("cuEventElapsedTime", code)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Ok(driver) = self.context.driver() else { return };
        // SAFETY: made in `new`, destroyed once. Returns at once; the driver frees it when its work is done.
        let _ = unsafe { (driver.cuStreamDestroy_v2)(self.raw) };
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Ok(driver) = self.context.driver() else { return };
        // SAFETY: made in `record_with`, destroyed once. Returns at once; the driver frees it when it is past.
        let _ = unsafe { (driver.cuEventDestroy_v2)(self.raw) };
    }
}
