//! How patient ranks are with each other, and what becomes of one that does not leave.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::verdict::Verdict;

/// How long a rank waits for others.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For all ranks to come.
    pub init_timeout: Duration,
    /// For a sign of progress. `None` means five times the slowest of a hundred steps, and not below 30 s.
    pub hang_limit: Option<Duration>,
    /// What becomes of a rank that is still there a second after the verdict.
    pub ending: Ending,
}

/// How a verdict is printed, and how a rank ends that does not leave by itself after one.
#[derive(Clone)]
pub struct Ending {
    say: Arc<Say>,
    end: Arc<End>,
}

type Say = dyn Fn(&Verdict) + Send + Sync;
type End = dyn Fn(&Verdict) + Send + Sync;

impl Ending {
    /// Calls `say` with a verdict that this rank is to print: with one about another rank as soon as there is one, with its
    /// own where nobody has printed it when the rank is ended. Calls `end` after that, which does not come back where the
    /// process is ended as it should be.
    pub fn calling(
        say: impl Fn(&Verdict) + Send + Sync + 'static,
        end: impl Fn(&Verdict) + Send + Sync + 'static,
    ) -> Ending {
        Ending { say: Arc::new(say), end: Arc::new(end) }
    }

    pub(super) fn say(&self, verdict: &Verdict) {
        (self.say)(verdict);
    }

    pub(super) fn end(&self, verdict: &Verdict) {
        (self.end)(verdict);
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ending")
    }
}
