//! The board on which ranks lay down what they give and from which they take what all have given. Backends differ only
//! in how a rank's part reaches the boards of the others; waiting, checking and ending are here, once for all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use scout_core::{Mesh, Rank};
use scout_device::Buffer;

use crate::error::Called;
use crate::{CommError, Result};

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
}

/// One operation: what each rank has laid down so far. It leaves the board when everyone who takes from it has taken.
#[derive(Debug)]
struct Round {
    given: Vec<Option<Given>>,
    num_taken: usize,
}

/// A rank's part of an operation, with the fingerprint that all ranks must share.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub called: Called,
    pub buffer: Arc<Buffer>,
}

impl Board {
    /// Lays down `rank`'s part of operation `sequence`.
    pub fn give(&self, sequence: u64, size: usize, rank: Rank, given: Given) {
        let mut state = self.lock();
        let round = state.rounds.entry(sequence).or_insert_with(|| Round { given: vec![None; size], num_taken: 0 });
        round.given[rank.0] = Some(given);
        self.changed.notify_all();
    }

    /// Waits until every rank has given its part of operation `sequence`, checks that all mean the same, and takes it.
    /// `num_takers` ranks take from this board; with the last of them the operation leaves it.
    pub fn take(&self, sequence: u64, mesh: Mesh, num_takers: usize, deadline: Duration) -> Result<Vec<Arc<Buffer>>> {
        let begun = Instant::now();
        let mut state = self.lock();
        loop {
            let State { rounds, aborted, gone } = &mut *state;
            let round = rounds.get_mut(&sequence).expect("a rank takes only what it has given to");
            let ours = round.given[mesh.rank().0].clone().expect("a rank takes only what it has given to");
            for (rank, theirs) in round.given.iter().enumerate() {
                if let Some(theirs) = theirs {
                    expect_same(sequence, ours.called, theirs.called, Rank(rank))?;
                }
            }
            let missing = || round.given.iter().enumerate().filter(|(_, given)| given.is_none()).map(|(rank, _)| rank);
            // What has arrived whole is taken even if somebody is gone by now: this operation did happen.
            let Some(first_missing) = missing().next() else {
                let given = round.given.iter().flatten().map(|given| given.buffer.clone()).collect();
                round.num_taken += 1;
                if round.num_taken == num_takers {
                    rounds.remove(&sequence);
                }
                return Ok(given);
            };
            if let Some(reason) = aborted {
                return Err(CommError::Aborted { reason: reason.clone() });
            }
            if let Some((rank, reason)) = missing().find_map(|rank| Some((rank, gone.get(&rank)?))) {
                return Err(CommError::Lost { rank: Rank(rank), reason: reason.clone() });
            }
            let waited = begun.elapsed();
            let Some(left) = deadline.checked_sub(waited) else {
                return Err(CommError::Timeout { op: ours.called.op, sequence, waited, missing: Rank(first_missing) });
            };
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
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
        match &self.lock().aborted {
            Some(reason) => Err(CommError::Aborted { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A rank that panics while it holds the board leaves it as consistent as one that does not: entries are whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn expect_same(sequence: u64, ours: Called, theirs: Called, theirs_rank: Rank) -> Result<()> {
    if ours == theirs { Ok(()) } else { Err(CommError::OutOfStep { sequence, ours, theirs, theirs_rank }) }
}
