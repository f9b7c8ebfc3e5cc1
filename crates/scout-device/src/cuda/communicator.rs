//! One communicator of NCCL: calls are made one at a time, watched until NCCL says that they are done, and given up after a
//! deadline. What they move is not known here.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError, mpsc};
use std::time::{Duration, Instant};

use super::context::Context;
use super::foreign::{self, Code, text};
use super::nccl_config::{NcclConfig, NcclUniqueId};
use super::tables::{Nccl, NcclComm};
use crate::{DeviceError, Result};

const SUCCESS: Code = 0;
const REMOTE_ERROR: Code = 6;
const IN_PROGRESS: Code = 7;

/// The longest time that ending a communicator may take: at the end of a run nobody waits for peers that are gone.
const FAREWELL: Duration = Duration::from_secs(5);

pub struct Communicator {
    context: Arc<Context>,
    nccl: Nccl,
    // Invariant: held during every call, so that NCCL sees one at a time. None after the end.
    raw: Mutex<Option<Raw>>,
    /// No call begins any more, and whoever waits for one leaves.
    aborted: AtomicBool,
    /// Every rank is about to drop it.
    has_left: AtomicBool,
    patience: Duration,
}

struct Raw(NcclComm);

// SAFETY: a communicator may be used from any thread, one at a time, which the lock around it sees to.
unsafe impl Send for Raw {}

impl Communicator {
    /// Meets the other ranks under `id`. Fails, and leaves nothing behind, when they are not all there after `patience`.
    pub fn new(
        context: &Arc<Context>,
        id: NcclUniqueId,
        (rank, world_size): (usize, usize),
        mut config: NcclConfig,
        patience: Duration,
    ) -> Result<Communicator> {
        const CALL: &str = "ncclCommInitRankConfig";
        let nccl = *context.libraries.nccl()?;
        // The communicator belongs to the GPU that is current on this thread.
        context.driver()?;
        let mut raw: NcclComm = null_mut();
        // SAFETY: writes one pointer before it returns; the settings are copied, and lie as the library expects them.
        let code = unsafe { (nccl.ncclCommInitRankConfig)(&mut raw, world_size as i32, id, rank as i32, &mut config) };
        if raw.is_null() {
            return Err(problem(&nccl, raw, CALL, code));
        }
        let communicator = Communicator {
            context: context.clone(),
            nccl,
            raw: Mutex::new(Some(Raw(raw))),
            aborted: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            patience,
        };
        communicator.call(CALL, |_, _| code)?;
        Ok(communicator)
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Makes a call and stops the host until NCCL has done it, which for a collective means: queued it on its stream. A
    /// failure is for good, because NCCL's communicators do not recover: it aborts this one.
    pub fn call(&self, name: &'static str, make: impl FnOnce(&Nccl, NcclComm) -> Code) -> Result<()> {
        self.context.driver()?;
        let outcome = {
            let raw = self.raw.lock().expect("no holder of this lock panics");
            match &*raw {
                Some(Raw(raw)) if !self.is_aborted() => {
                    let code = make(&self.nccl, *raw);
                    self.watch(*raw, name, code, self.patience)
                }
                _ => Err(gone(name)),
            }
        };
        if outcome.is_err() {
            self.abort();
        }
        outcome
    }

    /// Waits while NCCL is at work on `call`, which answered with `code`.
    fn watch(&self, raw: NcclComm, call: &'static str, mut code: Code, patience: Duration) -> Result<()> {
        const AWAKE: Duration = Duration::from_micros(200);
        let begun = Instant::now();
        // Some calls answer with success though they have only begun, so the state is asked for in any case.
        if code == SUCCESS {
            code = self.state(raw)?;
        }
        while code == IN_PROGRESS {
            if self.is_aborted() {
                return Err(gone(call));
            }
            match begun.elapsed() {
                waited if waited > patience => {
                    let problem = format!("waited {patience:?} for the other ranks to do the same");
                    return Err(DeviceError::Peers { what: call, problem });
                }
                waited if waited > AWAKE => std::thread::sleep(Duration::from_micros(50)),
                _ => std::hint::spin_loop(),
            }
            code = self.state(raw)?;
        }
        if code == SUCCESS { Ok(()) } else { Err(problem(&self.nccl, raw, call, code)) }
    }

    fn state(&self, raw: NcclComm) -> Result<Code> {
        let mut state = SUCCESS;
        // SAFETY: writes one number; the communicator is alive while the lock is held.
        let code = unsafe { (self.nccl.ncclCommGetAsyncError)(raw, &mut state) };
        if code == SUCCESS { Ok(state) } else { Err(problem(&self.nccl, raw, "ncclCommGetAsyncError", code)) }
    }

    /// Fails when something went wrong since the last call: on the network, or in work that is under way.
    pub fn check(&self) -> Result<()> {
        const CALL: &str = "communication between GPUs";
        self.context.driver()?;
        let raw = match self.raw.try_lock() {
            Ok(raw) => raw,
            // Another thread is in a call, and watches the same state.
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Poisoned(_)) => return Err(gone(CALL)),
        };
        match &*raw {
            Some(Raw(raw)) if !self.is_aborted() => match self.state(*raw)? {
                SUCCESS | IN_PROGRESS => Ok(()),
                code => Err(problem(&self.nccl, *raw, CALL, code)),
            },
            _ => Err(gone(CALL)),
        }
    }

