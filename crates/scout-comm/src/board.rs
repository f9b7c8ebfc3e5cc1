//! The board on which ranks lay down what they give and from which they take what all have given. Backends differ only
//! in how a rank's part reaches the boards of the others; waiting, checking and ending are here, once for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use scout_core::{Mesh, Rank};
use scout_device::Buffer;

use crate::error::{CommError, Result};
use crate::gathering::{Ahead, Gathering};
use crate::op::{Called, Op};

#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rounds: HashMap<u64, Round>,
    /// The first reason for which somebody ended everything.
    aborted: Option<String>,
    /// Ranks that will give nothing more, and why. What they gave before still counts.
    gone: BTreeMap<usize, String>,
    /// Those of them that said goodbye.
    left: BTreeSet<usize>,
    /// How long threads of each rank have been blocked here, in all.
    waited: BTreeMap<usize, Duration>,
    /// Who is blocked here now: rank and operation, and since when.
    waiting: BTreeMap<(usize, u64), Instant>,
}

/// One operation: what each rank has laid down so far. It leaves the board when everyone who takes from it has taken.
#[derive(Debug)]
struct Round {
    given: Vec<Option<Given>>,
    /// Those who want to hear when all have given.
    ahead: Vec<Ahead>,
    num_taken: usize,
}

/// A rank's part of an operation, with the fingerprint that all ranks must share.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub called: Called,
    pub buffer: Arc<Buffer>,
}

/// An operation that a rank waits for, as others may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Awaited {
    pub sequence: u64,
    pub called: Called,
    pub since: Instant,
    /// The first rank that has not given its part.
    pub missing: Option<Rank>,
}

impl Board {
    /// Lays down `rank`'s part of operation `sequence`.
    pub fn give(&self, sequence: u64, size: usize, rank: Rank, given: Given) {
        self.lay_down(sequence, (size, rank), given, None);
    }

    /// The same for the part of the rank that calls; if it is one of a gather, `ahead` hears when all have given theirs.
    pub fn give_own(&self, sequence: u64, mesh: Mesh, given: Given, ahead: Option<Ahead>) {
        self.lay_down(sequence, (mesh.size(), mesh.rank()), given, ahead);
    }

    fn lay_down(&self, sequence: u64, (size, rank): (usize, Rank), given: Given, ahead: Option<Ahead>) {
        let mut state = self.lock();
        let round = state.rounds.entry(sequence).or_insert_with(|| Round::new(size));
        round.given[rank.0] = Some(given);
        round.ahead.extend(ahead);
        let (is_whole, agrees) = (round.missing().next().is_none(), round.agrees());
        let mut ahead = if is_whole && agrees { std::mem::take(&mut round.ahead) } else { Vec::new() };
        // What somebody waits for already is put together there.
        ahead.retain(Ahead::is_open);
        // A wait that would only go on is not worth waking a thread.
        if is_whole || !agrees {
            self.changed.notify_all();
        }
        drop(state);
        ahead.into_iter().for_each(|ahead| ahead.hand_over(sequence));
    }

    /// Waits until every rank has given its part of operation `sequence`, checks that all mean the same, and takes it.
    /// `num_takers` ranks take from this board; with the last of them the operation leaves it.
    pub fn take(&self, sequence: u64, mesh: Mesh, num_takers: usize, deadline: Duration) -> Result<Vec<Arc<Buffer>>> {
        let late = |state: &State, waited| {
            let (op, missing) = (state.rounds[&sequence].called_by(mesh.rank()).op, state.first_missing(sequence));
            let missing = missing.expect("an operation that all have given to has an outcome");
            Err(CommError::Timeout { op, sequence, waited, missing })
        };
        self.block((mesh.rank().0, sequence), deadline, |state| state.outcome(sequence, mesh, num_takers), late)
    }

    /// Waits for a gather of `rank` that is being put together on another thread.
    pub fn wait_for(&self, gathering: &Gathering, sequence: u64, rank: Rank, deadline: Duration) -> Result<Buffer> {
        // All have given theirs: if this takes too long, it is this rank that is late.
        let late = |_: &State, waited| Err(CommError::Timeout { op: Op::AllGather, sequence, waited, missing: rank });
        self.block((rank.0, sequence), deadline, |_| gathering.result(), late)
    }

