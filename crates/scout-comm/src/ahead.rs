//! All-gathers that are put together before anybody waits for them, so that what is hidden behind compute is not only
//! the way of the parts but also the copy that makes a whole of them. Sums are made by whoever waits: their results are
//! needed at once.
//!
//! Three threads meet here. The training thread begins a gather: it lays its part on the board and leaves a [`Gathering`]
//! beside it. Whoever lays down the last part hands the gathering to the finisher of its rank and goes on; on `local` that
//! is some rank's training thread, over streams the reader of the slowest peer. The finisher, one thread for each
//! communicator, takes the parts and puts them together in the order in which they became whole. It never waits for another
//! rank, because what is not whole does not reach it, and so it can neither time out nor look like a rank that hangs.
//!
//! A training thread that waits finds the gathering in one of three states. `Open`: nobody has begun, and it does all of it
//! itself, as with any other operation; errors, deadlines and the time waited are decided at the board, in one place, and
//! no second thread has to wake for a gather that is waited for already. `InWork`: the finisher copies, and the training
//! thread is blocked until it is through. `Done`: it takes the buffer and goes on. Only one of the two gets the open
//! buffer, and only that one takes this rank's share from the board.
//!
//! A gathering that nobody will wait for is let go by the finisher, which then takes the parts and drops them, so that the
//! operation leaves the board.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use scout_core::Mesh;
use scout_device::Buffer;

use crate::board::Board;
use crate::error::Result;
use crate::finish;
use crate::gathering::{Ahead, Gathering, Order};

/// Where a rank takes what all have given: as one of `num_takers` that take from `board`.
#[derive(Debug, Clone)]
pub(crate) struct Taker {
    pub board: Arc<Board>,
    pub mesh: Mesh,
    pub num_takers: usize,
}

/// The thread that puts a rank's gathers together. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Finisher {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Finisher {
    pub fn start(taker: Taker) -> Finisher {
        let (orders, received) = channel();
        let thread = thread::Builder::new().name("gather".to_string()).spawn(move || finish_all(received, &taker));
        // A system that gives no thread loses speed only: orders reach nobody, and every gather stays open for its wait.
        Finisher { orders, thread: thread.ok() }
    }

    /// A gathering into `full`: one end for the board, one for the wait.
    pub fn promise(&self, full: Buffer) -> (Ahead, Arc<Gathering>) {
        let gathering = Arc::new(Gathering::into(full));
        (Ahead { gathering: gathering.clone(), orders: self.orders.clone() }, gathering)
    }
}

impl Drop for Finisher {
    /// Waits for the copies that were ordered before, and for nobody else.
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End);
        if let Some(thread) = self.thread.take() {
            // One that panicked is gone as well.
            let _ = thread.join();
        }
    }
}

fn finish_all(orders: Receiver<Order>, taker: &Taker) {
    for order in orders {
        let Order::Finish { sequence, gathering } = order else { return };
        let Some(full) = gathering.claim() else { continue };
        // Whole as it is, this waits for nothing.
        let given = taker.take(sequence, Duration::ZERO);
        let is_forgotten = Arc::strong_count(&gathering) == 1;
        let whole = given.and_then(|given| if is_forgotten { Ok(full) } else { finish::concatenated(&given, full) });
        if gathering.lay(whole) {
            taker.board.wake();
        }
    }
}

impl Taker {
    pub fn take(&self, sequence: u64, deadline: Duration) -> Result<Vec<Arc<Buffer>>> {
        self.board.take(sequence, self.mesh, self.num_takers, deadline)
    }