    /// Ends work that is under way, here, and makes every later call fail. May be called from any thread, any number of
    /// times; returns after a few seconds at most.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        let begun = Instant::now();
        // Whoever is in a call sees the flag and gives the lock back.
        let raw = loop {
            match self.raw.try_lock() {
                Ok(mut raw) => break raw.take(),
                Err(TryLockError::WouldBlock) if begun.elapsed() < FAREWELL => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(_) => return,
            }
        };
        if let Some(raw) = raw {
            self.end(raw, self.nccl.ncclCommAbort);
        }
    }

    /// Every rank calls it when all have come to a good end: dropped after this, it takes leave of the others, which do the
    /// same. Dropped without, it is left to the end of the process, for a peer that is gone would never answer.
    pub fn leave(&self) {
        self.has_left.store(true, Ordering::Release);
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Frees the communicator, on a thread of its own: that waits for the GPU, where work of a peer's making may be stuck
    /// for ever. What is not done in time is left to the end of the process.
    fn end(&self, raw: Raw, with: unsafe extern "C" fn(NcclComm) -> Code) {
        let context = self.context.clone();
        let (done, is_done) = mpsc::channel::<()>();
        let work = move || {
            let Raw(raw) = { raw };
            // The GPU must be current: NCCL would otherwise make a context on the first one.
            if context.driver().is_ok() {
                // SAFETY: taken out of the lock, so nobody else uses it, now or later.
                unsafe { with(raw) };
            }
            drop((context, done));
        };
        if std::thread::Builder::new().name("nccl-end".to_string()).spawn(work).is_ok() {
            let _ = is_done.recv_timeout(FAREWELL);
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let all_take_leave = *self.has_left.get_mut() && !self.is_aborted();
        let raw = self.raw.get_mut().ok().and_then(Option::take);
        let Some(raw) = raw.filter(|_| all_take_leave) else { return };
        let finalize = || -> Result<()> {
            self.context.driver()?;
            // SAFETY: alive, and not used after an error.
            let code = unsafe { (self.nccl.ncclCommFinalize)(raw.0) };
            self.watch(raw.0, "ncclCommFinalize", code, FAREWELL)
        };
        let end = if finalize().is_ok() { self.nccl.ncclCommDestroy } else { self.nccl.ncclCommAbort };
        self.end(raw, end);
    }
}

fn gone(call: &'static str) -> DeviceError {
    DeviceError::Peers { what: call, problem: "the communicator was aborted".to_string() }
}

/// The error for an answer that is not success, with what NCCL noted about it last.
fn problem(nccl: &Nccl, raw: NcclComm, call: &'static str, code: Code) -> DeviceError {
    // SAFETY: returns a static text for every number.
    let meaning = text(unsafe { (nccl.ncclGetErrorString)(code) });
    // SAFETY: returns a text that the library owns; the communicator may be null.
    let noted = text(unsafe { (nccl.ncclGetLastError)(raw) });
    let name = match noted.trim() {
        "" => meaning,
        noted => format!("{meaning}: {noted}"),
    };
    match code {
        REMOTE_ERROR => DeviceError::Peers { what: call, problem: name },
        code => foreign::failure(call, code, name),
    }
}
