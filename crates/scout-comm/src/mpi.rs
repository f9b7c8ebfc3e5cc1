//! Ranks as processes that MPI started. One thread owns MPI and does everything that happens inside it; this side lays
//! parts on the board, hands buffers to that thread, and waits at the board like every other backend.

mod exchange;
mod owner;
mod transfer;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use scout_core::{DType, Mesh, Rank};
use scout_device::Buffer;

use crate::board::Given;
use crate::communicator::{Communicator, Pending, expect_len};
use crate::error::{CommError, Result, in_seconds};
use crate::finish;
use crate::ledger::Ledger;
use crate::op::{Called, Op};
use exchange::Heard;
use owner::Order;

/// Leaving after the work was ended is worth no longer wait: who has to say why has the sentence already.
const LEAVE_AFTER_END: Duration = Duration::from_millis(500);
/// How often a rank that is leaving looks whether the work was ended.
const LOOK: Duration = Duration::from_millis(20);

/// The MPI library of this program and its version, such as `Open MPI v4.1.4`. It may be asked for before `init`.
pub fn library() -> String {
    let text = ::mpi::environment::library_version().unwrap_or_default();
    text.split([',', '\n', '\0']).next().unwrap_or_default().trim().to_string()
}

/// This process's seat in MPI's world.
///
/// Bits equal those of the other backends, because MPI only moves bytes: sums are ours, in the order of the ranks.
#[derive(Debug)]
pub struct MpiCommunicator {
    mesh: Mesh,
    ledger: Arc<Ledger>,
    heard: Arc<Heard>,
    /// Held from taking an operation's number until its order is sent: MPI matches operations by their order alone, so
    /// they must leave in the order of their numbers.
    orders: Mutex<Sender<Order>>,
    /// Ends when the owner of MPI has ended; only `drop` listens.
    ended: Mutex<Receiver<()>>,
}

impl MpiCommunicator {
    /// Initialises MPI, on a thread of its own, and takes rank and number of ranks from it. Every rank of the world must
    /// call this, once, within `deadline` of the others; later waits have the same deadline.
    pub fn init(deadline: Duration) -> Result<MpiCommunicator> {
        MpiCommunicator::with_ledger(Arc::new(Ledger::new(deadline)), deadline)
    }

    /// The same for a rank that has met the others. Fails if MPI counts the ranks in another way.
    pub(crate) fn of_job(mesh: Mesh, ledger: Arc<Ledger>, init_timeout: Duration) -> Result<MpiCommunicator> {
        let comm = MpiCommunicator::with_ledger(ledger, init_timeout)?;
        let (theirs, ours) = (comm.mesh, mesh);
        if theirs == ours {
            return Ok(comm);
        }
        let (rank, size) = (theirs.rank(), theirs.size());
        let starter = format!("this process was started as rank {} of {}", ours.rank(), ours.size());
        let library = library();
        Err(CommError::Mpi { reason: format!("{starter}, and {library} calls it rank {rank} of {size}") })
    }

    fn with_ledger(ledger: Arc<Ledger>, init_timeout: Duration) -> Result<MpiCommunicator> {
        let (orders, received) = channel();
        let (seat, told) = channel();
        let (end, ended) = channel();
        let to_ledger = ledger.clone();
        let thread = thread::Builder::new().name("mpi".to_string()).spawn(move || {
            let _end = end;
            owner::own(received, &to_ledger, &seat);
        });
        thread.map_err(|cause| CommError::Mpi { reason: format!("its thread could not be started: {cause}") })?;
        let (mesh, heard) = told.recv_timeout(init_timeout).map_err(|_| CommError::Mpi {
            reason: format!("the ranks did not all begin within {}", in_seconds(init_timeout)),
        })??;
        Ok(MpiCommunicator { mesh, ledger, heard, orders: Mutex::new(orders), ended: Mutex::new(ended) })
    }

