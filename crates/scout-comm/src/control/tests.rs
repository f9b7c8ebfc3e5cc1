//! Ranks as threads, judged.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scout_core::{ExitCode, Phase, Rank};

use super::{Ending, Verdict};
use crate::meeting::tests::{gather, guest, places};
use crate::meeting::{Approach, Seat};

fn seats(size: usize, change: impl Fn(usize, &mut Approach)) -> Vec<Seat> {
    let folder = tempfile::tempdir().unwrap();
    let [place, _] = places(folder.path());
    let guest = |rank| {
        let mut guest = guest(&place, rank, size);
        change(rank, &mut guest);
        guest
    };
    gather((0..size).map(guest).collect()).into_iter().map(Result::unwrap).collect()
}

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_rank_that_says_nothing_is_judged_to_be_stopped_and_hears_it_when_it_wakes() {
    let seats = seats(3, |_, guest| guest.limits.hang_limit = Some(Duration::from_secs(2)));
    for (rank, seat) in seats.iter().enumerate() {
        seat.job.whereabouts.enter_step(Phase::Forward, 418 + rank as u64);
    }
    // Until all have told where they are; rank 2 then falls silent for longer than the limit.
    std::thread::sleep(Duration::from_millis(800));
    seats[2].control.pause(Duration::from_secs(5));
    let expected = "rank 2 of 3 (host here, pid 1002) does not answer since 2 s, last seen in forward of step 420";
    for seat in &seats {
        let verdict = seat.control.wait_for_verdict(PATIENCE).unwrap();
        assert_eq!(verdict.sentence, expected);
        assert_eq!((verdict.rank, verdict.code, verdict.speaker), (Rank(2), ExitCode::PeerLost, Rank(0)));
    }
}

#[test]
fn a_silent_rank_0_is_judged_by_each_of_the_others() {
    let seats = seats(3, |_, guest| guest.limits.hang_limit = Some(Duration::from_secs(2)));
    seats.iter().for_each(|seat| seat.job.whereabouts.enter_step(Phase::Forward, 3));
    std::thread::sleep(Duration::from_millis(800));
    seats[0].control.pause(Duration::from_secs(5));
    for seat in &seats[1..] {
        let verdict = seat.control.wait_for_verdict(PATIENCE).unwrap();
        let expected = "rank 0 of 3 (host here, pid 1000) does not answer since 2 s, last seen in forward of step 3";
        assert_eq!(verdict.sentence, expected);
        assert_eq!((verdict.rank, verdict.speaker), (Rank(0), Rank(1)));
    }
}

#[test]
fn a_rank_that_stays_after_the_verdict_is_ended_with_it_and_prints_it_if_nobody_has() {
    let (ended, ends) = channel::<(usize, Verdict, Instant)>();
    let (said, words) = channel::<(usize, Instant)>();
    let (ended, said) = (Arc::new(Mutex::new(ended)), Arc::new(Mutex::new(said)));
    let seats = seats(4, |rank, guest| {
        let (ended, said) = (ended.clone(), said.clone());
        let end = move |verdict: &Verdict| {
            ended.lock().unwrap().send((rank, verdict.clone(), Instant::now())).unwrap();
        };
        let say = move |_: &Verdict| said.lock().unwrap().send((rank, Instant::now())).unwrap();
        guest.limits.ending = Ending::calling(say, end);
    });
    let failed = Instant::now();
    let verdict = seats[1].control.fail(ExitCode::NotANumber, "the loss is not a number");
    assert_eq!(verdict.speaker, Rank(1));
    // Rank 3 leaves in time.
    let mut seats = seats;
    drop(seats.pop());
    let mut left: Vec<usize> = Vec::new();
    for _ in 0..3 {
        let (rank, theirs, at) = ends.recv_timeout(PATIENCE).unwrap();
        assert_eq!(theirs, verdict);
        assert!(at - failed >= Duration::from_secs(1) && at - failed < Duration::from_secs(5), "{:?}", at - failed);
        left.push(rank);
    }
    left.sort_unstable();
    assert_eq!(left, [0, 1, 2]);
    let (rank, at) = words.try_recv().unwrap();
    assert_eq!(rank, 1);
    assert!(at - failed >= Duration::from_secs(1), "a rank tells its own failure itself, while it can");
    assert!(words.try_recv().is_err(), "once");
    seats[1].control.tell(|_| panic!("its words are said"), PATIENCE);
    drop(seats);
    assert!(ends.try_recv().is_err(), "each is ended once");
}

