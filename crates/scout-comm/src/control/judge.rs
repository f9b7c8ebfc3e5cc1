//! Who is to blame, and when: a state machine fed with what was heard and what time it is. It reads no clock, no socket
//! and no memory of anybody else.

use std::time::Duration;

use scout_core::{ExitCode, Place, Rank};

use super::message::{Awaiting, Beat};
use crate::error::in_seconds;
use crate::peer::{PeerName, name_of};
use crate::verdict::Verdict;

/// Phases that happen a few times in a run may go without progress for this long, whatever the hang limit.
pub(crate) const LONG_PHASE: Duration = Duration::from_secs(600);

/// What was heard of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    Beat(Beat),
    Goodbye,
    Failed { code: ExitCode, sentence: String },
    Closed { reason: String },
}

/// Rank 0 judges all; the others judge only rank 0, and only whether it is there.
pub(crate) struct Judge {
    me: Rank,
    names: Vec<PeerName>,
    seen: Vec<Seen>,
}

/// All times count from the same beginning.
#[derive(Debug, Clone)]
struct Seen {
    is_here: bool,
    heard: Duration,
    progressed: Duration,
    beat: Option<Beat>,
}

impl Judge {
    pub fn new(me: Rank, names: Vec<PeerName>, now: Duration) -> Judge {
        let seen = vec![Seen { is_here: true, heard: now, progressed: now, beat: None }; names.len()];
        Judge { me, names, seen }
    }

    /// What `heard` of `rank` comes to.
    pub fn hear(&mut self, now: Duration, rank: Rank, heard: Heard) -> Option<Verdict> {
        let seen = &mut self.seen[rank.0];
        let was_here = seen.is_here;
        seen.heard = now;
        match heard {
            Heard::Beat(beat) => {
                if seen.beat != Some(beat) {
                    seen.progressed = now;
                }
                seen.beat = Some(beat);
                None
            }
            Heard::Goodbye => {
                seen.is_here = false;
                None
            }
            Heard::Failed { code, sentence } => Some(Verdict { rank, code, sentence, speaker: rank }),
            Heard::Closed { reason } if was_here => {
                let what = format!("was lost in {}: {reason}", self.place(rank));
                Some(self.verdict(rank, &what))
            }
            Heard::Closed { .. } => None,
        }
    }

    /// What the silence until now comes to, at a hang limit of `hang`.
    pub fn tick(&mut self, now: Duration, hang: Duration) -> Option<Verdict> {
        let others = (0..self.seen.len()).map(Rank).filter(|rank| *rank != self.me);
        let silent = |rank: &Rank| self.is_watched(*rank) && now.saturating_sub(self.seen[rank.0].heard) >= hang;
        if let Some(rank) = others.into_iter().find(silent) {
            let silence = now.saturating_sub(self.seen[rank.0].heard);
            // Parts of a second matter only to limits that are as short.
            let silence =
                if silence < Duration::from_secs(2) { silence } else { Duration::from_secs(silence.as_secs()) };
            let what = format!("does not answer since {}, last seen in {}", in_seconds(silence), self.place(rank));
            return Some(self.verdict(rank, &what));
        }
        if self.me == Rank(0) && self.seen.len() > 1 { self.find_hung(now, hang) } else { None }
    }

    /// The judge itself was away for `gap`, and must not hold that against anybody.
    pub fn forgive(&mut self, gap: Duration) {
        for seen in &mut self.seen {
            seen.heard += gap;
            seen.progressed += gap;
        }
    }

    /// `rank` has ended its work as it should, so it can print nothing any more.
    pub fn leaves(&mut self, rank: Rank) {
        self.seen[rank.0].is_here = false;
    }

    pub fn is_here(&self, rank: Rank) -> bool {
        self.seen[rank.0].is_here
    }

    fn is_watched(&self, rank: Rank) -> bool {
        self.is_here(rank) && (self.me == Rank(0) || rank == Rank(0))
    }

