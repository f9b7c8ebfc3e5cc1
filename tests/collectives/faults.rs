//! What happens when a rank does something else, does nothing, gives up or is gone: an error that names it, in time.

use std::time::{Duration, Instant};

use scout_comm::Communicator;
use scout_core::{ExitCode, Rank};
use scout_device::Buffer;

use super::PATIENT;
use super::backends::{BACKENDS, STREAMS, on_every_rank};

fn reduce(comm: &dyn Communicator) -> String {
    let begun = comm.all_reduce(Buffer::from_f32(vec![1.0]));
    begun.and_then(|pending| pending.wait()).unwrap_err().to_string()
}

#[test]
fn a_rank_that_does_something_else_is_named_on_every_rank_at_once() {
    let begun = Instant::now();
    for (name, errors) in on_every_rank(BACKENDS, 3, PATIENT, |comm| match comm.mesh().rank().0 {
        1 => comm.broadcast(Rank(0), Buffer::from_f32(vec![1.0])).unwrap().wait().unwrap_err().to_string(),
        _ => reduce(&*comm),
    }) {
        let ours = "rank 1 called broadcast from rank 0 of 1 f32 where this rank called all_reduce of 1 f32 (#0)";
        for rank in [0, 2] {
            // A rank may also hear first that the other one, having seen the mismatch, has left.
            let is_named = errors[rank] == ours || errors[rank].starts_with("rank ");
            assert!(is_named, "{name}: {}", errors[rank]);
        }
        assert!(errors.iter().any(|error| error.contains("where this rank called")), "{name}: {errors:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "a mismatch is no hang");
}

#[test]
fn a_rank_that_does_nothing_is_named_at_the_deadline() {
    let deadline = Duration::from_millis(300);
    for (name, errors) in on_every_rank(BACKENDS, 3, deadline, |comm| match comm.mesh().rank().0 {
        2 => {
            std::thread::sleep(Duration::from_millis(900));
            String::new()
        }
        _ => comm.barrier().unwrap_err().to_string(),
    }) {
        // The first to give up leaves, and the second may hear of that before its own deadline.
        let first = errors[..2].iter().find(|error| error.starts_with("barrier #0 waited"));
        assert!(first.is_some_and(|error| error.ends_with("for rank 2")), "{name}: {errors:?}");
    }
}

#[test]
fn an_abort_ends_every_wait_with_its_reason() {
    let begun = Instant::now();
    for (name, errors) in on_every_rank(BACKENDS, 4, PATIENT, |comm| match comm.mesh().rank().0 {
        1 => {
            comm.abort("the disk is full");
            comm.abort("an echo");
            reduce(&*comm)
        }
        _ => reduce(&*comm),
    }) {
        for error in errors {
            assert_eq!(error, "the ranks were ended: the disk is full", "{name}");
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_rank_that_is_gone_is_named_and_means_requeue() {
    for (name, errors) in on_every_rank(STREAMS, 3, PATIENT, |comm| match comm.mesh().rank().0 {
        2 => None,
        _ => {
            let begun = comm.all_reduce(Buffer::from_f32(vec![1.0]));
            Some(begun.and_then(|pending| pending.wait()).unwrap_err())
        }
    }) {
        let told: Vec<String> = errors.iter().flatten().map(|error| error.to_string()).collect();
        assert!(told.contains(&"rank 2 was lost: it left while it was waited for".to_string()), "{name}: {told:?}");
        assert!(errors.iter().flatten().all(|error| error.exit_code() == ExitCode::PeerLost));
    }
}
