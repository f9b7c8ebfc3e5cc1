//! What a rank's collectives have come to so far. Backends write it; the control plane reads it,
//! and writes how long a wait may last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::board::Board;

/// What happens in a rank's collectives, for those who watch over it.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub board: Arc<Board>,
    /// Number of operations this rank has begun; equal operations carry equal numbers on all ranks.
    pub num_begun: AtomicU64,
    /// Bytes that came from other ranks.
    pub num_received: AtomicU64,
    /// In milliseconds.
    deadline: AtomicU64,
}

impl Ledger {
    pub fn new(deadline: Duration) -> Ledger {
        let ledger = Ledger {
            board: Arc::default(),
            num_begun: AtomicU64::new(0),
            num_received: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
        };
        ledger.set_deadline(deadline);
        ledger
    }

    pub fn num_begun(&self) -> u64 {
        self.num_begun.load(Ordering::Relaxed)
    }

    pub fn num_received(&self) -> u64 {
        self.num_received.load(Ordering::Relaxed)
    }

    /// How long operations that begin now may be waited for.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline.load(Ordering::Relaxed))
    }

    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline.store(deadline.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
