//! How long the parts of a step take on the GPU: an event before and one after each piece of work, in a step that is run
//! for this alone. The events themselves keep small kernels apart, so such a step is slower than the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::device::CudaDevice;
use super::stream::{Event, Stream};
use crate::Result;

/// What is being timed; nothing outside of a profiled step.
#[derive(Default)]
pub(super) struct Profiler(Mutex<Option<Vec<Span>>>);

struct Span {
    name: String,
    begin: Event,
    end: Event,
}

/// Pieces of work of one kind in a profiled step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub name: String,
    pub calls: usize,
    pub time: Duration,
}

impl Profiler {
    fn is_on(&self) -> bool {
        self.0.lock().expect("no holder of this lock panics").is_some()
    }

    /// Does `work`, which queues on `stream`, and remembers when it began and ended there if that is asked for.
    pub(super) fn time(
        &self,
        stream: &Arc<Stream>,
        name: impl FnOnce() -> String,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.is_on() {
            return work();
        }
        let begin = stream.record_time()?;
        work()?;
        let span = Span { name: name(), begin, end: stream.record_time()? };
        if let Some(spans) = &mut *self.0.lock().expect("no holder of this lock panics") {
            spans.push(span);
        }
        Ok(())
    }
}

impl CudaDevice {
    /// From now on every piece of work is timed, until [`CudaDevice::end_profile`].
    pub fn begin_profile(&self) {
        *self.profiler().0.lock().expect("no holder of this lock panics") = Some(Vec::new());
    }

    /// What was timed, by name, the longest first. Stops the host until all of it is done.
    pub fn end_profile(&self) -> Result<Vec<Share>> {
        let spans = self.profiler().0.lock().expect("no holder of this lock panics").take().unwrap_or_default();
        self.finish()?;
        let mut shares: BTreeMap<String, (usize, Duration)> = BTreeMap::new();
        for Span { name, begin, end } in spans {
            end.wait(self.patience())?;
            let (calls, time) = shares.entry(name).or_default();
            *calls += 1;
            *time += end.since(&begin)?;
        }
        let share = |(name, (calls, time))| Share { name, calls, time };
        let mut shares: Vec<Share> = shares.into_iter().map(share).collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.time));
        Ok(shares)
    }
}
