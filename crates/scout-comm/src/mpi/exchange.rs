//! What ranks tell each other before every step: messages of one fixed length, between any two ranks.
//!
//! They are begun and then asked after, with pauses. MPI's own way of waiting keeps a core busy, which the ranks need to
//! compute, and cannot be left when the work is ended elsewhere. They are no collective of MPI, so that a rank that ends
//! the work is heard at once, and it is known who keeps the others waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mpi::request::{self, Request};
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use scout_core::{ExitCode, Mesh, Rank};
use scout_device::Buffer;

use crate::board::{Board, Given};
use crate::op::Called;
use crate::wire::{self, Frame};

/// Length of every message. A reason that ends the work travels inside; what does not fit is cut off.
const MESSAGE_LEN: usize = 1024;
const MAX_REASON: usize = MESSAGE_LEN - wire::HEADER_LEN;
/// How long the others have to hear that the work was ended before MPI ends them.
const GRACE: Duration = Duration::from_secs(2);

/// What a rank is about to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Part { sequence: u64, called: Called },
    Abort { reason: String },
    Bye,
    Nonsense { problem: String },
}

/// What every rank said, in rank order. Waits until all have spoken; what ends the work is on the board as soon as one
/// rank has said it.
pub(super) fn exchange(
    world: &SimpleCommunicator,
    mesh: Mesh,
    (board, heard): (&Board, &Heard),
    ours: &Said,
) -> Vec<Said> {
    let message = ours.to_message();
    let mut rooms = vec![[0; MESSAGE_LEN]; mesh.size()];
    let mut all = vec![ours.clone(); mesh.size()];
    request::scope(|scope| {
        let mut unfinished = Vec::new();
        for (rank, room) in mesh.ranks().zip(&mut rooms).filter(|(rank, _)| *rank != mesh.rank()) {
            let peer = world.process_at_rank(rank.0 as i32);
            unfinished.push((None, peer.immediate_send(scope, &message[..])));
            unfinished.push((Some(rank), peer.immediate_receive_into(scope, &mut room[..])));
        }
        let mut patience = Patience::default();
        while !unfinished.is_empty() {
            let mut left = Vec::new();
            for (from, request) in unfinished {
                match (Request::test_with_data(request), from) {
                    (Ok((_, message)), Some(rank)) => {
                        all[rank.0] = Said::of_message(message);
                        heard.count(rank);
                        all[rank.0].tell(board, mesh, rank, ours);
                    }
                    (Ok(_), None) => {}
                    (Err(request), from) => left.push((from, request)),
                }
            }
            unfinished = left;
            if !unfinished.is_empty() && patience.is_over(board) {
                // A rank that computes on or hangs does not hear us, and one that waits inside MPI cannot be reached from
                // outside: nothing but MPI can end them all. Whoever had something to say has had the time to say it.
                world.abort(ExitCode::PeerLost.code().into());
            }
        }
    });
    all
}

impl Said {
    fn to_message(&self) -> [u8; MESSAGE_LEN] {
        let mut message = [0; MESSAGE_LEN];
        let sink = &mut message.as_mut_slice();
        match self {
            Said::Part { sequence, called } => wire::write_part(sink, *sequence, *called, (&nothing(), 0, 0)),
            Said::Abort { reason } => wire::write_abort(sink, &reason[..reason.floor_char_boundary(MAX_REASON)]),
            Said::Bye | Said::Nonsense { .. } => wire::write_bye(sink),
        }
        .expect("a frame without elements fits into a message");
        message
    }

    fn of_message(mut message: &[u8]) -> Said {
        match wire::read_frame(&mut message) {
            Ok(Frame::Part { sequence, called, .. }) => Said::Part { sequence, called },
            Ok(Frame::Abort { reason }) => Said::Abort { reason },
            Ok(Frame::Bye) => Said::Bye,
            Err(error) => Said::Nonsense { problem: error.to_string() },
        }
    }