#[test]
fn the_loss_of_a_rank_is_told_at_once_by_one_of_the_others_whatever_its_work_is_at() {
    for (lost, speaker) in [(2, 0), (0, 1)] {
        let (said, words) = channel::<(usize, Verdict)>();
        let said = Arc::new(Mutex::new(said));
        let mut seats = seats(3, |rank, guest| {
            let said = said.clone();
            let say = move |verdict: &Verdict| said.lock().unwrap().send((rank, verdict.clone())).unwrap();
            guest.limits.ending = Ending::calling(say, |_| {});
        });
        let begun = Instant::now();
        drop(seats.remove(lost));
        let (rank, verdict) = words.recv_timeout(PATIENCE).unwrap();
        assert!(begun.elapsed() < Duration::from_millis(900), "before anybody is made to leave");
        assert_eq!((rank, verdict.rank, verdict.code), (speaker, Rank(lost), ExitCode::PeerLost));
        for seat in &seats {
            assert_eq!(seat.control.wait_for_verdict(PATIENCE), Some(verdict.clone()));
            seat.control.tell(|_| panic!("it is said"), PATIENCE);
        }
        drop(seats);
        assert!(words.try_recv().is_err(), "once");
    }
}

#[test]
fn whoever_prints_first_leaves_nothing_to_print_to_the_ending() {
    let (ended, ends) = channel();
    let ended = Mutex::new(ended);
    let never = |_: &Verdict| panic!("it is said");
    let ending = Ending::calling(never, move |_| ended.lock().unwrap().send(()).unwrap());
    let seats = seats(2, |rank, guest| {
        if rank == 1 {
            guest.limits.ending = ending.clone();
        }
    });
    seats[1].control.fail(ExitCode::BadData, "no rows");
    let mut is_said = false;
    seats[1].control.tell(|_| is_said = true, PATIENCE);
    assert!(is_said);
    ends.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_rank_that_fails_after_rank_0_has_left_judges_itself() {
    let mut seats = seats(3, |_, _| {});
    seats.remove(0).control.leave();
    let own = seats[0].control.fail(ExitCode::InputOutput, "the disk is full");
    assert_eq!((own.rank, own.speaker, own.code), (Rank(1), Rank(1), ExitCode::InputOutput));
    assert_eq!(seats[1].control.wait_for_verdict(Duration::from_millis(500)), None, "it may still end in peace");
}

#[test]
fn a_rank_that_fails_when_rank_0_is_gone_hears_its_last_word_before_its_own() {
    for (says, expected) in [(true, (Rank(0), ExitCode::BadData)), (false, (Rank(1), ExitCode::InputOutput))] {
        let mut seats = seats(2, |_, _| {});
        let first = seats.remove(0);
        // What comes while it sleeps is heard in this order: its own failure, the word of rank 0, the end of the connection.
        seats[0].control.pause(Duration::from_millis(300));
        let verdict = std::thread::scope(|scope| {
            let own = scope.spawn(|| seats[0].control.fail(ExitCode::InputOutput, "the disk is full"));
            std::thread::sleep(Duration::from_millis(100));
            if says {
                first.control.fail(ExitCode::BadData, "no rows");
            }
            drop(first);
            own.join().unwrap()
        });
        assert_eq!((verdict.rank, verdict.code), expected, "{verdict:?}");
        assert_eq!(verdict.speaker, verdict.rank);
    }
}

#[test]
fn a_failed_wait_finds_its_verdict_at_once() {
    let seats = seats(2, |_, _| {});
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let error = seats[1].job.comm.barrier().unwrap_err();
            (error.to_string(), error.is_an_echo(), seats[1].control.verdict())
        });
        let verdict = seats[0].control.fail(ExitCode::BadData, "no rows");
        let (error, is_an_echo, found) = waiting.join().unwrap();
        assert_eq!((error.as_str(), is_an_echo), ("the ranks were ended: no rows", true));
        // The reason may also have come over the stream, a moment before the verdict.
        assert_eq!(found.or_else(|| seats[1].control.wait_for_verdict(PATIENCE)), Some(verdict));
    });
}
