//! The running ranks: waits for them, decides which failure is the cause, and ends the others within bounded time.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use scout_core::{ExitCode, Rank};
use signal_hook::SigId;

use crate::folder::JobFolder;
use crate::output::Output;

/// After the first failure the others may leave by themselves with a reason of their own. Those that can learn of it at
/// once, say so and end one second later even from the midst of a long computation.
const SETTLE: Duration = Duration::from_millis(1100);
/// Between asking a rank to end and killing it. One that has not left by now has nothing to save: the state of a job
/// that lost a rank is that of its last checkpoint. Together with the above everything is gone within two seconds
/// of a death.
const GRACE: Duration = Duration::from_millis(200);
/// After a signal from outside: enough to save the state before a scheduler loses its patience.
const GRACE_AFTER_SIGNAL: Duration = Duration::from_secs(120);
/// After the second one: enough to write a line, not to finish a step.
const GRACE_AFTER_SECOND_SIGNAL: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

const _: () = assert!(SETTLE.as_millis() + GRACE.as_millis() + POLL.as_millis() < 2000);

const PREEMPTED: i32 = ExitCode::Preempted as i32;
const PEER_LOST: i32 = ExitCode::PeerLost as i32;

pub struct Ranks {
    children: Vec<Option<Child>>,
    host: String,
    inbox: Vec<Arrivals>,
    interrupted_by: Option<Signal>,
    cause: Option<Failure>,
    // How many ranks left by themselves with the code of the cause, which a group does that has agreed on it.
    num_agreeing: usize,
    stage: Stage,
    // Since we asked the ranks to end for a failure, what they end with is our doing.
    is_decided: bool,
    // Last, because it is removed when it is dropped, and the ranks are killed before.
    folder: JobFolder,
}

/// One signal that this process may get for its ranks.
struct Arrivals {
    signal: Signal,
    has_come: Arc<AtomicBool>,
    listener: SigId,
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
    rank: Rank,
    pid: u32,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    /// It left by itself with a code.
    Left(i32),
    Killed {
        by: i32,
    },
    /// By a signal that was ours to pass on, or that we sent when it took too long to obey.
    Interrupted(Signal),
}

impl End {
    fn code(self) -> i32 {
        match self {
            End::Left(code) => code,
            End::Killed { .. } => PEER_LOST,
            End::Interrupted(signal) => 128 + signal.as_raw(),
        }
    }

    /// A job's cause gives way to one of more weight. A rank that reports a lost peer may be noticed before the peer
    /// itself; and a job is preempted, with its state saved, only when no rank says otherwise.
    fn weight(self) -> u8 {
        match self {
            End::Left(PREEMPTED) => 0,
            End::Left(PEER_LOST) => 1,
            _ => 2,
        }
    }
}

impl Ranks {
    /// No rank yet, but from here on signals are kept for the ranks instead of ending this process.
    pub fn listening(folder: JobFolder) -> io::Result<Ranks> {
        let mut ranks = Ranks {
            children: Vec::new(),
            host: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string(),
            inbox: Vec::new(),
            interrupted_by: None,
            cause: None,
            num_agreeing: 0,
            stage: Stage::Running,
            is_decided: false,
            folder,
        };
        for signal in [Signal::HUP, Signal::INT, Signal::TERM, Signal::USR1, Signal::USR2] {
            let has_come = Arc::new(AtomicBool::new(false));
            let listener = signal_hook::flag::register(signal.as_raw(), has_come.clone())?;
            ranks.inbox.push(Arrivals { signal, has_come, listener });
        }
        Ok(ranks)
    }

