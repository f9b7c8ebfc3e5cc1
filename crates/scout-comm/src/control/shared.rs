//! What a rank's threads know together: the verdict, who has printed it, and how patient to be.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use scout_core::Mesh;

use super::judge::LONG_PHASE;
use super::limits::Limits;
use crate::communicator::Communicator;
use crate::ledger::Ledger;
use crate::verdict::Verdict;

pub(crate) struct Shared {
    pub mesh: Mesh,
    pub limits: Limits,
    /// What the collectives do, also before there are any.
    pub ledger: Arc<Ledger>,
    /// Not held alive from here: the communicator ends when the job drops it.
    comm: OnceLock<Weak<dyn Communicator>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    verdict: Option<Verdict>,
    word: Word,
    /// The last steps, the oldest first.
    steps: VecDeque<Duration>,
}

/// Whether this rank has printed a verdict that is its to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Word {
    #[default]
    Free,
    /// By a thread that is about to print it.
    Taken,
    Said,
}

/// Enough that one slow step in a hundred counts, few enough to forget how the run began.
const NUM_STEPS: usize = 200;
/// No limit that follows from steps is shorter.
const SHORTEST_LIMIT: Duration = Duration::from_secs(30);

impl Shared {
    pub fn new(mesh: Mesh, limits: Limits) -> Shared {
        let shared = Shared {
            mesh,
            limits,
            ledger: Arc::new(Ledger::new(LONG_PHASE)),
            comm: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        shared.ledger.set_deadline(backstop(shared.hang_limit()));
        shared
    }

    /// From here on a verdict ends the waits of `comm`.
    pub fn watch_over(&self, comm: &Arc<dyn Communicator>) {
        self.comm.set(Arc::downgrade(comm)).expect("a job has one communicator");
        if let Some(verdict) = self.verdict() {
            comm.abort(&verdict.sentence);
        }
    }

    /// The hang limit follows the slowest steps.
    pub fn step_took(&self, step: Duration) {
        let mut state = self.lock();
        if state.steps.len() == NUM_STEPS {
            state.steps.pop_front();
        }
        state.steps.push_back(step);
        drop(state);
        self.ledger.set_deadline(backstop(self.hang_limit()));
    }

    pub fn hang_limit(&self) -> Duration {
        self.limits.hang_limit.unwrap_or_else(|| SHORTEST_LIMIT.max(5 * slow_step(&self.lock().steps)))
    }

    pub fn verdict(&self) -> Option<Verdict> {
        self.lock().verdict.clone()
    }

    pub fn wait_for_verdict(&self, patience: Duration) -> Option<Verdict> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while state.verdict.is_none() {
            let left = until.checked_duration_since(Instant::now())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        state.verdict.clone()
    }

    /// The first verdict stays. Returns the one that counts, and ends the collectives with it.
    pub fn adopt(&self, verdict: Verdict) -> Verdict {
        self.settle_on(self.lock(), verdict)
    }

    /// The same for the thread that hears of what became of another rank, and has it printed by `say` if this rank is to do
    /// that: nobody else does, from the moment on in which there is a verdict.
    pub fn adopt_and_tell(&self, verdict: Verdict, say: impl FnOnce(&Verdict)) {
        let mut state = self.lock();
        let me = self.mesh.rank();
        let speaks = state.verdict.is_none() && verdict.speaker == me && verdict.rank != me;
        if speaks {
            state.word = Word::Taken;
        }
        let verdict = self.settle_on(state, verdict);
        if speaks {
            self.say(&verdict, say);
        }
    }

    fn settle_on(&self, mut state: MutexGuard<'_, State>, verdict: Verdict) -> Verdict {
        let verdict = state.verdict.get_or_insert(verdict).clone();
        drop(state);
        // The verdict stands before any wait fails, so that whoever asks for the cause finds it.
        self.changed.notify_all();
        self.ledger.board.abort(&verdict.sentence);
        if let Some(comm) = self.comm.get().and_then(Weak::upgrade) {
            comm.abort(&verdict.sentence);
        }
        verdict
    }

    pub fn tell(&self, say: impl FnOnce(&Verdict), patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        let Some(verdict) = state.verdict.clone().filter(|verdict| verdict.speaker == self.mesh.rank()) else { return };
        if state.word == Word::Free {
            state.word = Word::Taken;
            drop(state);
            return self.say(&verdict, say);
        }
        while state.word == Word::Taken {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// By the thread that took the word.
    fn say(&self, verdict: &Verdict, say: impl FnOnce(&Verdict)) {
        say(verdict);
        self.lock().word = Word::Said;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before the lock is given back.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The longest wait of a collective. The judge is always earlier; this holds only where there is no judge any more.
fn backstop(hang_limit: Duration) -> Duration {
    2 * hang_limit.max(LONG_PHASE)
}

/// The slowest of the last steps but for one in a hundred.
fn slow_step(steps: &VecDeque<Duration>) -> Duration {
    let mut steps: Vec<Duration> = steps.iter().copied().collect();
    steps.sort_unstable();
    match steps.len() {
        0 => Duration::ZERO,
        len => steps[len - 1 - len / 100],
    }
}

#[cfg(test)]
mod tests {
    use scout_core::{ExitCode, Rank};

    use std::sync::mpsc::channel;

    use super::*;
    use crate::control::limits::Ending;

    fn shared(hang_limit: Option<Duration>) -> Shared {
        let ending = Ending::calling(|_| {}, |_| {});
        let limits = Limits { init_timeout: Duration::from_secs(1), hang_limit, ending };
        Shared::new(Mesh::new(Rank(1), 2).unwrap(), limits)
    }

    #[test]
    fn the_hang_limit_follows_the_slowest_of_a_hundred_steps() {
        let seconds = Duration::from_secs;
        for (steps, expected) in [
            (vec![], 30),
            (vec![1], 30),
            (vec![7], 35),
            ([vec![10; 99], vec![100]].concat(), 50),
            ([vec![10; 98], vec![100; 2]].concat(), 500),
            ([vec![100; 2], vec![10; 200]].concat(), 50),
        ] {
            let shared = shared(None);
            steps.iter().for_each(|step| shared.step_took(seconds(*step)));
            assert_eq!(shared.hang_limit(), seconds(expected), "{steps:?}");
            assert_eq!(shared.ledger.deadline(), seconds(1200.max(2 * expected)));
        }
        let set = shared(Some(seconds(3)));
        set.step_took(seconds(100));
        assert_eq!(set.hang_limit(), seconds(3));
    }

    #[test]
    fn the_first_verdict_stays_and_is_printed_once_by_its_speaker() {
        let verdict = |speaker| {
            let sentence = format!("said by {speaker}");
            Verdict { rank: Rank(0), code: ExitCode::BadData, sentence, speaker: Rank(speaker) }
        };
        let told = |shared: &Shared| {
            let mut told = Vec::new();
            shared.tell(|verdict| told.push(verdict.clone()), Duration::ZERO);
            told
        };
        let ours = shared(None);
        assert_eq!(told(&ours), [], "nothing to say yet");
        assert_eq!(ours.wait_for_verdict(Duration::from_millis(1)), None);
        assert_eq!(ours.adopt(verdict(1)), verdict(1));
        assert_eq!(ours.adopt(verdict(0)), verdict(1));
        assert_eq!(ours.wait_for_verdict(Duration::ZERO), Some(verdict(1)));
        assert!(ours.ledger.board.check().unwrap_err().to_string().ends_with("said by 1"));
        assert_eq!(told(&ours), [verdict(1)]);
        assert_eq!(told(&ours), []);
        let theirs = shared(None);
        theirs.adopt(verdict(0));
        assert_eq!(told(&theirs), []);
    }

    #[test]
    fn nobody_leaves_while_another_thread_is_about_to_print_the_verdict() {
        let ours = shared(None);
        let verdict =
            Verdict { rank: Rank(0), code: ExitCode::PeerLost, sentence: "lost".to_string(), speaker: Rank(1) };
        ours.adopt(verdict);
        let never = |_: &Verdict| panic!("once is enough");
        let (begun, is_begun) = channel();
        let (end, ends) = channel();
        std::thread::scope(|scope| {
            let prints = move |_: &Verdict| {
                begun.send(()).unwrap();
                ends.recv().unwrap();
            };
            scope.spawn(|| ours.tell(prints, Duration::ZERO));
            is_begun.recv().unwrap();
            let now = Instant::now();
            ours.tell(never, Duration::from_millis(50));
            assert!(now.elapsed() >= Duration::from_millis(50));
            let waits = scope.spawn(|| ours.tell(never, Duration::from_secs(60)));
            end.send(()).unwrap();
            waits.join().unwrap();
            assert!(now.elapsed() < Duration::from_secs(30));
        });
    }
}
