//! What can go wrong between ranks, and the names of the operations in which it goes wrong.

use std::fmt;
use std::time::Duration;

use scout_core::{DType, ExitCode, Rank};
use scout_device::DeviceError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    AllGather,
    ReduceScatter,
    AllReduce,
    Broadcast { root: Rank },
    Barrier,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::AllGather => f.write_str("all_gather"),
            Op::ReduceScatter => f.write_str("reduce_scatter"),
            Op::AllReduce => f.write_str("all_reduce"),
            Op::Broadcast { root } => write!(f, "broadcast from rank {root}"),
            Op::Barrier => f.write_str("barrier"),
        }
    }
}

/// The fingerprint of one call: all ranks must show the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Called {
    pub op: Op,
    pub count: usize,
    pub dtype: DType,
}

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} {}", self.op, self.count, self.dtype)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CommError {
    #[error("{op} #{sequence} waited {waited:?} for rank {missing}")]
    Timeout { op: Op, sequence: u64, waited: Duration, missing: Rank },
    #[error("rank {theirs_rank} called {theirs} where this rank called {ours} (#{sequence})")]
    OutOfStep { sequence: u64, ours: Called, theirs: Called, theirs_rank: Rank },
    #[error("{op}: found {found} elements, expected {expected}")]
    Length { op: Op, found: usize, expected: usize },
    #[error("rank {rank} was lost: {reason}")]
    Lost { rank: Rank, reason: String },
    #[error("the stream to rank {peer} cannot be used")]
    Stream {
        peer: Rank,
        #[source]
        cause: std::io::Error,
    },
    #[error("the ranks were ended: {reason}")]
    Aborted { reason: String },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl CommError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CommError::Timeout { .. } | CommError::Aborted { .. } | CommError::Lost { .. } => ExitCode::PeerLost,
            CommError::Stream { .. } => ExitCode::InputOutput,
            CommError::OutOfStep { .. } | CommError::Length { .. } => ExitCode::Internal,
            CommError::Device(cause) => cause.exit_code(),
        }
    }
}
