//! The operations, and what all ranks must agree on when they call one.

use std::fmt;

use scout_core::{DType, Rank};

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
