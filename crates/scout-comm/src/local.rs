//! Ranks as threads of one process, around one board. Nothing is copied before somebody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scout_core::{DType, Mesh, Rank};
use scout_device::Buffer;

use crate::board::{Board, Given};
use crate::error::{Called, Op};
use crate::{Communicator, Pending, Result, expect_len, finish};

/// One communicator for each of `size` ranks that live in this process.
pub fn local_group(size: usize, deadline: Duration) -> Vec<LocalCommunicator> {
    let board = Arc::new(Board::default());
    (0..size)
        .filter_map(|rank| Mesh::new(Rank(rank), size))
        .map(|mesh| LocalCommunicator { mesh, board: board.clone(), sequence: AtomicU64::new(0), deadline })
        .collect()
}

#[derive(Debug)]
pub struct LocalCommunicator {
    mesh: Mesh,
    board: Arc<Board>,
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
        self.board.check()?;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let called = Called { op, count: buffer.len(), dtype: buffer.dtype() };
        let (mesh, board) = (self.mesh, self.board.clone());
        board.give(sequence, mesh.size(), mesh.rank(), Given { called, buffer: Arc::new(buffer) });
        Ok(Pending::new(self.deadline, move |deadline| finish(board.take(sequence, mesh, mesh.size(), deadline)?)))
    }
}

impl Communicator for LocalCommunicator {
    fn mesh(&self) -> Mesh {
        self.mesh
    }

    fn all_gather(&self, shard: &Buffer, full: Buffer) -> Result<Pending> {
        expect_len(Op::AllGather, full.len(), shard.len() * self.mesh.size())?;
        self.begin(Op::AllGather, shard.clone(), move |given| finish::concatenated(&given, full))
    }

    fn reduce_scatter(&self, full: Buffer, shard: Buffer) -> Result<Pending> {
        expect_len(Op::ReduceScatter, full.len(), shard.len() * self.mesh.size())?;
        let start = shard.len() * self.mesh.rank().0;
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
        self.board.abort(reason);
    }

    fn waited(&self) -> Duration {
        self.board.waited(self.mesh.rank())
    }
}