    /// Waits until the gather is whole, and puts it together unless that has begun.
    pub fn take_whole(&self, gathering: &Gathering, sequence: u64, deadline: Duration) -> Result<Buffer> {
        match gathering.claim() {
            Some(full) => finish::concatenated(&self.take(sequence, deadline)?, full),
            None => self.board.wait_for(gathering, sequence, self.mesh.rank(), deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use scout_core::{DType, Rank};

    use super::*;
    use crate::board::Given;
    use crate::op::{Called, Op};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn taker(board: &Arc<Board>, rank: usize) -> Taker {
        Taker { board: board.clone(), mesh: Mesh::new(Rank(rank), 2).unwrap(), num_takers: 1 }
    }

    fn part(value: f32) -> Given {
        let called = Called { op: Op::AllGather, count: 1, dtype: DType::F32 };
        Given { called, buffer: Arc::new(Buffer::from_f32(vec![value])) }
    }

    fn until(what: impl Fn() -> bool) {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < PATIENCE);
            thread::yield_now();
        }
    }

    #[test]
    fn a_gather_is_put_together_before_anybody_waits_for_it() {
        let board = Arc::new(Board::default());
        let taker = taker(&board, 0);
        let finisher = Finisher::start(taker.clone());
        let (ahead, gathering) = finisher.promise(Buffer::from_f32(vec![0.0; 2]));
        board.give_own(7, taker.mesh, part(1.0), Some(ahead));
        assert!(gathering.is_open());
        board.give(7, 2, Rank(1), part(2.0));
        until(|| gathering.is_done());
        let whole = taker.take_whole(&gathering, 7, PATIENCE).unwrap();
        assert_eq!(whole.f32s().unwrap(), [1.0, 2.0]);
        assert_eq!((board.waited(Rank(0)), board.num_rounds()), (Duration::ZERO, 0));
    }

    #[test]
    fn whoever_waits_already_puts_it_together_and_nobody_else_is_woken() {
        let board = Arc::new(Board::default());
        let taker = taker(&board, 0);
        let (orders, received) = channel();
        let (ahead, gathering) = Finisher { orders, thread: None }.promise(Buffer::from_f32(vec![0.0; 2]));
        // What the finisher's end said; it is over.
        assert!(matches!(received.recv(), Ok(Order::End)));
        board.give_own(0, taker.mesh, part(1.0), Some(ahead));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| taker.take_whole(&gathering, 0, PATIENCE).unwrap());
            until(|| board.awaited(Rank(0)).is_some());
            board.give(0, 2, Rank(1), part(2.0));
            assert_eq!(waiting.join().unwrap().f32s().unwrap(), [1.0, 2.0]);
        });
        assert!(received.recv().is_err(), "no order came");
        assert!(board.waited(Rank(0)) > Duration::ZERO);
    }

    #[test]
    fn a_gather_that_is_forgotten_leaves_the_board_when_it_is_whole() {
        let board = Arc::new(Board::default());
        let taker = taker(&board, 0);
        let finisher = Finisher::start(taker.clone());
        let (ahead, gathering) = finisher.promise(Buffer::from_f32(vec![0.0; 2]));
        board.give_own(0, taker.mesh, part(1.0), Some(ahead));
        drop(gathering);
        board.give(0, 2, Rank(1), part(2.0));
        until(|| board.num_rounds() == 0);
    }

    #[test]
    fn a_gather_that_never_becomes_whole_fails_like_any_other_operation() {
        for (spoil, expected) in [
            (
                Box::new(|board: &Board| board.abort("disk full")) as Box<dyn Fn(&Board)>,
                "the ranks were ended: disk full",
            ),
            (Box::new(|board: &Board| board.lose(Rank(1), "connection lost")), "rank 1 was lost: connection lost"),
            (
                Box::new(|board: &Board| {
                    let called = Called { op: Op::Barrier, count: 0, dtype: DType::U8 };
                    board.give(3, 2, Rank(1), Given { called, ..part(2.0) });
                }),
                "rank 1 called barrier of 0 u8 where this rank called all_gather of 1 f32 (#3)",
            ),
            (Box::new(|_: &Board| ()), "for rank 1"),
        ] {
            let board = Arc::new(Board::default());
            let taker = taker(&board, 0);
            let finisher = Finisher::start(taker.clone());
            let (ahead, gathering) = finisher.promise(Buffer::from_f32(vec![0.0; 2]));
            board.give_own(3, taker.mesh, part(1.0), Some(ahead));
            spoil(&board);
            let error = taker.take_whole(&gathering, 3, Duration::from_millis(50)).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}
