//! Who a rank is: what it says about itself, and how messages name it.

use std::fmt;

use scout_core::Rank;

/// What a rank says about itself; all ranks of a job must agree on everything but host and process.
#[derive(Debug, Clone)]
pub struct Introduction {
    pub version: String,
    pub config_digest: [u8; 32],
    pub model_digest: [u8; 32],
    pub host: String,
    pub pid: u32,
}

/// A rank's process, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName {
    pub host: String,
    pub pid: u32,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}, pid {}", self.host, self.pid)
    }
}

impl Introduction {
    pub(crate) fn name(&self) -> PeerName {
        PeerName { host: self.host.clone(), pid: self.pid }
    }
}

/// `rank 3 of 8 (host h, pid 17)`
pub(crate) fn name_of(rank: Rank, names: &[PeerName]) -> String {
    format!("rank {rank} of {} ({})", names.len(), names[rank.0])
}