    /// Somebody hangs when nobody has made progress for too long. The rank that keeps the others waiting is the one that
    /// does not wait itself.
    fn find_hung(&self, now: Duration, hang: Duration) -> Option<Verdict> {
        let here = || (0..self.seen.len()).filter(|rank| self.seen[*rank].is_here);
        let progressed = here().map(|rank| self.seen[rank].progressed).max()?;
        let still = now.saturating_sub(progressed);
        // What a silent rank does is not known: it may be the one, and then it is not hanging but stopped.
        let is_silent = |rank: usize| now.saturating_sub(self.seen[rank].heard) >= hang / 4;
        if still < hang || here().any(is_silent) {
            return None;
        }
        let beat = |rank: usize| self.seen[rank].beat.as_ref();
        let busy: Vec<usize> = here().filter(|rank| beat(*rank).is_none_or(|beat| beat.awaited.is_none())).collect();
        let in_a_step = |rank: &usize| beat(*rank).is_some_and(|beat| beat.place.phase.is_of_a_step());
        let num_begun = |rank: &usize| beat(*rank).map_or(0, |beat| beat.num_begun);
        // Furthest behind first. Among equals all of which wait, it is the one whom the others miss.
        let num_missing = |rank: &usize| {
            let misses = |other: &usize| awaited(beat(*other)).is_some_and(|it| it.missing == Some(Rank(*rank)));
            std::cmp::Reverse(here().filter(misses).count())
        };
        // Ranks on GPUs begin no operations in a step, but one that stopped in it has not come as far as those that wait for it.
        let came_to = |rank: &usize| beat(*rank).map(|beat| (beat.place.step, beat.place.phase));
        let behind = |rank: &usize| (num_begun(rank), came_to(rank), num_missing(rank), *rank);
        let culprit = if busy.is_empty() {
            here().min_by_key(behind)
        } else if let Some(rank) = busy.iter().copied().filter(in_a_step).min_by_key(behind) {
            Some(rank)
        } else {
            busy.iter().copied().min_by_key(behind).filter(|_| still >= hang.max(LONG_PHASE))
        }?;
        let rank = Rank(culprit);
        let waiting = here().filter(|other| *other != culprit).filter_map(|other| awaited(beat(other)));
        let in_what = match waiting.min_by_key(|awaited| awaited.sequence) {
            Some(Awaiting { op, sequence, .. }) => format!("; the others wait for it in {op} #{sequence}"),
            None => String::new(),
        };
        Some(self.verdict(rank, &format!("hangs in {}{in_what}", self.place(rank))))
    }

    /// Where `rank` was when it was last heard of.
    fn place(&self, rank: Rank) -> Place {
        let start = Place { phase: scout_core::Phase::Start, step: 0 };
        self.seen[rank.0].beat.map_or(start, |beat| beat.place)
    }

    fn verdict(&self, rank: Rank, what: &str) -> Verdict {
        let sentence = format!("{} {what}", name_of(rank, &self.names));
        Verdict { rank, code: ExitCode::PeerLost, sentence, speaker: self.speaker_about(rank) }
    }

    /// Who prints a verdict about `rank`: the lowest rank that is left. All ranks must come to the same answer, also
    /// without rank 0 to tell them; when its whole host is gone, only ranks of other hosts are.
    fn speaker_about(&self, rank: Rank) -> Rank {
        let left = || (0..self.seen.len()).filter(|other| *other != rank.0 && self.seen[*other].is_here);
        let elsewhere = |other: &usize| rank == Rank(0) && self.names[*other].host != self.names[rank.0].host;
        left().find(elsewhere).or_else(|| left().next()).map_or(self.me, Rank)
    }
}

fn awaited(beat: Option<&Beat>) -> Option<Awaiting> {
    beat?.awaited
}

#[cfg(test)]
mod tests;
