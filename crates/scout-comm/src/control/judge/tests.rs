//! Cases: what happened, at which second, and what the judge says to it.

use scout_core::Phase;

use super::*;
use crate::op::Op;

/// What happens at some second: a rank is heard of, or all that matters is the time.
enum Event {
    Hear(usize, Heard),
    /// Every rank but these repeats its last beat, until the next event: alive, no progress.
    Still(&'static [usize]),
}
use Event::{Hear, Still};

const HANG: u64 = 30;

fn names() -> Vec<PeerName> {
    let host = |rank| if rank < 2 { "a".to_string() } else { "b".to_string() };
    (0..4).map(|rank| PeerName { host: host(rank), pid: 100 + rank as u32 }).collect()
}

fn beat(phase: Phase, num_begun: u64, awaited: Option<(Op, u64, usize)>) -> Heard {
    let awaited = awaited.map(|(op, sequence, missing)| Awaiting { sequence, op, missing: Some(Rank(missing)) });
    let place = Place { phase, step: 7 };
    Heard::Beat(Beat { place, num_changes: 1, num_begun, num_received: 0, awaited })
}

fn waits(num_begun: u64, missing: usize) -> Heard {
    beat(Phase::Reduce, num_begun, Some((Op::ReduceScatter, num_begun - 1, missing)))
}

/// Lets `events` happen, each lasting until the next, and asks the judge every second until `end`.
fn judged(me: usize, events: Vec<(u64, Event)>, end: u64) -> Option<(u64, Verdict)> {
    let mut judge = Judge::new(Rank(me), names(), Duration::ZERO);
    let mut last: Vec<Option<Heard>> = vec![None; 4];
    let mut silent: &[usize] = &[0, 1, 2, 3];
    let mut events = events.into_iter().peekable();
    for second in 0..=end {
        let now = Duration::from_secs(second);
        while let Some((_, event)) = events.next_if(|(at, _)| *at == second) {
            match event {
                Hear(rank, heard) => {
                    if matches!(heard, Heard::Beat(_)) {
                        last[rank] = Some(heard.clone());
                    }
                    if let Some(verdict) = judge.hear(now, Rank(rank), heard) {
                        return Some((second, verdict));
                    }
                }
                Still(but) => silent = but,
            }
        }
        for (rank, heard) in last.iter().enumerate().filter(|(rank, _)| !silent.contains(rank)) {
            if let Some(heard) = heard {
                assert_eq!(judge.hear(now, Rank(rank), heard.clone()), None);
            }
        }
        if let Some(verdict) = judge.tick(now, Duration::from_secs(HANG)) {
            return Some((second, verdict));
        }
    }
    None
}

/// `expected`: when, which rank, who speaks, and the sentence after the rank's name.
fn check(name: &str, me: usize, events: Vec<(u64, Event)>, expected: Option<(u64, usize, usize, &str)>) {
    let found = judged(me, events, 2000);
    let expected = expected.map(|(second, rank, speaker, what)| {
        let sentence = format!("{} {what}", name_of(Rank(rank), &names()));
        (second, Verdict { rank: Rank(rank), code: ExitCode::PeerLost, sentence, speaker: Rank(speaker) })
    });
    assert_eq!(found, expected, "{name}");
}

fn all(heard: impl Fn(usize) -> Heard) -> Vec<(u64, Event)> {
    (0..4).map(|rank| (0, Hear(rank, heard(rank)))).collect()
}

fn then(mut first: Vec<(u64, Event)>, more: Vec<(u64, Event)>) -> Vec<(u64, Event)> {
    first.extend(more);
    first
}

fn closed() -> Heard {
    Heard::Closed { reason: "connection lost".to_string() }
}

#[test]
fn the_dead_are_lost_and_those_who_left_are_not() {
    let at_work = || then(all(|_| beat(Phase::Backward, 5, None)), vec![(0, Still(&[]))]);
    let lost = "was lost in backward of step 7: connection lost";
    check("killed", 0, then(at_work(), vec![(3, Hear(2, closed()))]), Some((3, 2, 0, lost)));
    check(
        "before it said anything",
        0,
        vec![(3, Hear(2, closed()))],
        Some((3, 2, 0, "was lost in start: connection lost")),
    );
    let left = vec![(3, Hear(2, Heard::Goodbye)), (4, Hear(2, closed())), (5, Hear(3, closed()))];
    check("left, and another one killed", 0, then(at_work(), left), Some((5, 3, 0, lost)));
    check("rank 0 killed, seen from 1", 1, then(at_work(), vec![(3, Hear(0, closed()))]), Some((3, 0, 2, lost)));
    check("rank 0 killed, seen from 3", 3, then(at_work(), vec![(3, Hear(0, closed()))]), Some((3, 0, 2, lost)));
}

#[test]
fn the_speaker_without_rank_0_is_the_lowest_that_is_left_on_another_host_if_there_is_one() {
    for (gone, expected) in [(vec![], 2), (vec![2], 3), (vec![2, 3], 1)] {
        let mut judge = Judge::new(Rank(1), names(), Duration::ZERO);
        gone.iter().for_each(|rank| judge.leaves(Rank(*rank)));
        let verdict = judge.hear(Duration::ZERO, Rank(0), closed()).unwrap();
        assert_eq!(verdict.speaker, Rank(expected), "{gone:?} are gone");
    }
}

#[test]
fn a_rank_that_says_nothing_for_the_hang_limit_is_stopped_in_every_phase() {
    for phase in [Phase::Forward, Phase::Save] {
        let events = then(all(|_| beat(phase, 5, None)), vec![(0, Still(&[])), (10, Still(&[3]))]);
        let what = format!("does not answer since 30 s, last seen in {phase} of step 7");
        check("stopped", 0, events, Some((39, 3, 0, &what)));
    }
    let events = || then(all(|_| beat(Phase::Save, 5, None)), vec![(0, Still(&[0, 3]))]);
    check(
        "rank 1 judges rank 0 only",
        1,
        events(),
        Some((30, 0, 2, "does not answer since 30 s, last seen in save of step 7")),
    );
}

#[test]
fn the_rank_that_does_not_wait_is_the_one_that_hangs() {
    let hangs = |phase| {
        move |rank| match rank {
            2 => beat(phase, 8123, None),
            _ => waits(8124, 2),
        }
    };
    let still = || vec![(0, Still(&[]))];
    let what = "hangs in backward of step 7; the others wait for it in reduce_scatter #8123";
    check("in a step", 0, then(all(hangs(Phase::Backward)), still()), Some((30, 2, 0, what)));
    let what = "hangs in data of step 7; the others wait for it in reduce_scatter #8123";
    check("in a long phase", 0, then(all(hangs(Phase::Data)), still()), Some((600, 2, 0, what)));
    check("not rank 1's business", 1, then(all(hangs(Phase::Backward)), still()), None);

    let furthest_behind = |rank| beat(Phase::Forward, if rank == 3 { 4 } else { 5 }, None);
    check("nobody waits", 0, then(all(furthest_behind), still()), Some((30, 3, 0, "hangs in forward of step 7")));
    let on_gpus = |rank| beat(if rank == 2 { Phase::Forward } else { Phase::Reduce }, 5, None);
    check("GPUs wait", 0, then(all(on_gpus), still()), Some((30, 2, 0, "hangs in forward of step 7")));
    let missed = |rank| waits(9, if rank == 1 { 0 } else { 1 });
    let what = "hangs in reduce of step 7; the others wait for it in reduce_scatter #8";
    check("all wait for the same", 0, then(all(missed), still()), Some((30, 1, 0, what)));
    let rank_0 = |rank| if rank == 0 { beat(Phase::Loss, 3, None) } else { waits(4, 0) };
    let what = "hangs in loss of step 7; the others wait for it in reduce_scatter #3";
    check("rank 0 itself", 0, then(all(rank_0), still()), Some((30, 0, 2, what)));
    let long_and_short = |rank| match rank {
        1 => beat(Phase::Save, 3, None),
        2 => beat(Phase::Forward, 3, None),
        _ => waits(4, 1),
    };
    let what = "hangs in forward of step 7; the others wait for it in reduce_scatter #3";
    check("a long phase excuses only itself", 0, then(all(long_and_short), still()), Some((30, 2, 0, what)));
}

#[test]
fn any_progress_of_anybody_is_no_hang() {
    let received = |num_received| {
        let place = Place { phase: Phase::Reduce, step: 7 };
        let awaited = Some(Awaiting { sequence: 3, op: Op::AllReduce, missing: Some(Rank(1)) });
        Heard::Beat(Beat { place, num_changes: 1, num_begun: 4, num_received, awaited })
    };
    let mut slow_transfer = then(all(|_| received(0)), vec![(0, Still(&[]))]);
    slow_transfer.extend((1..=10).map(|turn| (turn * 29, Hear(3, received(turn)))));
    let what = "hangs in reduce of step 7; the others wait for it in all_reduce #3";
    check("bytes come until second 290", 0, slow_transfer, Some((320, 1, 0, what)));
    let left = |rank| (5, Hear(rank, Heard::Goodbye));
    check("all have left", 0, vec![left(1), left(2), left(3), (5, Hear(0, Heard::Goodbye))], None);
}

#[test]
fn a_failure_is_told_in_the_words_and_with_the_code_of_the_rank_that_failed() {
    let mut judge = Judge::new(Rank(0), names(), Duration::ZERO);
    let failed = Heard::Failed { code: ExitCode::BadData, sentence: "`a` is empty".to_string() };
    let verdict = judge.hear(Duration::ZERO, Rank(3), failed).unwrap();
    let sentence = "`a` is empty".to_string();
    assert_eq!(verdict, Verdict { rank: Rank(3), code: ExitCode::BadData, sentence, speaker: Rank(3) });
}

#[test]
fn a_judge_that_was_away_blames_nobody_for_it() {
    let mut judge = Judge::new(Rank(0), names(), Duration::ZERO);
    let (hang, later) = (Duration::from_secs(HANG), Duration::from_secs(3000));
    judge.forgive(Duration::from_secs(2990));
    assert_eq!(judge.tick(later, hang), None);
    assert!(judge.tick(later + hang, hang).is_some());
}
