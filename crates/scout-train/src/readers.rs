//! Threads that read weights side by side: each takes one job after the other, the first error ends all of them, and
//! whoever waits for them hears how far they are. What a job is, its caller knows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{thread, vec};

use scout_core::{ByteCount, Phase, Whereabouts};

use crate::error::Result;

/// Enough to keep a fast disk busy while some of them convert or wait for a GPU.
pub const USUAL_READERS: usize = 8;
pub const MOST_READERS: usize = 32;
/// Bytes of one job, at most: long enough for the disk, short enough that threads end at about the same time.
pub(crate) const CHUNK: ByteCount = ByteCount(16 << 20);
/// How often it is told how far the reading is.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// How weights are read, and who hears of it.
pub struct Readers<'a> {
    // Invariant: from 1 to `MOST_READERS`.
    count: usize,
    chunk: ByteCount,
    done: AtomicU64,
    in_all: ByteCount,
    tell: Box<dyn FnMut(Progressed) + 'a>,
}

/// How far the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progressed {
    /// Bytes of files.
    pub done: ByteCount,
    pub in_all: ByteCount,
}

/// `tell`, and a sign of life whenever more has been read: weights may take longer than any rank may stand still, and who
/// reads does not.
pub(crate) fn with_signs_of_life<'a>(
    whereabouts: &'a Whereabouts,
    mut tell: impl FnMut(Progressed) + 'a,
) -> impl FnMut(Progressed) + 'a {
    let mut before = ByteCount(0);
    move |progressed| {
        if progressed.done != before {
            before = progressed.done;
            whereabouts.enter(Phase::Load);
        }
        tell(progressed);
    }
}

/// What is left to do. Each job is handed out once.
pub(crate) struct Jobs<'a, J> {
    left: Mutex<vec::IntoIter<J>>,
    is_over: AtomicBool,
    done: &'a AtomicU64,
}

impl Default for Readers<'_> {
    fn default() -> Self {
        Readers::new(USUAL_READERS)
    }
}

impl<'a> Readers<'a> {
    /// So many threads, or as many as can be; nobody hears of them.
    pub fn new(count: usize) -> Readers<'a> {
        let (count, tell) = (count.clamp(1, MOST_READERS), Box::new(|_| {}));
        Readers { count, chunk: CHUNK, done: AtomicU64::new(0), in_all: ByteCount(0), tell }
    }

    /// Calls `tell` several times a second, on the thread that waits for the readers.
    pub fn telling(self, tell: impl FnMut(Progressed) + 'a) -> Readers<'a> {
        Readers { tell: Box::new(tell), ..self }
    }

    #[cfg(test)]
    pub(crate) fn in_chunks_of(self, chunk: ByteCount) -> Readers<'a> {
        Readers { chunk, ..self }
    }

    pub(crate) fn chunk(&self) -> ByteCount {
        self.chunk
    }

    /// From here on `in_all` bytes will be read, by one call of [`Readers::share_out`] or several.
    pub(crate) fn begin(&mut self, in_all: ByteCount) {
        self.in_all = in_all;
        *self.done.get_mut() = 0;
    }

    /// Bytes that were read since then.
    pub(crate) fn done(&self) -> ByteCount {
        ByteCount(self.done.load(Ordering::Relaxed))
    }

    /// Runs `work` on each of the threads until no job is left or one of them fails, and returns the first error. `bytes`
    /// are those of all jobs: a few of them are read by fewer threads, or by the caller's.
    pub(crate) fn share_out<J: Send>(
        &mut self,
        bytes: ByteCount,
        jobs: Vec<J>,
        work: impl Fn(&Jobs<J>) -> Result<()> + Sync,
    ) -> Result<()> {
        let Readers { count, chunk, done, in_all, tell } = self;
        let jobs = Jobs { left: Mutex::new(jobs.into_iter()), is_over: AtomicBool::new(false), done };
        let mut tell = || tell(Progressed { done: ByteCount(done.load(Ordering::Relaxed)), in_all: *in_all });
        if bytes <= *chunk {
            work(&jobs)?;
            tell();
            return Ok(());
        }
        let count = (*count as u64).min(bytes.0.div_ceil(chunk.0));
        thread::scope(|scope| {
            let (ended, endings) = mpsc::channel();
            for _ in 0..count {
                let (ended, jobs, work) = (ended.clone(), &jobs, &work);
                scope.spawn(move || {
                    let ending = work(jobs).inspect_err(|_| jobs.is_over.store(true, Ordering::Relaxed));
                    // Heard for as long as one of the threads runs.
                    let _ = ended.send(ending);
                });
            }
            drop(ended);
            let mut outcome = Ok(());
            loop {
                match endings.recv_timeout(TELL_EVERY) {
                    Ok(ending) => outcome = outcome.and(ending),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                tell();
            }
            outcome
        })
    }
}

