//! A gather that somebody may put together before anybody waits for it. It is in one of three states, and only one thread
//! gets the open buffer. Who puts it together, and when, is decided elsewhere.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};

use scout_device::Buffer;

use crate::error::Result;

/// The whole that is to be.
#[derive(Debug)]
pub(crate) struct Gathering {
    // Locked after the board, never before it.
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(Buffer),
    InWork { is_awaited: bool },
    Done(Result<Buffer>),
}

/// A gathering on the board, and the way to the finisher of its rank.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub gathering: Arc<Gathering>,
    pub orders: Sender<Order>,
}

/// What the finisher is told.
#[derive(Debug)]
pub(crate) enum Order {
    Finish { sequence: u64, gathering: Arc<Gathering> },
    End,
}

impl Ahead {
    /// Whether nobody has begun to put it together.
    pub fn is_open(&self) -> bool {
        self.gathering.is_open()
    }

    /// All parts lie on the board: the finisher may begin.
    pub fn hand_over(self, sequence: u64) {
        // Where the finisher has ended, the gathering stays open for its wait.
        let _ = self.orders.send(Order::Finish { sequence, gathering: self.gathering });
    }
}

impl Gathering {
    /// Nobody has begun to lay parts into `full`.
    pub fn into(full: Buffer) -> Gathering {
        Gathering { state: Mutex::new(State::Open(full)) }
    }

    pub fn is_open(&self) -> bool {
        matches!(*self.lock(), State::Open(_))
    }

    #[cfg(test)]
    pub fn is_done(&self) -> bool {
        matches!(*self.lock(), State::Done(_))
    }

    /// The open buffer, for whoever asks first.
    pub fn claim(&self) -> Option<Buffer> {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::InWork { is_awaited: false }) {
            State::Open(full) => Some(full),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Puts the result where the wait finds it. Returns whether somebody is blocked in that wait.
    pub fn lay(&self, whole: Result<Buffer>) -> bool {
        let before = std::mem::replace(&mut *self.lock(), State::Done(whole));
        matches!(before, State::InWork { is_awaited: true })
    }

    /// The result; or word that somebody waits for it, left for whoever will lay it.
    pub fn result(&self) -> Option<Result<Buffer>> {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::InWork { is_awaited: true }) {
            State::Done(whole) => Some(whole),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // States are replaced whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