    /// Begins an operation to which this rank gives `buffer`; `own` is what of it this rank itself takes.
    fn begin(
        &self,
        op: Op,
        buffer: Buffer,
        own: Option<Buffer>,
        finish: impl FnOnce(Vec<Arc<Buffer>>) -> Result<Buffer> + Send + 'static,
    ) -> Result<Pending> {
        self.ledger.board.check()?;
        let called = Called { op, count: buffer.len(), dtype: buffer.dtype() };
        let (mesh, ledger, heard) = (self.mesh, self.ledger.clone(), self.heard.clone());
        let buffer = Arc::new(buffer);
        let own = own.map_or_else(|| buffer.clone(), Arc::new);
        let orders = self.orders.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let sequence = ledger.num_begun.fetch_add(1, Ordering::Relaxed);
        ledger.board.give(sequence, mesh.size(), mesh.rank(), Given { called, buffer: own });
        send(&orders, Order::Part { sequence, called, buffer });
        drop(orders);
        Ok(Pending::new(self.ledger.deadline(), move |deadline| {
            let given = ledger.board.take(sequence, mesh, 1, deadline).map_err(|error| match error {
                CommError::Timeout { op, sequence, waited, missing } => {
                    let missing = heard.latest_for(sequence).unwrap_or(missing);
                    CommError::Timeout { op, sequence, waited, missing }
                }
                other => other,
            });
            finish(given?)
        }))
    }

    fn order(&self, order: Order) {
        send(&self.orders.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), order);
    }
}

fn send(orders: &Sender<Order>, order: Order) {
    // An owner that has gone left the reason on the board, where the next wait finds it.
    let _ = orders.send(order);
}

impl Communicator for MpiCommunicator {
    fn mesh(&self) -> Mesh {
        self.mesh
    }

    fn all_gather(&self, shard: &Buffer, full: Buffer) -> Result<Pending> {
        expect_len(Op::AllGather, full.len(), shard.len() * self.mesh.size())?;
        self.begin(Op::AllGather, shard.clone(), None, move |given| finish::concatenated(&given, full))
    }

    fn reduce_scatter(&self, full: Buffer, shard: Buffer) -> Result<Pending> {
        expect_len(Op::ReduceScatter, full.len(), shard.len() * self.mesh.size())?;
        let start = self.mesh.rank().0 * shard.len();
        let own = full.part(start..start + shard.len())?;
        self.begin(Op::ReduceScatter, full, Some(own), move |given| finish::summed(&given, 0, shard))
    }

    fn all_reduce(&self, buffer: Buffer) -> Result<Pending> {
        let sum = Buffer::zeros(buffer.dtype(), buffer.len())?;
        self.begin(Op::AllReduce, buffer, None, move |given| finish::summed(&given, 0, sum))
    }

    fn broadcast(&self, root: Rank, buffer: Buffer) -> Result<Pending> {
        self.begin(Op::Broadcast { root }, buffer, None, move |given| Ok((*given[root.0]).clone()))
    }

    fn barrier(&self) -> Result<()> {
        let nothing = Buffer::zeros(DType::U8, 0)?;
        self.begin(Op::Barrier, nothing.clone(), None, |_| Ok(nothing))?.wait()?;
        Ok(())
    }

    /// Returns at once. The owner tells the others; a world that cannot be told so is ended by MPI itself two seconds
    /// later, which is time to print a sentence and leave.
    fn abort(&self, reason: &str) {
        self.ledger.board.abort(reason);
        self.order(Order::Abort);
    }

    fn waited(&self) -> Duration {
        self.ledger.board.waited(self.mesh.rank())
    }
}

impl Drop for MpiCommunicator {
    /// Lets what was ordered reach the others and leaves MPI together with them. When they do not come in time, the
    /// owner is left behind inside MPI: the process ends all the same, and whoever started it sees a rank that did not
    /// say goodbye.
    fn drop(&mut self) {
        self.order(Order::Bye);
        let ended = self.ended.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let begun = Instant::now();
        let mut ended_at = None;
        // Nothing is ever sent: the owner ends, or the time is up.
        while begun.elapsed() < self.ledger.deadline() {
            if let Err(RecvTimeoutError::Disconnected) = ended.recv_timeout(LOOK) {
                return;
            }
            if self.ledger.board.check().is_err()
                && ended_at.get_or_insert_with(Instant::now).elapsed() > LEAVE_AFTER_END
            {
                return;
            }
        }
    }
}