impl<J> Jobs<'_, J> {
    /// The next one; none where all are taken or a thread has failed.
    pub(crate) fn next(&self) -> Option<J> {
        if self.is_over.load(Ordering::Relaxed) {
            return None;
        }
        // Taking the next of a list leaves it whole, whoever panics later.
        self.left.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    /// So many bytes of files have been read.
    pub(crate) fn did(&self, bytes: ByteCount) {
        self.done.fetch_add(bytes.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Barrier;
    use std::time::Instant;

    use super::*;
    use crate::error::TrainError;

    fn failure(job: u64) -> TrainError {
        TrainError::Config { key: "job", problem: job.to_string() }
    }

    #[test]
    fn every_job_is_done_once_by_as_many_threads_as_there_are_chunks() {
        for (count, bytes, expected) in [(4, 1000, 4), (4, 21, 3), (4, 10, 1), (1, 1000, 1), (99, 1000, MOST_READERS)] {
            let mut told = Vec::new();
            let mut readers =
                Readers::new(count).in_chunks_of(ByteCount(10)).telling(|progressed| told.push(progressed));
            readers.begin(ByteCount(bytes));
            let (found, threads) = (Mutex::new(Vec::new()), Mutex::new(BTreeSet::new()));
            // None begins before all have come.
            let all_are_here = Barrier::new(expected);
            let work = |jobs: &Jobs<u64>| {
                all_are_here.wait();
                threads.lock().unwrap().insert(format!("{:?}", thread::current().id()));
                while let Some(job) = jobs.next() {
                    found.lock().unwrap().push(job);
                    jobs.did(ByteCount(1));
                }
                Ok(())
            };
            readers.share_out(ByteCount(bytes), (0..bytes).collect(), work).unwrap();
            drop(readers);
            let mut found = found.into_inner().unwrap();
            found.sort_unstable();
            assert!(found.iter().copied().eq(0..bytes), "{count} readers, {bytes} bytes: {found:?}");
            assert_eq!(threads.into_inner().unwrap().len(), expected, "{count} readers, {bytes} bytes");
            let end = Progressed { done: ByteCount(bytes), in_all: ByteCount(bytes) };
            assert_eq!(told.last(), Some(&end), "{count} readers, {bytes} bytes");
        }
    }

    #[test]
    fn whoever_reads_more_shows_it_and_whoever_stands_still_does_not() {
        let whereabouts = Whereabouts::new(None);
        let begun = whereabouts.num_changes();
        let (mut told, mut changes) = (Vec::new(), Vec::new());
        {
            let mut tell = with_signs_of_life(&whereabouts, |progressed| told.push(progressed.done.0));
            for done in [0, 5, 5, 9, 9] {
                tell(Progressed { done: ByteCount(done), in_all: ByteCount(9) });
                changes.push(whereabouts.num_changes() - begun);
            }
        }
        assert_eq!(changes, [0, 1, 1, 2, 2]);
        assert_eq!(whereabouts.place().phase, Phase::Load);
        assert_eq!(told, [0, 5, 5, 9, 9]);
    }

    #[test]
    fn the_first_error_ends_all_threads() {
        let mut readers = Readers::new(3).in_chunks_of(ByteCount(1));
        let num_done = AtomicU64::new(0);
        let begun = Instant::now();
        let work = |jobs: &Jobs<u64>| {
            while let Some(job) = jobs.next() {
                if job == 1 {
                    return Err(failure(job));
                }
                // Nobody goes on before the error is known.
                while !jobs.is_over.load(Ordering::Relaxed) {
                    assert!(begun.elapsed() < Duration::from_secs(60), "the other threads were not told");
                    thread::yield_now();
                }
                num_done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let error = readers.share_out(ByteCount(1000), (0..1000).collect(), work).unwrap_err();
        assert_eq!(error.with_causes(), failure(1).with_causes());
        assert!(num_done.into_inner() <= 2, "the jobs that were begun before, and no other");
    }
}