    pub fn push(&mut self, child: Child) {
        self.children.push(Some(child));
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns when no rank runs any more, with the code that this process should end with.
    pub fn wait_for_all(&mut self, output: &Output) -> i32 {
        while self.children.iter().any(Option::is_some) {
            self.pass_signals_on();
            self.collect(output);
            self.proceed();
            thread::sleep(POLL);
        }
        let Some(cause) = self.cause else { return 0 };
        // A single rank, or a group that agreed, has said on its own stderr why it ended; several that left with one
        // code do not tell who was the first.
        if let End::Left(code) = cause.end
            && (self.children.len() > 1 && self.num_agreeing == 1)
            && self.interrupted_by.is_none()
        {
            // Whoever lost a peer is not to be taken for the one that was lost.
            let why = if code == PEER_LOST { "ended because it lost another rank," } else { "ended with" };
            output.say(&format!("error: {} {why} exit code {code}", self.name(cause)));
        }
        cause.end.code()
    }

    fn pass_signals_on(&mut self) {
        let arrived = |arrivals: &&Arrivals| arrivals.has_come.swap(false, Ordering::Relaxed);
        let signals: Vec<Signal> = self.inbox.iter().filter(arrived).map(|arrivals| arrivals.signal).collect();
        for signal in signals {
            self.signal_all(signal);
            if matches!(signal, Signal::USR1 | Signal::USR2) {
                // Schedulers announce the end of the allotted time with them; ranks that listen save and leave.
                continue;
            }
            // Somebody who asks twice is in a hurry.
            let is_second = self.interrupted_by.is_some();
            let grace = if is_second { GRACE_AFTER_SECOND_SIGNAL } else { GRACE_AFTER_SIGNAL };
            let is_ending = matches!(self.stage, Stage::Ending { .. }) && !self.is_decided;
            // A job that ends already for a failure of its own does not get more time by being asked to end.
            if matches!(self.stage, Stage::Running) || is_ending {
                self.stage = Stage::Ending { until: Instant::now() + grace };
            }
            self.interrupted_by = Some(signal);
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
                Err(_) => ExitStatus::from_raw(PEER_LOST << 8),
            };
            self.children[index] = None;
            if !status.success() {
                let end = self.end(status);
                self.judge(Failure { rank: Rank(index), pid, end }, output);
            }
        }
    }

    fn end(&self, status: ExitStatus) -> End {
        match (status.signal(), self.interrupted_by) {
            (None, _) => End::Left(status.code().unwrap_or(1)),
            (Some(number), Some(signal)) if number == signal.as_raw() || matches!(self.stage, Stage::Killed) => {
                End::Interrupted(signal)
            }
            (Some(by), _) => End::Killed { by },
        }
    }

    fn judge(&mut self, failure: Failure, output: &Output) {
        if self.is_decided {
            return;
        }
        match self.cause {
            Some(cause) if failure.end.weight() <= cause.end.weight() => {
                if matches!((failure.end, cause.end), (End::Left(code), End::Left(first)) if code == first) {
                    self.num_agreeing += 1;
                }
                return;
            }
            _ => {
                self.cause = Some(failure);
                self.num_agreeing = 1;
            }
        }
        if let End::Killed { by } = failure.end {
            let name = signal_hook::low_level::signal_name(by).unwrap_or("unknown");
            let place = self.folder.place(failure.rank).map(|place| format!(" in {place}")).unwrap_or_default();
            output.say(&format!("error: {} was killed by signal {by} ({name}){place}", self.name(failure)));
        }
        // A rank that was preempted has saved the state together with the others, who follow in their own time.
        if matches!(self.stage, Stage::Running) && failure.end.code() != PREEMPTED {
            self.stage = Stage::Settling { until: Instant::now() + SETTLE };
        }
    }

    fn name(&self, failure: Failure) -> String {
        let Failure { rank, pid, .. } = failure;
        format!("rank {rank} of {} (host {}, pid {pid})", self.children.len(), self.host)
    }

    fn proceed(&mut self) {
        let now = Instant::now();
        match self.stage {
            Stage::Settling { until } if now >= until => {
                self.signal_all(Signal::TERM);
                self.is_decided = true;
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
        for arrivals in self.inbox.drain(..) {
            signal_hook::low_level::unregister(arrivals.listener);
        }
    }
}
