//! Ranks as threads of one process, around one board.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scout_core::{DType, Mesh, Rank};
use scout_device::Buffer;

use crate::ahead::{Finisher, Taker};
use crate::board::{Board, Given};
use crate::communicator::{Communicator, Pending, expect_len};
use crate::error::Result;
use crate::finish;
use crate::gathering::Ahead;
use crate::op::{Called, Op};

/// One communicator for each of `size` ranks that live in this process.
pub fn local_group(size: usize, deadline: Duration) -> Vec<LocalCommunicator> {
    let board = Arc::new(Board::default());
    (0..size)
        .filter_map(|rank| Mesh::new(Rank(rank), size))
        .map(|mesh| {
            let taker = Taker { board: board.clone(), mesh, num_takers: size };
            let finisher = Finisher::start(taker.clone());
            LocalCommunicator { taker, finisher, sequence: AtomicU64::new(0), deadline }
        })
        .collect()
}

#[derive(Debug)]
pub struct LocalCommunicator {
    taker: Taker,
    finisher: Finisher,
    /// Number of operations this rank has begun; equal operations carry equal numbers on all ranks.
    sequence: AtomicU64,
    deadline: Duration,
}

impl LocalCommunicator {
    /// Lays `buffer` down for the next operation, and promises to finish it with what all ranks gave.
    fn begin(
        &self,
        op: Op,
        buffer: Buffer,
        finish: impl FnOnce(Vec<Arc<Buffer>>) -> Result<Buffer> + Send + 'static,
    ) -> Result<Pending> {
        let sequence = self.lay_down(op, buffer, None)?;
        let taker = self.taker.clone();
        Ok(Pending::new(self.deadline, move |deadline| finish(taker.take(sequence, deadline)?)))
    }

    /// Lays `buffer` down for the next operation and returns its number.
    fn lay_down(&self, op: Op, buffer: Buffer, ahead: Option<Ahead>) -> Result<u64> {
        let Taker { board, mesh, .. } = &self.taker;
        board.check()?;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let called = Called { op, count: buffer.len(), dtype: buffer.dtype() };
        board.give_own(sequence, *mesh, Given { called, buffer: Arc::new(buffer) }, ahead);
        Ok(sequence)
    }
}

impl Communicator for LocalCommunicator {
    fn mesh(&self) -> Mesh {
        self.taker.mesh
    }

    fn all_gather(&self, shard: &Buffer, full: Buffer) -> Result<Pending> {
        expect_len(Op::AllGather, full.len(), shard.len() * self.taker.mesh.size())?;
        let (ahead, gathering) = self.finisher.promise(full);
        let sequence = self.lay_down(Op::AllGather, shard.clone(), Some(ahead))?;
        let taker = self.taker.clone();
        Ok(Pending::new(self.deadline, move |deadline| taker.take_whole(&gathering, sequence, deadline)))
    }

    fn reduce_scatter(&self, full: Buffer, shard: Buffer) -> Result<Pending> {
        expect_len(Op::ReduceScatter, full.len(), shard.len() * self.taker.mesh.size())?;
        let start = shard.len() * self.taker.mesh.rank().0;
        self.begin(Op::ReduceScatter, full, move |given| finish::summed(&given, start, shard))
    }

    fn all_reduce(&self, buffer: Buffer) -> Result<Pending> {
        let sum = Buffer::zeros(buffer.dtype(), buffer.len())?;
        self.begin(Op::AllReduce, buffer, move |given| finish::summed(&given, 0, sum))
    }

    fn broadcast(&self, root: Rank, buffer: Buffer) -> Result<Pending> {
        self.begin(Op::Broadcast { root }, buffer, move |given| Ok((*given[root.0]).clone()))
    }

    fn barrier(&self) -> Result<()> {
        let nothing = Buffer::zeros(DType::U8, 0)?;
        self.begin(Op::Barrier, nothing.clone(), |_| Ok(nothing))?.wait()?;
        Ok(())
    }

    fn abort(&self, reason: &str) {
        self.taker.board.abort(reason);
    }

    fn waited(&self) -> Duration {
        self.taker.board.waited(self.taker.mesh.rank())
    }
}
