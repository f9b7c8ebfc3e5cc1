//! What a rank brings to the meeting.

use std::path::PathBuf;

use scout_core::{Mesh, Token};

use super::tcp;
use crate::control::limits::Limits;
use crate::key::Key;
use crate::peer::Introduction;

/// What a rank knows before it meets the others: where, as whom, and how.
#[derive(Debug, Clone)]
pub struct Approach {
    pub place: MeetingPlace,
    pub mesh: Mesh,
    pub introduction: Introduction,
    pub limits: Limits,
    pub through: Through,
}

/// Where rank 0 listens.
#[derive(Debug, Clone)]
pub enum MeetingPlace {
    /// For ranks of one host: a Unix socket in a folder of this user alone. A missing folder is made; one that belongs to
    /// somebody else or is open to others is refused. The system says which user is at the other end.
    Unix { socket: PathBuf },
    /// For ranks of several hosts: `host:port`, and the secret that every rank must show.
    Tcp { address: String, token: Token },
    /// TCP on this host alone, at a port that rank 0 picks and writes to the file `publish`.
    Loopback { publish: PathBuf, token: Token },
}

/// Through what collectives go once all have met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// A stream between each pair of ranks, of the same kind as the place where they meet.
    Streams,
    /// MPI, for ranks that it started: they meet and are watched as others are. MPI begins when all have met, and fails
    /// if it counts the ranks in another way than their starter.
    #[cfg(feature = "mpi")]
    Mpi,
}

impl Approach {
    pub(super) fn key(&self) -> Key {
        match &self.place {
            MeetingPlace::Unix { .. } => Key::of_one_host(),
            MeetingPlace::Tcp { token, .. } | MeetingPlace::Loopback { token, .. } => Key::of_job(token),
        }
    }

    /// The place, as messages name it.
    pub(super) fn address(&self) -> String {
        match &self.place {
            MeetingPlace::Unix { socket } => socket.display().to_string(),
            MeetingPlace::Tcp { address, .. } => address.clone(),
            MeetingPlace::Loopback { publish, .. } => {
                tcp::published(publish).unwrap_or_else(|_| publish.display().to_string())
            }
        }
    }
}
