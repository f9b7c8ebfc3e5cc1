//! Ranks as processes, each with a stream to every other. A rank writes its part of an operation to the others and lays
//! it on its own board; what the others write is laid there too, by one reader for each. Who may connect, and how the
//! streams come about, is decided before.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use scout_core::{DType, Mesh, Rank};
use scout_device::Buffer;

use crate::ahead::{Finisher, Taker};
use crate::board::{Board, Given};
use crate::communicator::{Communicator, Pending, expect_len};
use crate::error::{CommError, Result};
use crate::finish;
use crate::gathering::Ahead;
use crate::ledger::Ledger;
use crate::op::{Called, Op};
use crate::stream::PeerStream;
use crate::wire::{self, Frame};

#[derive(Debug)]
pub(crate) struct TcpCommunicator {
    /// Nobody else takes from this rank's board.
    taker: Taker,
    ledger: Arc<Ledger>,
    /// One for each rank; none for this one.
    peers: Vec<Option<Peer>>,
    /// Whether the peers have been told that the work has ended.
    has_passed_on: AtomicBool,
    finisher: Finisher,
}

/// The threads around one peer's stream.
#[derive(Debug)]
struct Peer {
    stream: PeerStream,
    orders: Sender<Order>,
    /// Writes in the order in which it is told.
    writer: JoinHandle<()>,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
enum Order {
    Part { sequence: u64, called: Called, buffer: Arc<Buffer>, start: usize, len: usize },
    Abort { reason: String },
    Bye,
}

/// A rank that ends in peace writes until all is written; after an abort it has this long to pass the reason on.
const LAST_WORDS: Duration = Duration::from_millis(300);

impl TcpCommunicator {
    /// Takes over `streams`: one entry for each rank, `None` for this one. Both ends must belong to the same job.
    pub fn new(mesh: Mesh, streams: Vec<Option<PeerStream>>, ledger: Arc<Ledger>) -> Result<TcpCommunicator> {
        let mut peers = Vec::with_capacity(mesh.size());
        for (peer, stream) in mesh.ranks().zip(streams) {
            let opened = stream.map(|stream| Peer::new(peer, stream, mesh.size(), &ledger)).transpose();
            peers.push(opened.map_err(|cause| CommError::Stream { peer, cause })?);
        }
        let taker = Taker { board: ledger.board.clone(), mesh, num_takers: 1 };
        let (has_passed_on, finisher) = (AtomicBool::new(false), Finisher::start(taker.clone()));
        Ok(TcpCommunicator { taker, ledger, peers, has_passed_on, finisher })
    }

    /// Begins an operation of which `part` says what each rank gets, as start and length inside `buffer`.
    fn begin(
        &self,
        op: Op,
        buffer: Buffer,
        part: impl Fn(Rank) -> (usize, usize),
        finish: impl FnOnce(Vec<Arc<Buffer>>) -> Result<Buffer> + Send + 'static,
    ) -> Result<Pending> {
        let sequence = self.send(op, buffer, part, None)?;
        let taker = self.taker.clone();
        Ok(Pending::new(self.ledger.deadline(), move |deadline| finish(taker.take(sequence, deadline)?)))
    }

    /// Sends every rank its part of the next operation, lays down this rank's own, and returns the operation's number.
    fn send(&self, op: Op, buffer: Buffer, part: impl Fn(Rank) -> (usize, usize), ahead: Option<Ahead>) -> Result<u64> {
        self.ledger.board.check()?;
        let sequence = self.ledger.num_begun.fetch_add(1, Ordering::Relaxed);
        let called = Called { op, count: buffer.len(), dtype: buffer.dtype() };
        let own = match part(self.taker.mesh.rank()) {
            (0, len) if len == buffer.len() => None,
            (start, len) => Some(buffer.part(start..start + len)?),
        };
        let buffer = Arc::new(buffer);
        for (rank, peer) in self.taker.mesh.ranks().zip(&self.peers) {
            if let Some(peer) = peer {
                let (start, len) = part(rank);
                peer.order(Order::Part { sequence, called, buffer: buffer.clone(), start, len });
            }
        }
        let own = own.map_or(buffer, Arc::new);
        self.ledger.board.give_own(sequence, self.taker.mesh, Given { called, buffer: own }, ahead);
        Ok(sequence)
    }

    /// Tells the peers, once, why the work has ended. Returns whether it has.
    fn pass_on_the_end(&self) -> bool {
        let Some(reason) = self.ledger.board.aborted() else { return false };
        if !self.has_passed_on.swap(true, Ordering::Relaxed) {
            for peer in self.peers.iter().flatten() {
                peer.order(Order::Abort { reason: reason.clone() });
            }
        }
        true
    }
}

impl Communicator for TcpCommunicator {
    fn mesh(&self) -> Mesh {
        self.taker.mesh
    }

    fn all_gather(&self, shard: &Buffer, full: Buffer) -> Result<Pending> {
        expect_len(Op::AllGather, full.len(), shard.len() * self.taker.mesh.size())?;
        let len = shard.len();
        let (ahead, gathering) = self.finisher.promise(full);
        let sequence = self.send(Op::AllGather, shard.clone(), |_| (0, len), Some(ahead))?;
        let taker = self.taker.clone();
        Ok(Pending::new(self.ledger.deadline(), move |deadline| taker.take_whole(&gathering, sequence, deadline)))
    }

