//! How long the parts of a step take on the GPU, and when: an event before and one after each piece of work, in a step that
//! is run for this alone. The events themselves keep small kernels apart, so such a step is slower than the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::product::Problem;
use super::stream::{Event, Stream};
use crate::{DeviceError, Result};

/// What is being timed; nothing outside of a profiled step.
#[derive(Default)]
pub(super) struct Profiler(Mutex<Option<Vec<Span>>>);

struct Span {
    name: String,
    effort: Effort,
    stream: Arc<Stream>,
    begin: Event,
    end: Event,
}

/// A piece of work with its place in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timed {
    pub name: String,
    /// Whether it was queued among the arithmetic, and not beside it.
    pub on_compute: bool,
    /// Since the zero that was asked for.
    pub begin: Duration,
    pub time: Duration,
}

/// What a piece of work asks of the GPU, to hold its time against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effort {
    /// Matrix products.
    Products(Vec<Product>),
    /// So many bytes to be read or written.
    Bytes(u64),
    /// What other GPUs send, or waiting for it.
    Communication,
    /// Something that none of these describes.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    pub problem: Problem,
    /// Whether it is added to what is there, which is read for that.
    pub adds: bool,
}

/// Pieces of work of one kind in profiled steps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    pub name: String,
    pub calls: usize,
    pub time: Duration,
    /// Read or written by all calls together, where that is what they do.
    pub bytes: u64,
    /// The products among them, each as often as it was called.
    pub products: Vec<Product>,
    /// Whether other GPUs take part.
    pub communicates: bool,
}

impl Share {
    fn new(name: String) -> Share {
        Share { name, ..Share::default() }
    }

    fn add(&mut self, effort: Effort, time: Duration) {
        self.calls += 1;
        self.time += time;
        match effort {
            Effort::Products(products) => self.products.extend(products),
            Effort::Bytes(bytes) => self.bytes += bytes,
            Effort::Communication => self.communicates = true,
            Effort::Other => {}
        }
    }
}

impl Profiler {
    fn is_on(&self) -> bool {
        self.0.lock().expect("no holder of this lock panics").is_some()
    }

    /// Does `work`, which queues on `stream`, and remembers when it began and ended there if that is asked for.
    pub(super) fn time<T, E: From<DeviceError>>(
        &self,
        stream: &Arc<Stream>,
        what: impl FnOnce() -> (String, Effort),
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if !self.is_on() {
            return work();
        }
        let begin = stream.record_time()?;
        let done = work()?;
        let end = stream.record_time()?;
        let (name, effort) = what();
        let span = Span { name, effort, stream: stream.clone(), begin, end };
        if let Some(spans) = &mut *self.0.lock().expect("no holder of this lock panics") {
            spans.push(span);
        }
        Ok(done)
    }

    /// From now on every piece of work is timed, until one of those that end it.
    pub(super) fn begin(&self) {
        *self.0.lock().expect("no holder of this lock panics") = Some(Vec::new());
    }

    fn take(&self) -> Vec<Span> {
        self.0.lock().expect("no holder of this lock panics").take().unwrap_or_default()
    }

    /// What was timed on `compute`, by name, the longest first. Stops the host until everything that was queued there is
    /// done; no wait is longer than `patience`.
    pub(super) fn end(&self, compute: &Arc<Stream>, patience: Duration) -> Result<Vec<Share>> {
        let spans = self.take();
        compute.finish(patience)?;
        let mut shares: BTreeMap<String, Share> = BTreeMap::new();
        // What runs beside arithmetic takes no time of its own.
        for Span { name, effort, begin, end, .. } in spans.into_iter().filter(|span| Arc::ptr_eq(&span.stream, compute))
        {
            end.wait(patience)?;
            let share = shares.entry(name).or_insert_with_key(|name| Share::new(name.clone()));
            share.add(effort, end.since(&begin)?);
        }
        let mut shares: Vec<Share> = shares.into_values().collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.time));
        Ok(shares)
    }

    /// What was timed on all streams, in the order in which the host queued it. Stops the host until all of it is done; no
    /// wait is longer than `patience`.
    pub(super) fn end_in_time(&self, compute: &Arc<Stream>, zero: &Event, patience: Duration) -> Result<Vec<Timed>> {
        let in_time = |Span { name, stream, begin, end, .. }: Span| {
            end.wait(patience)?;
            let on_compute = Arc::ptr_eq(&stream, compute);
            Ok(Timed { name, on_compute, begin: begin.since(zero)?, time: end.since(&begin)? })
        };
        self.take().into_iter().map(in_time).collect()
    }
}
