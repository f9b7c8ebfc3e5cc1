//! What every backend offers, and the buffers that it still writes.

use std::fmt;
use std::time::Duration;

use scout_core::{Mesh, Rank};
use scout_device::Buffer;

use crate::error::{CommError, Result};
use crate::op::Op;

/// All ranks call the same operations in the same order; a rank that does not is found by its fingerprint.
///
/// Every operation returns at once with a [`Pending`]; waiting for it has a deadline. Sums are taken in the order of
/// the ranks, so that every backend gives the same bits.
pub trait Communicator: Send + Sync {
    fn mesh(&self) -> Mesh;

    /// Every rank gives a shard of the same length; `full` receives all of them in rank order.
    fn all_gather(&self, shard: &Buffer, full: Buffer) -> Result<Pending>;

    /// Every rank gives the whole; `shard` receives the sum of everybody's part for this rank.
    fn reduce_scatter(&self, full: Buffer, shard: Buffer) -> Result<Pending>;

    /// The sum over all ranks, on all ranks.
    fn all_reduce(&self, buffer: Buffer) -> Result<Pending>;

    /// The buffer of `root`, on all ranks.
    fn broadcast(&self, root: Rank, buffer: Buffer) -> Result<Pending>;

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// Ends the work of all ranks: their waits, running and to come, fail with `reason`.
    fn abort(&self, reason: &str);

    /// How long threads of this rank have been blocked in [`Pending::wait`] and [`Communicator::barrier`], in all.
    fn waited(&self) -> Duration;
}

/// A buffer that a collective may still be writing. The only way to read it is to wait.
#[must_use = "a collective's result can be read only after waiting for it"]
pub struct Pending {
    finish: Box<dyn FnOnce(Duration) -> Result<Buffer> + Send>,
    deadline: Duration,
}

impl Pending {
    pub(crate) fn new(deadline: Duration, finish: impl FnOnce(Duration) -> Result<Buffer> + Send + 'static) -> Pending {
        Pending { finish: Box::new(finish), deadline }
    }

    /// Waits until the result is whole. Fails at the deadline, or as soon as the group was aborted.
    pub fn wait(self) -> Result<Buffer> {
        (self.finish)(self.deadline)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

pub(crate) fn expect_len(op: Op, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(CommError::Length { op, found, expected }) }
}