    fn reduce_scatter(&self, full: Buffer, shard: Buffer) -> Result<Pending> {
        expect_len(Op::ReduceScatter, full.len(), shard.len() * self.taker.mesh.size())?;
        let len = shard.len();
        // Each rank is sent only what it sums.
        self.begin(Op::ReduceScatter, full, |peer| (peer.0 * len, len), move |given| finish::summed(&given, 0, shard))
    }

    fn all_reduce(&self, buffer: Buffer) -> Result<Pending> {
        let sum = Buffer::zeros(buffer.dtype(), buffer.len())?;
        let len = buffer.len();
        self.begin(Op::AllReduce, buffer, |_| (0, len), move |given| finish::summed(&given, 0, sum))
    }

    fn broadcast(&self, root: Rank, buffer: Buffer) -> Result<Pending> {
        // Only the root's elements travel; the others say that they are here.
        let len = if self.taker.mesh.rank() == root { buffer.len() } else { 0 };
        self.begin(Op::Broadcast { root }, buffer, |_| (0, len), move |given| Ok((*given[root.0]).clone()))
    }

    fn barrier(&self) -> Result<()> {
        let nothing = Buffer::zeros(DType::U8, 0)?;
        self.begin(Op::Barrier, nothing.clone(), |_| (0, 0), |_| Ok(nothing))?.wait()?;
        Ok(())
    }

    fn abort(&self, reason: &str) {
        self.ledger.board.abort(reason);
        self.pass_on_the_end();
    }

    fn waited(&self) -> Duration {
        self.ledger.board.waited(self.taker.mesh.rank())
    }
}

impl Drop for TcpCommunicator {
    /// Lets what was ordered reach the peers, then says goodbye. Every write has a deadline, so this ends; after an abort
    /// a peer may not read any more, and the deadline is short.
    fn drop(&mut self) {
        // A peer must not take this rank's absence for the reason.
        let was_aborted = self.pass_on_the_end();
        for peer in self.peers.iter().flatten() {
            peer.order(Order::Bye);
        }
        let begun = Instant::now();
        for peer in self.peers.drain(..).flatten() {
            while was_aborted && !peer.writer.is_finished() && begun.elapsed() < LAST_WORDS {
                thread::sleep(Duration::from_millis(1));
            }
            if was_aborted {
                peer.stream.end();
            }
            // A thread that panicked has lost its peer, and there is nobody left to tell.
            let _ = peer.writer.join();
            // All that this rank waited for has come, or never will: the rest is read by nobody.
            peer.stream.end();
            let _ = peer.reader.join();
        }
    }
}

impl Peer {
    fn new(rank: Rank, stream: PeerStream, size: usize, ledger: &Arc<Ledger>) -> io::Result<Peer> {
        stream.set_write_deadline(ledger.deadline())?;
        let source = Counted { stream: stream.try_clone()?, ledger: ledger.clone() };
        let reader = thread::Builder::new().name(format!("from-rank-{rank}"));
        let reader = reader.spawn(move || read_from(rank, source, size))?;
        let (orders, received) = channel();
        let (sink, to_board) = (stream.try_clone()?, ledger.clone());
        let writer = thread::Builder::new().name(format!("to-rank-{rank}"));
        let writer = writer.spawn(move || write_to(rank, sink, received, &to_board.board))?;
        Ok(Peer { stream, orders, writer, reader })
    }

    fn order(&self, order: Order) {
        // A writer that has gone left the reason on the board, where the next wait finds it.
        let _ = self.orders.send(order);
    }
}

/// Counts while a long part is on its way, so that a slow network does not look like a hang.
struct Counted {
    stream: PeerStream,
    ledger: Arc<Ledger>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.ledger.num_received.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Lays on the board what `peer` sends, until it says goodbye, ends the work, or is lost.
fn read_from(peer: Rank, source: Counted, size: usize) {
    let ledger = source.ledger.clone();
    let board = &ledger.board;
    let mut source = BufReader::with_capacity(1 << 16, source);
    loop {
        match wire::read_frame(&mut source) {
            Ok(Frame::Part { sequence, called, buffer }) => {
                board.give(sequence, size, peer, Given { called, buffer: Arc::new(buffer) });
            }
            Ok(Frame::Abort { reason }) => return board.abort(&reason),
            Ok(Frame::Bye) => return board.say_goodbye(peer),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return board.lose(peer, "connection lost"),
            Err(error) => return board.lose(peer, &error.to_string()),
        }
    }
}

/// Writes what it is told until it is told to say goodbye.
fn write_to(peer: Rank, stream: PeerStream, orders: Receiver<Order>, board: &Board) {
    let mut sink = BufWriter::with_capacity(1 << 16, stream);
    for order in orders {
        let is_last = matches!(order, Order::Bye);
        let written = match order {
            Order::Part { sequence, called, buffer, start, len } => {
                wire::write_part(&mut sink, sequence, called, (&buffer, start, len))
            }
            Order::Abort { reason } => wire::write_abort(&mut sink, &reason),
            Order::Bye => wire::write_bye(&mut sink),
        };
        match written.and_then(|()| sink.flush()) {
            Ok(()) if is_last => {
                // The peer may already be gone, which is no loss any more.
                let _ = sink.get_ref().end_writing();
                return;
            }
            Ok(()) => {}
            Err(_) if is_last => return,
            // Why the peer has ended the connection, the reader hears: its last words lie there.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => return,
            Err(error) => return board.lose(peer, &format!("writing to it failed: {error}")),
        }
    }
}
