//! The control plane: every rank says once in a while that it lives and where it is, rank 0 judges, and what it judges
//! ends all ranks together. It runs on threads of its own beside the training thread and moves no tensors.

mod judge;
pub(crate) mod limits;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod shared;
pub(crate) mod watch;

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use scout_core::ExitCode;

pub use limits::{Ending, Limits};

use crate::door::Door;
use crate::verdict::Verdict;
use shared::Shared;
use watch::Event;

/// A rank's part in the control plane. Dropping it without [`Control::leave`] is a death to the others.
pub struct Control {
    shared: Arc<Shared>,
    events: Sender<Event>,
    watch: Option<JoinHandle<()>>,
    /// Rank 0 keeps its door, to tell strangers and late ranks that they are not expected.
    door: Option<Door>,
}

/// For an answer of rank 0. All ranks are gone within two seconds of a death, and this is half of that.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

impl Control {
    pub(crate) fn new(
        shared: Arc<Shared>,
        events: Sender<Event>,
        watch: JoinHandle<()>,
        door: Option<Door>,
    ) -> Control {
        Control { shared, events, watch: Some(watch), door }
    }

    /// This rank has failed. Returns the verdict that counts, which is another one when somebody failed before; waits at
    /// most a second for it, and then this failure counts.
    pub fn fail(&self, code: ExitCode, sentence: &str) -> Verdict {
        // A watch that has gone answers nothing, and then this rank's own verdict counts.
        let _ = self.events.send(Event::Fail { code, sentence: sentence.to_string() });
        self.wait_for_verdict(ANSWER_LIMIT).unwrap_or_else(|| {
            let me = self.shared.mesh.rank();
            self.shared.adopt(Verdict { rank: me, code, sentence: sentence.to_string(), speaker: me })
        })
    }

    /// For threads beside the one that works: they may ask, and speak, but not leave.
    pub fn verdicts(&self) -> Verdicts {
        Verdicts(self.shared.clone())
    }

    pub fn verdict(&self) -> Option<Verdict> {
        self.shared.verdict()
    }

    /// For a rank whose collective failed: the cause, which may take a moment to arrive.
    pub fn wait_for_verdict(&self, patience: Duration) -> Option<Verdict> {
        self.shared.wait_for_verdict(patience)
    }

    /// For whoever is about to leave. Has the verdict printed by `say`, where it is this rank's to print and no thread has
    /// begun to; where another is at it, waits until that is done.
    pub fn tell(&self, say: impl FnOnce(&Verdict), patience: Duration) {
        self.shared.tell(say, patience);
    }

    /// Goodbye after success: from here on this rank's absence is no death.
    pub fn leave(self) {
        // Dropping waits until the goodbye is on its way.
        let _ = self.events.send(Event::Leave);
    }

    /// How long the job may go without progress, as of now.
    pub fn hang_limit(&self) -> Duration {
        self.shared.hang_limit()
    }

    /// How many connections knocked at rank 0 without proving that they belong to the job.
    pub fn num_refused(&self) -> u64 {
        self.door.as_ref().map_or(0, Door::num_refused)
    }

    /// Says nothing for a while, like a process that was stopped.
    #[cfg(test)]
    pub(crate) fn pause(&self, pause: Duration) {
        self.events.send(Event::Pause(pause)).unwrap();
    }
}

/// What any thread of a rank may ask of its control plane.
#[derive(Clone)]
pub struct Verdicts(Arc<Shared>);

impl Verdicts {
    /// See [`Control::wait_for_verdict`].
    pub fn wait_for_verdict(&self, patience: Duration) -> Option<Verdict> {
        self.0.wait_for_verdict(patience)
    }

    /// See [`Control::tell`].
    pub fn tell(&self, say: impl FnOnce(&Verdict), patience: Duration) {
        self.0.tell(say, patience);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.door.take();
        let _ = self.events.send(Event::Stop);
        if let Some(watch) = self.watch.take() {
            // A watch that panicked has left its links, which the others notice.
            let _ = watch.join();
        }
    }
}

#[cfg(test)]
mod tests;