    /// Lets those who wait here look again.
    pub fn wake(&self) {
        // Whoever has looked and is about to sleep still holds the lock.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Blocks the thread of `seat`, rank and operation, until `ready` has something; after `deadline`, what `late` says.
    fn block<T>(
        &self,
        seat: (usize, u64),
        deadline: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
        late: impl FnOnce(&State, Duration) -> T,
    ) -> T {
        let begun = Instant::now();
        let mut state = self.lock();
        let outcome = loop {
            if let Some(outcome) = ready(&mut state) {
                break outcome;
            }
            state.waiting.insert(seat, begun);
            let waited = begun.elapsed();
            let Some(left) = deadline.checked_sub(waited) else { break late(&state, waited) };
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        };
        if state.waiting.remove(&seat).is_some() {
            *state.waited.entry(seat.0).or_default() += begun.elapsed();
        }
        outcome
    }

    /// How long threads of `rank` have been blocked here, in all; waits that still run do not count yet.
    pub fn waited(&self, rank: Rank) -> Duration {
        self.lock().waited.get(&rank.0).copied().unwrap_or_default()
    }

    /// The earliest operation that `rank` waits for now.
    pub fn awaited(&self, rank: Rank) -> Option<Awaited> {
        let state = self.lock();
        let (&(_, sequence), &since) = state.waiting.range((rank.0, 0)..=(rank.0, u64::MAX)).next()?;
        let called = state.rounds.get(&sequence)?.called_by(rank);
        Some(Awaited { sequence, called, since, missing: state.first_missing(sequence) })
    }

    /// `rank` has said goodbye: it will give nothing more, and that is as it should be.
    pub fn say_goodbye(&self, rank: Rank) {
        self.lock().left.insert(rank.0);
        self.lose(rank, "it left while it was waited for");
    }

    pub fn has_left(&self, rank: Rank) -> bool {
        self.lock().left.contains(&rank.0)
    }

    /// Ends all waits, running and to come. The first reason is the cause; later ones are its echo.
    pub fn abort(&self, reason: &str) {
        self.lock().aborted.get_or_insert_with(|| reason.to_string());
        self.changed.notify_all();
    }

    /// `rank` will give nothing more: waits that still need it fail.
    pub fn lose(&self, rank: Rank, reason: &str) {
        self.lock().gone.entry(rank.0).or_insert_with(|| reason.to_string());
        self.changed.notify_all();
    }

    /// Fails once the work has been ended.
    pub fn check(&self) -> Result<()> {
        self.aborted().map_or(Ok(()), |reason| Err(CommError::Aborted { reason }))
    }

    /// Why the work has been ended, if it has.
    pub fn aborted(&self) -> Option<String> {
        self.lock().aborted.clone()
    }

    #[cfg(test)]
    pub fn num_rounds(&self) -> usize {
        self.lock().rounds.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A rank that panics while it holds the board leaves it as consistent as one that does not: entries are whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// What waiting for operation `sequence` comes to, once that is certain.
    fn outcome(&mut self, sequence: u64, mesh: Mesh, num_takers: usize) -> Option<Result<Vec<Arc<Buffer>>>> {
        let round = self.rounds.get_mut(&sequence).expect("a rank takes only what it has given to");
        let ours = round.called_by(mesh.rank());
        for (rank, theirs) in round.given.iter().enumerate() {
            if let Some(theirs) = theirs
                && let Err(error) = expect_same(sequence, ours, theirs.called, Rank(rank))
            {
                return Some(Err(error));
            }
        }
        // What has arrived whole is taken even if somebody is gone by now: this operation did happen.
        if round.missing().next().is_none() {
            let given = round.given.iter().flatten().map(|given| given.buffer.clone()).collect();
            round.num_taken += 1;
            if round.num_taken == num_takers {
                self.rounds.remove(&sequence);
            }
            return Some(Ok(given));
        }
        if let Some(reason) = &self.aborted {
            return Some(Err(CommError::Aborted { reason: reason.clone() }));
        }
        let (rank, reason) = round.missing().find_map(|rank| Some((rank, self.gone.get(&rank.0)?)))?;
        Some(Err(CommError::Lost { rank, reason: reason.clone() }))
    }

    fn first_missing(&self, sequence: u64) -> Option<Rank> {
        self.rounds.get(&sequence)?.missing().next()
    }
}

impl Round {
    fn new(size: usize) -> Round {
        Round { given: vec![None; size], ahead: Vec::new(), num_taken: 0 }
    }

    fn called_by(&self, rank: Rank) -> Called {
        self.given[rank.0].as_ref().expect("a rank takes only what it has given to").called
    }

    /// Whether all parts laid down so far belong to the same operation.
    fn agrees(&self) -> bool {
        let mut called = self.given.iter().flatten().map(|given| given.called);
        called.next().is_none_or(|first| called.all(|other| other == first))
    }

    fn missing(&self) -> impl Iterator<Item = Rank> {
        self.given.iter().enumerate().filter(|(_, given)| given.is_none()).map(|(rank, _)| Rank(rank))
    }
}

fn expect_same(sequence: u64, ours: Called, theirs: Called, theirs_rank: Rank) -> Result<()> {
    if ours == theirs { Ok(()) } else { Err(CommError::OutOfStep { sequence, ours, theirs, theirs_rank }) }
}

#[cfg(test)]
mod tests {
    use scout_core::DType;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn given() -> Given {
        let called = Called { op: Op::Barrier, count: 0, dtype: DType::U8 };
        Given { called, buffer: Arc::new(Buffer::zeros(DType::U8, 0).unwrap()) }
    }

    #[test]
    fn the_board_says_what_a_rank_waits_for_and_then_how_long_it_did() {
        let board = Board::default();
        let mesh = Mesh::new(Rank(1), 3).unwrap();
        let late = Duration::from_millis(50);
        board.give(7, 3, Rank(1), given());
        board.give(7, 3, Rank(0), given());
        assert_eq!((board.awaited(Rank(1)), board.waited(Rank(1))), (None, Duration::ZERO));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| board.take(7, mesh, 1, PATIENCE).unwrap());
            let awaited = loop {
                if let Some(awaited) = board.awaited(Rank(1)) {
                    break awaited;
                }
                std::thread::yield_now();
            };
            assert_eq!((awaited.sequence, awaited.called.op, awaited.missing), (7, Op::Barrier, Some(Rank(2))));
            std::thread::sleep(late);
            board.give(7, 3, Rank(2), given());
            waiting.join().unwrap();
        });
        assert_eq!(board.awaited(Rank(1)), None);
        assert!(board.waited(Rank(1)) >= late && board.waited(Rank(1)) < PATIENCE);
        assert_eq!(board.waited(Rank(0)), Duration::ZERO, "it has not waited");
    }
}
