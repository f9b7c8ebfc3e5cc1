//! What happens when a rank does nothing, fails or is gone: a verdict that names it, in time, the same on every rank.

use std::sync::mpsc::channel;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use scout_comm::Verdict;
use scout_core::{ExitCode, Phase, Rank};
use scout_device::Buffer;

use super::PATIENT;
use super::backends::{BACKENDS, Member, STREAMS, on_every_rank};

fn reduce(comm: &Member) -> String {
    let begun = comm.all_reduce(Buffer::from_f32(vec![1.0]));
    begun.and_then(|pending| pending.wait()).unwrap_err().to_string()
}

/// Whether a verdict was left for this rank to print; it is printed now.
fn tells(member: &Member) -> bool {
    let mut is_told = false;
    member.control().tell(|_| is_told = true, PATIENT);
    is_told
}

/// What a rank is told after its collective failed.
fn verdict(member: &Member) -> Verdict {
    member.control().wait_for_verdict(PATIENT).expect("a verdict about the rank that is missing")
}

/// All verdicts are the same, and this is what they say.
fn expect_verdict(name: &str, verdicts: &[Verdict], rank: usize, code: ExitCode, sentence: &str) {
    for verdict in verdicts {
        assert_eq!(verdict.sentence, sentence, "{name}");
        assert_eq!((verdict.rank, verdict.code), (Rank(rank), code), "{name}");
        assert_eq!(verdict, &verdicts[0], "{name}");
    }
}

#[test]
fn a_thread_that_does_nothing_is_named_at_the_deadline() {
    let deadline = Duration::from_millis(300);
    for (name, errors) in on_every_rank(&BACKENDS[..1], 3, deadline, |comm| match comm.mesh().rank().0 {
        2 => String::new(),
        _ => comm.barrier().unwrap_err().to_string(),
    }) {
        for error in &errors[..2] {
            assert!(error.starts_with("barrier #0 waited") && error.ends_with("for rank 2"), "{name}: {errors:?}");
        }
    }
}

#[test]
fn a_rank_that_skips_a_collective_is_judged_to_hang_in_its_place() {
    let limit = Duration::from_secs(2);
    for (name, verdicts) in on_every_rank(STREAMS, 4, limit, |member| {
        member.barrier().unwrap();
        match member.mesh().rank().0 {
            2 => {
                member.whereabouts().enter_step(Phase::Backward, 418);
                verdict(&member)
            }
            _ => {
                let error = member.barrier().unwrap_err();
                assert!(error.is_an_echo(), "{error}");
                verdict(&member)
            }
        }
    }) {
        let sentence =
            "rank 2 of 4 (host here, pid 1002) hangs in backward of step 418; the others wait for it in barrier #1";
        expect_verdict(name, &verdicts, 2, ExitCode::PeerLost, sentence);
    }
}

#[test]
fn a_rank_that_dies_gives_every_other_rank_the_same_verdict_at_once() {
    let seated = Barrier::new(4);
    for dying in [1, 2, 3] {
        for (name, verdicts) in on_every_rank(STREAMS, 4, PATIENT, |member| {
            member.whereabouts().enter_step(Phase::Backward, 17);
            seated.wait();
            // Until every rank has told where it is.
            std::thread::sleep(Duration::from_millis(800));
            seated.wait();
            if member.mesh().rank().0 == dying {
                member.die();
                return None;
            }
            let begun = Instant::now();
            assert!(member.barrier().unwrap_err().is_an_echo());
            let verdict = verdict(&member);
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
            assert_eq!(verdict.speaker, Rank(0));
            assert!(!tells(&member), "its speaker has said it");
            Some(verdict)
        }) {
            let verdicts: Vec<Verdict> = verdicts.into_iter().flatten().collect();
            assert_eq!(verdicts.len(), 3);
            let pid = 1000 + dying;
            let sentence =
                format!("rank {dying} of 4 (host here, pid {pid}) was lost in backward of step 17: connection lost");
            expect_verdict(name, &verdicts, dying, ExitCode::PeerLost, &sentence);
        }
    }
}

#[test]
fn without_rank_0_the_others_judge_alike_and_rank_1_speaks() {
    let seated = Barrier::new(4);
    for (name, verdicts) in on_every_rank(STREAMS, 4, PATIENT, |member| {
        seated.wait();
        if member.mesh().is_first() {
            member.die();
            return None;
        }
        assert!(member.barrier().unwrap_err().is_an_echo());
        let verdict = verdict(&member);
        assert_eq!(verdict.speaker, Rank(1));
        assert!(!tells(&member), "once is enough");
        Some(verdict)
    }) {
        let verdicts: Vec<Verdict> = verdicts.into_iter().flatten().collect();
        assert_eq!(verdicts.len(), 3, "{name}");
        for verdict in &verdicts {
            assert_eq!((verdict.rank, verdict.code, verdict.speaker), (Rank(0), ExitCode::PeerLost, Rank(1)));
            let expected = "rank 0 of 4 (host here, pid 1000) was lost in ";
            assert!(verdict.sentence.starts_with(expected), "{name}: {}", verdict.sentence);
        }
    }
}

#[test]
fn a_rank_that_fails_gives_all_others_its_sentence_and_its_code() {
    // The one that fails stays until the others have heard of it: else they may hear first that it left.
    let (seated, heard) = (Barrier::new(3), Barrier::new(3));
    for failing in [0, 2] {
        for (name, verdicts) in on_every_rank(STREAMS, 3, PATIENT, |member| {
            seated.wait();
            if member.mesh().rank().0 == failing {
                let told = member.control().fail(ExitCode::BadData, "`rows.json` line 3 is empty");
                assert!(tells(&member));
                // Whatever goes wrong after that is its consequence.
                assert_eq!(member.control().fail(ExitCode::Internal, "later"), told);
                heard.wait();
                return told;
            }
            let ended = reduce(&member);
            heard.wait();
            assert_eq!(ended, "the ranks were ended: `rows.json` line 3 is empty");
            let verdict = verdict(&member);
            assert_eq!(member.control().fail(ExitCode::PeerLost, "an echo"), verdict);
            assert!(!tells(&member));
            verdict
        }) {
            expect_verdict(name, &verdicts, failing, ExitCode::BadData, "`rows.json` line 3 is empty");
        }
    }
}

#[test]
fn a_rank_that_leaves_in_peace_is_no_death_whoever_it_is() {
    let seated = Barrier::new(3);
    for leaving in [0, 1] {
        // Nobody ends before the one that leaves is gone and the others have had time to judge that.
        let (gone, is_gone) = channel();
        let is_gone = Mutex::new(is_gone);
        on_every_rank(&STREAMS[..1], 3, PATIENT, |member| {
            seated.wait();
            match member.mesh().rank().0 {
                rank if rank == leaving => {
                    drop(member);
                    (0..2).for_each(|_| gone.send(()).unwrap());
                }
                _ => {
                    is_gone.lock().unwrap().recv_timeout(PATIENT).unwrap();
                    assert_eq!(member.control().wait_for_verdict(Duration::from_millis(500)), None);
                    assert_eq!(reduce(&member), format!("rank {leaving} was lost: it left while it was waited for"));
                }
            }
        });
    }
}
