//! Ends that the collectives see by themselves, without a control plane: every rank gets an error that says who or why.

use std::time::{Duration, Instant};

use scout_comm::{CommError, Communicator};
use scout_core::Rank;
use scout_device::Buffer;

use super::PATIENT;
use super::backends::{BACKENDS, on_every_rank};

/// What each rank does, and what must be true of what all of them saw.
pub struct End {
    pub world: usize,
    /// Returns the error that this rank saw.
    pub role: fn(&dyn Communicator) -> CommError,
    /// Looks at what the ranks saw, in rank order; the name is that of the backend.
    pub check: fn(&str, &[String]),
}

impl End {
    fn over_all_backends(&self) {
        for (name, seen) in on_every_rank(BACKENDS, self.world, PATIENT, |comm| self.at_once(&*comm)) {
            (self.check)(name, &seen);
        }
    }

    /// The error that this rank sees, which must come at once.
    pub fn at_once(&self, comm: &dyn Communicator) -> String {
        let begun = Instant::now();
        let error = (self.role)(comm).to_string();
        assert!(begun.elapsed() < Duration::from_secs(15), "`{error}` came after {:?}", begun.elapsed());
        error
    }
}

fn reduce(comm: &dyn Communicator, len: usize) -> CommError {
    let begun = comm.all_reduce(Buffer::from_f32(vec![1.0; len]));
    begun.and_then(|pending| pending.wait()).unwrap_err()
}

pub const SOMETHING_ELSE: End = End {
    world: 3,
    role: |comm| match comm.mesh().rank().0 {
        1 => comm.broadcast(Rank(0), Buffer::from_f32(vec![1.0])).unwrap().wait().unwrap_err(),
        _ => reduce(comm, 1),
    },
    check: |name, errors| {
        let ours = "rank 1 called broadcast from rank 0 of 1 f32 where this rank called all_reduce of 1 f32 (#0)";
        for rank in [0, 2] {
            // A rank may also hear first that the other one, having seen the mismatch, has left.
            let is_named = errors[rank] == ours || errors[rank].starts_with("rank ");
            assert!(is_named, "{name}: {}", errors[rank]);
        }
        assert!(errors.iter().any(|error| error.contains("where this rank called")), "{name}: {errors:?}");
    },
};

#[test]
fn a_rank_that_does_something_else_is_named_on_every_rank_at_once() {
    SOMETHING_ELSE.over_all_backends();
}

/// The same operation of another length: the two sides of a transfer would differ.
pub const ANOTHER_LENGTH: End = End {
    world: 3,
    role: |comm| reduce(comm, if comm.mesh().rank() == Rank(1) { 70_000 } else { 7 }),
    check: |name, errors| {
        let ours = "rank 1 called all_reduce of 70000 f32 where this rank called all_reduce of 7 f32 (#0)";
        assert!([0, 2].iter().any(|rank| errors[*rank] == ours), "{name}: {errors:?}");
        assert!(errors.iter().all(|error| error.starts_with("rank ")), "{name}: {errors:?}");
    },
};

#[test]
fn a_rank_with_a_longer_buffer_is_named_on_every_rank_at_once() {
    ANOTHER_LENGTH.over_all_backends();
}

pub const ABORT: End = End {
    world: 4,
    role: |comm| {
        if comm.mesh().rank() == Rank(1) {
            comm.abort("the disk is full");
            comm.abort("an echo");
        }
        reduce(comm, 1)
    },
    check: |name, errors| {
        for error in errors {
            assert_eq!(error, "the ranks were ended: the disk is full", "{name}");
        }
    },
};

#[test]
fn an_abort_ends_every_wait_with_its_reason() {
    ABORT.over_all_backends();
}
