//! Ranks as processes, each with a stream to every other. A rank writes its part of an operation to the others and lays
//! it on its own board; what the others write is laid there too, by one reader for each. Who may connect, and how the
//! streams come about, is decided before.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use scout_core::{DType, Mesh, Rank};
use scout_device::Buffer;

use crate::board::{Board, Given};
use crate::error::{Called, Op};
use crate::wire::{self, Frame};
use crate::{CommError, Communicator, Pending, Result, expect_len, finish};

/// An open connection to one peer.
#[derive(Debug)]
pub enum PeerStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

#[derive(Debug)]
pub struct TcpCommunicator {
    mesh: Mesh,
    board: Arc<Board>,
    /// Number of operations this rank has begun; equal operations carry equal numbers on all ranks.
    sequence: AtomicU64,
    deadline: Duration,
    /// One for each rank; none for this one.
    writers: Vec<Option<Writer>>,
}

/// The thread that writes to one peer, in the order in which it is told.
#[derive(Debug)]
struct Writer {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Order {
    Part { sequence: u64, called: Called, buffer: Arc<Buffer>, start: usize, len: usize },
    Abort { reason: String },
    Bye,
}

impl TcpCommunicator {
    /// Takes over `streams`: one entry for each rank, `None` for this one. Both ends must belong to the same job.
    pub fn new(mesh: Mesh, streams: Vec<Option<PeerStream>>, deadline: Duration) -> Result<TcpCommunicator> {
        let board = Arc::new(Board::default());
        let mut writers = Vec::with_capacity(mesh.size());
        for (peer, stream) in mesh.ranks().zip(streams) {
            let Some(stream) = stream else {
                writers.push(None);
                continue;
            };
            let failed = |cause| CommError::Stream { peer, cause };
            stream.set_write_deadline(deadline).map_err(failed)?;
            let reading = stream.try_clone().map_err(failed)?;
            let to_board = board.clone();
            let size = mesh.size();
            thread::Builder::new()
                .name(format!("from-rank-{peer}"))
                .spawn(move || read_from(peer, reading, size, &to_board))
                .map_err(failed)?;
            let (orders, received) = channel();
            let to_board = board.clone();
            let thread = thread::Builder::new()
                .name(format!("to-rank-{peer}"))
                .spawn(move || write_to(peer, stream, received, &to_board))
                .map_err(failed)?;
            writers.push(Some(Writer { orders, thread }));
        }
        Ok(TcpCommunicator { mesh, board, sequence: AtomicU64::new(0), deadline, writers })
    }

    /// Begins an operation of which `part` says what each rank gets, as start and length inside `buffer`.
    fn begin(
        &self,
        op: Op,
        buffer: Buffer,
        part: impl Fn(Rank) -> (usize, usize),
        finish: impl FnOnce(Vec<Arc<Buffer>>) -> Result<Buffer> + Send + 'static,
    ) -> Result<Pending> {
        self.board.check()?;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let called = Called { op, count: buffer.len(), dtype: buffer.dtype() };
        let (mesh, board) = (self.mesh, self.board.clone());
        let own = match part(mesh.rank()) {
            (0, len) if len == buffer.len() => None,
            (start, len) => Some(buffer.part(start..start + len)?),
        };
        let buffer = Arc::new(buffer);
        for (peer, writer) in mesh.ranks().zip(&self.writers) {
            if let Some(writer) = writer {
                let (start, len) = part(peer);
                writer.order(Order::Part { sequence, called, buffer: buffer.clone(), start, len });
            }
        }
        let own = own.map_or(buffer, Arc::new);
        board.give(sequence, mesh.size(), mesh.rank(), Given { called, buffer: own });
        Ok(Pending::new(self.deadline, move |deadline| finish(board.take(sequence, mesh, 1, deadline)?)))
    }
}

impl Communicator for TcpCommunicator {
    fn mesh(&self) -> Mesh {
        self.mesh
    }

    fn all_gather(&self, shard: &Buffer, full: Buffer) -> Result<Pending> {
        expect_len(Op::AllGather, full.len(), shard.len() * self.mesh.size())?;
        let len = shard.len();
        self.begin(Op::AllGather, shard.clone(), |_| (0, len), move |given| finish::concatenated(&given, full))
    }

    fn reduce_scatter(&self, full: Buffer, shard: Buffer) -> Result<Pending> {
        expect_len(Op::ReduceScatter, full.len(), shard.len() * self.mesh.size())?;
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
        let len = if self.mesh.rank() == root { buffer.len() } else { 0 };
        self.begin(Op::Broadcast { root }, buffer, |_| (0, len), move |given| Ok((*given[root.0]).clone()))
    }

    fn barrier(&self) -> Result<()> {
        let nothing = Buffer::zeros(DType::U8, 0)?;
        self.begin(Op::Barrier, nothing.clone(), |_| (0, 0), |_| Ok(nothing))?.wait()?;
        Ok(())
    }

    fn abort(&self, reason: &str) {
        self.board.abort(reason);
        for writer in self.writers.iter().flatten() {
            writer.order(Order::Abort { reason: reason.to_string() });
        }
    }
}

impl Drop for TcpCommunicator {
    /// Lets what was ordered reach the peers, then says goodbye. Every write has a deadline, so this ends.
    fn drop(&mut self) {
        for writer in self.writers.iter().flatten() {
            writer.order(Order::Bye);
        }
        for writer in self.writers.drain(..).flatten() {
            // A writer that panicked has lost its peer, and there is nobody left to tell.
            let _ = writer.thread.join();
        }
    }
}

impl Writer {
    fn order(&self, order: Order) {
        // A writer that has gone left the reason on the board, where the next wait finds it.
        let _ = self.orders.send(order);
    }
}

impl PeerStream {
    fn try_clone(&self) -> io::Result<PeerStream> {
        Ok(match self {
            PeerStream::Tcp(stream) => PeerStream::Tcp(stream.try_clone()?),
            PeerStream::Unix(stream) => PeerStream::Unix(stream.try_clone()?),
        })
    }

    fn set_write_deadline(&self, deadline: Duration) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(deadline))
            }
            PeerStream::Unix(stream) => stream.set_write_timeout(Some(deadline)),
        }
    }

    fn end_writing(&self) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            PeerStream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Read for PeerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            PeerStream::Tcp(stream) => stream.read(buffer),
            PeerStream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for PeerStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            PeerStream::Tcp(stream) => stream.write(buffer),
            PeerStream::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            PeerStream::Tcp(stream) => stream.flush(),
            PeerStream::Unix(stream) => stream.flush(),
        }
    }
}

/// Lays on the board what `peer` sends, until it says goodbye, ends the work, or is lost.
fn read_from(peer: Rank, stream: PeerStream, size: usize, board: &Board) {
    let mut source = BufReader::with_capacity(1 << 16, stream);
    loop {
        match wire::read_frame(&mut source) {
            Ok(Frame::Part { sequence, called, buffer }) => {
                board.give(sequence, size, peer, Given { called, buffer: Arc::new(buffer) });
            }
            Ok(Frame::Abort { reason }) => return board.abort(&reason),
            Ok(Frame::Bye) => return board.lose(peer, "it left while it was waited for"),
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
            Err(error) => return board.lose(peer, &format!("writing to it failed: {error}")),
        }
    }
}
