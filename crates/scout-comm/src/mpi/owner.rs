//! The thread that owns MPI. Before anything of unknown length moves, all ranks tell each other what they are about to
//! do. Every rank then knows the same and comes to the same decision: move the buffers, or end together. So a rank that
//! does something else is an error on all ranks, and never a transfer whose sides differ.
//!
//! Waiting for a late rank happens in that exchange alone; the transfers behind it block, because by then everybody is
//! there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use mpi::Threading;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use scout_core::{Mesh, Rank};
use scout_device::Buffer;

use super::exchange::{Heard, Said, exchange};
use super::transfer;
use crate::board::{Board, Given};
use crate::error::{CommError, Result};
use crate::ledger::Ledger;
use crate::op::Called;

/// What the owner is told to do next.
#[derive(Debug)]
pub(super) enum Order {
    /// Move this rank's part of operation `sequence`, and lay those of the others on the board.
    Part { sequence: u64, called: Called, buffer: Arc<Buffer> },
    /// The board says that the work was ended: tell the others.
    Abort,
    /// Leave, together with the others.
    Bye,
}

/// Who this rank is, and what is heard of the others.
pub(super) type Seat = (Mesh, Arc<Heard>);

/// Initialises MPI, says at `seat` who this rank is, and follows `orders` until all ranks have agreed on the end.
pub(super) fn own(orders: Receiver<Order>, ledger: &Ledger, seat: &Sender<Result<Seat>>) {
    // Nobody listens any more when the ranks took too long to begin; the process is about to end.
    let say = |seat_or_reason: std::result::Result<Seat, String>| {
        let _ = seat.send(seat_or_reason.map_err(|reason| CommError::Mpi { reason }));
    };
    let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return say(Err("it was initialised before in this process".to_string()));
    };
    if threading < Threading::Serialized {
        return say(Err(format!("it offers threads at the level {threading:?}, needed is Serialized")));
    }
    let world = universe.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    let Some(mesh) = Mesh::new(Rank(rank), size) else {
        return say(Err(format!("it calls this process rank {rank} of {size}")));
    };
    let heard = Arc::new(Heard::by(mesh));
    say(Ok((mesh, heard.clone())));
    let owner = Owner { world: &world, mesh, ledger, heard: &heard };
    owner.follow(orders);
    // `universe` is dropped here, which finalises MPI and waits for all ranks: they have agreed to come.
}

struct Owner<'a> {
    world: &'a SimpleCommunicator,
    mesh: Mesh,
    ledger: &'a Ledger,
    heard: &'a Heard,
}

/// What all ranks have decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Move,
    End,
}

impl Owner<'_> {
    fn follow(&self, orders: Receiver<Order>) {
        let _guard = AbortOnPanic(&self.ledger.board);
        let mut is_over = false;
        for order in orders {
            let is_last = matches!(order, Order::Bye);
            if !is_over {
                is_over = self.together(&order) == Decision::End;
            }
            if is_last && is_over {
                return;
            }
        }
    }

    /// Takes one step together with all ranks.
    fn together(&self, order: &Order) -> Decision {
        let ours = match (self.ledger.board.check(), order) {
            (Err(CommError::Aborted { reason }), _) => Said::Abort { reason },
            (Err(ended), _) => Said::Abort { reason: ended.to_string() },
            (Ok(()), Order::Part { sequence, called, .. }) => Said::Part { sequence: *sequence, called: *called },
            // The board would say so; this is the same in other words.
            (Ok(()), Order::Abort) => Said::Abort { reason: "a rank gave up".to_string() },
            (Ok(()), Order::Bye) => Said::Bye,
        };
        let all = exchange(self.world, self.mesh, (&self.ledger.board, self.heard), &ours);
        let decision = decide(&all);
        match (decision, order) {
            (Decision::Move, Order::Part { sequence, called, buffer }) => {
                let parts = transfer::parts(self.world, self.mesh, called, buffer);
                for (peer, part) in self.mesh.ranks().zip(parts) {
                    self.ledger.num_received.fetch_add(part.bytes().0, Ordering::Relaxed);
                    if peer != self.mesh.rank() {
                        let given = Given { called: *called, buffer: Arc::new(part) };
                        self.ledger.board.give(*sequence, self.mesh.size(), peer, given);
                    }
                }
            }
            _ if all.iter().all(|said| matches!(said, Said::Part { .. })) => {
                // Waits for this operation find who differs; this is for whatever is begun later.
                self.ledger.board.abort("the ranks called different operations");
            }
            _ => {}
        }
        decision
    }
}

/// Depends on nothing but what all have said, so every rank decides alike.
fn decide(all: &[Said]) -> Decision {
    match &all[0] {
        Said::Part { .. } if all.iter().all(|said| *said == all[0]) => Decision::Move,
        _ => Decision::End,
    }
}

/// The owner must not leave anybody waiting, not even by a mistake of ours.
struct AbortOnPanic<'a>(&'a Board);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort("the thread that owns MPI panicked");
        }
    }
}