    /// Tells the board that this, said by `rank`, ends the work of a rank that said `ours`.
    fn tell(&self, board: &Board, mesh: Mesh, rank: Rank, ours: &Said) {
        match (self, ours) {
            (Said::Abort { reason }, _) => board.abort(reason),
            (Said::Bye, _) => board.say_goodbye(rank),
            (Said::Nonsense { problem }, _) => board.lose(rank, problem),
            (Said::Part { sequence, called }, Said::Part { .. }) if self != ours => {
                // The board compares the calls and names who differs; it never comes to look at the elements.
                let given = Given { called: *called, buffer: Arc::new(nothing()) };
                board.give(*sequence, mesh.size(), rank, given);
            }
            (Said::Part { .. }, _) => {}
        }
    }
}

fn nothing() -> Buffer {
    Buffer::from_u8(Vec::new())
}

/// How many messages of each other rank have arrived. The board knows only of operations that all ranks have begun; this says
/// who keeps one from beginning.
#[derive(Debug)]
pub(super) struct Heard {
    num_messages: Vec<AtomicU64>,
}

impl Heard {
    pub fn by(mesh: Mesh) -> Heard {
        // No rank waits for itself.
        let count = |rank| AtomicU64::new(if rank == mesh.rank() { u64::MAX } else { 0 });
        Heard { num_messages: mesh.ranks().map(count).collect() }
    }

    fn count(&self, rank: Rank) {
        self.num_messages[rank.0].fetch_add(1, Ordering::Relaxed);
    }

    /// The rank that is furthest behind, unless all have begun operation `sequence`.
    pub fn latest_for(&self, sequence: u64) -> Option<Rank> {
        let counts = self.num_messages.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        let (rank, count) = counts.min_by_key(|(_, count)| *count)?;
        (count <= sequence).then_some(Rank(rank))
    }
}

/// How an owner waits for late ranks.
#[derive(Default)]
struct Patience {
    num_pauses: u64,
    ended_at: Option<Instant>,
}

impl Patience {
    /// Lets the ranks on this machine compute: a few turns at once, then longer and longer naps. Says whether it is too
    /// long since the work was ended.
    fn is_over(&mut self, board: &Board) -> bool {
        match self.num_pauses.checked_sub(64) {
            None => thread::yield_now(),
            Some(num_naps) => thread::sleep(Duration::from_micros(20 * (num_naps + 1).min(50))),
        }
        self.num_pauses += 1;
        board.check().is_err() && self.ended_at.get_or_insert_with(Instant::now).elapsed() > GRACE
    }
}

#[cfg(test)]
mod tests {
    use scout_core::DType;

    use super::*;
    use crate::op::Op;

    #[test]
    fn what_is_said_comes_out_of_a_message_and_a_reason_is_cut_to_what_fits() {
        let called = Called { op: Op::Broadcast { root: Rank(3) }, count: 1 << 40, dtype: DType::BF16 };
        for said in
            [Said::Part { sequence: 7, called }, Said::Abort { reason: "the disk is full".to_string() }, Said::Bye]
        {
            assert_eq!(Said::of_message(&said.to_message()), said);
        }
        let long = Said::Abort { reason: format!("a{}", "ü".repeat(MESSAGE_LEN)) };
        let expected = Said::Abort { reason: format!("a{}", "ü".repeat((MAX_REASON - 1) / 2)) };
        assert_eq!(Said::of_message(&long.to_message()), expected);
        assert!(matches!(Said::of_message(&[0xff; MESSAGE_LEN]), Said::Nonsense { .. }));
    }

    #[test]
    fn the_rank_that_is_furthest_behind_is_the_one_that_is_waited_for() {
        let heard = Heard::by(Mesh::new(Rank(0), 3).unwrap());
        for (rank, num_messages) in [(1, 3), (2, 2)] {
            (0..num_messages).for_each(|_| heard.count(Rank(rank)));
        }
        // Rank 2 has begun two operations: it keeps the third from beginning, and every one behind it.
        for (sequence, expected) in [(0, None), (1, None), (2, Some(Rank(2))), (5, Some(Rank(2)))] {
            assert_eq!(heard.latest_for(sequence), expected, "operation {sequence}");
        }
    }
}
