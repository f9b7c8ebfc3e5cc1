//! The running ranks: waits for them, decides which failure is the cause, and ends the others within bounded time.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use scout_core::{ExitCode, Rank};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::output::Output;

/// After the first failure the others may leave by themselves with a reason of their own.
const SETTLE: Duration = Duration::from_millis(500);
/// Between asking a rank to end and killing it: enough to write a line, not to finish a step.
const GRACE: Duration = Duration::from_secs(5);
/// After a signal from outside: enough to save the state before a scheduler loses its patience.
const GRACE_AFTER_SIGNAL: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

pub struct Ranks {
    children: Vec<Option<Child>>,
    host: String,
    // The number of the last signal from outside that was not passed on yet; 0 for none.
    received: Arc<AtomicUsize>,
    listeners: Vec<SigId>,
    passed_on: Option<i32>,
    cause: Option<Failure>,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Running,
    Settling { until: Instant },
    Ending { until: Instant },
    Killed,
}

/// A rank that did not end with 0.
#[derive(Clone, Copy)]
struct Failure {
    code: i32,
    by_signal: bool,
}

impl Ranks {
    /// No rank yet, but from here on signals are kept for the ranks instead of ending this process.
    pub fn listening() -> io::Result<Ranks> {
        let mut ranks = Ranks {
            children: Vec::new(),
            host: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string(),
            received: Arc::default(),
            listeners: Vec::new(),
            passed_on: None,
            cause: None,
            stage: Stage::Running,
        };
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let listener = signal_hook::flag::register_usize(signal, ranks.received.clone(), signal as usize)?;
            ranks.listeners.push(listener);
        }
        Ok(ranks)
    }

    pub fn push(&mut self, child: Child) {
        self.children.push(Some(child));
    }

    /// Returns when no rank runs any more, with the code that this process should end with.
    pub fn wait_for_all(&mut self, output: &Output) -> i32 {
        while self.children.iter().any(Option::is_some) {
            self.pass_signals_on();
            self.collect(output);
            self.proceed();
            thread::sleep(POLL);
        }
        self.cause.map_or(0, |failure| failure.code)
    }

    fn pass_signals_on(&mut self) {
        let number = self.received.swap(0, Ordering::Relaxed) as i32;
        if let Some(signal) = Signal::from_named_raw(number) {
            self.signal_all(signal);
            // Somebody who asks twice is in a hurry.
            let grace = if self.passed_on.is_some() { GRACE } else { GRACE_AFTER_SIGNAL };
            self.passed_on = Some(number);
            if matches!(self.stage, Stage::Running | Stage::Ending { .. }) {
                self.stage = Stage::Ending { until: Instant::now() + grace };
            }
        }
    }

    /// Takes the ranks that have ended and judges how.
    fn collect(&mut self, output: &Output) {
        for index in 0..self.children.len() {
            let Some(child) = &mut self.children[index] else { continue };
            let pid = child.id();
            let status = match child.try_wait() {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                // Somebody else collected it, so how it ended cannot be known: count it as lost.
                Err(_) => ExitStatus::from_raw(ExitCode::PeerLost.code().into()),
            };
            self.children[index] = None;
            if !status.success() {
                self.judge(Rank(index), pid, status, output);
            }
        }
    }

    fn judge(&mut self, rank: Rank, pid: u32, status: ExitStatus, output: &Output) {
        let failure = self.failure(status);
        let peer_lost = i32::from(ExitCode::PeerLost.code());
        let is_cause = match (self.cause, self.stage) {
            (None, _) => true,
            // A rank that reports a lost peer may be noticed before the peer itself.
            (Some(first), Stage::Settling { .. }) => {
                first.code == peer_lost && !first.by_signal && (failure.by_signal || failure.code != peer_lost)
            }
            _ => false,
        };
        if !is_cause {
            return;
        }
        let place = format!("rank {rank} of {} (host {}, pid {pid})", self.children.len(), self.host);
        let is_interruption = self.passed_on.is_some_and(|signal| !failure.by_signal || failure.code == 128 + signal);
        if is_interruption {
            // Whoever sent the signal knows why the ranks ended.
        } else if let Some(signal) = status.signal() {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("unknown");
            output.say(&format!("error: {place} was killed by signal {signal} ({name})"));
        } else if self.children.len() > 1 {
            // A single rank has said on our own stderr why it ended.
            output.say(&format!("error: {place} ended with exit code {}", failure.code));
        }
        self.cause = Some(failure);
        if matches!(self.stage, Stage::Running) {
            self.stage = Stage::Settling { until: Instant::now() + SETTLE };
        }
    }

    fn failure(&self, status: ExitStatus) -> Failure {
        match (status.signal(), self.passed_on) {
            // The signal was ours to pass on, or followed it too late: the job was interrupted, no peer was lost.
            (Some(signal), Some(passed_on)) if signal == passed_on || matches!(self.stage, Stage::Killed) => {
                Failure { code: 128 + passed_on, by_signal: true }
            }
            (Some(_), _) => Failure { code: ExitCode::PeerLost.code().into(), by_signal: true },
            (None, _) => Failure { code: status.code().unwrap_or(1), by_signal: false },
        }
    }

    fn proceed(&mut self) {
        let now = Instant::now();
        match self.stage {
            Stage::Settling { until } if now >= until => {
                self.signal_all(Signal::TERM);
                self.stage = Stage::Ending { until: now + GRACE };
            }
            Stage::Ending { until } if now >= until => {
                self.signal_all(Signal::KILL);
                self.stage = Stage::Killed;
            }
            _ => {}
        }
    }

    fn signal_all(&self, signal: Signal) {
        for child in self.children.iter().flatten() {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // The group may be gone already; then there is nothing left to end.
                let _ = kill_process_group(group, signal);
            }
        }
    }
}

impl Drop for Ranks {
    /// Reached with running ranks only when starting the rest of them failed.
    fn drop(&mut self) {
        self.signal_all(Signal::KILL);
        let deadline = Instant::now() + Duration::from_secs(2);
        for child in self.children.iter_mut().flatten() {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
        for listener in self.listeners.drain(..) {
            signal_hook::low_level::unregister(listener);
        }
    }
}
