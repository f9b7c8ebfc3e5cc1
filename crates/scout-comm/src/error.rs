//! What can go wrong between ranks.

use std::io;
use std::time::Duration;

use scout_core::{ExitCode, NoRandomness, NotPrivate, Rank, TokenError};
use scout_device::DeviceError;

use crate::op::{Called, Op};
use crate::peer::PeerName;
use crate::verdict::Verdict;

pub type Result<T> = std::result::Result<T, CommError>;

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
        cause: io::Error,
    },
    #[error("the ranks were ended: {reason}")]
    Aborted { reason: String },
    /// What the control plane judged; every rank returns the same.
    #[error("{}", verdict.sentence)]
    Ended { verdict: Verdict },
    #[error("{} of {size} did not come within {}", ranks_in_words(missing), in_seconds(*waited))]
    MissingRanks { missing: Vec<Rank>, size: usize, waited: Duration, num_refused: u64 },
    #[error("rank 0 did not answer at `{address}` within {}", in_seconds(*waited))]
    Unreachable {
        address: String,
        waited: Duration,
        #[source]
        cause: io::Error,
    },
    #[error("rank {rank} runs version {theirs}, rank 0 version {ours}")]
    OtherVersion { rank: Rank, theirs: String, ours: String },
    #[error("rank {rank} has another configuration than rank 0")]
    OtherConfiguration { rank: Rank },
    #[error("rank {rank} has another model than rank 0")]
    OtherModel { rank: Rank },
    #[error("rank {rank} was started as one of {theirs} ranks, rank 0 as one of {ours}")]
    OtherWorldSize { rank: Rank, theirs: usize, ours: usize },
    #[error("two processes are rank {rank}: {first} and {second}")]
    RankTaken { rank: Rank, first: PeerName, second: PeerName },
    #[error("rank 0 at `{address}` refused this rank's token")]
    TokenRefused { address: String },
    #[error("who listens at `{address}` does not know the job's token")]
    NotOurJob { address: String },
    #[error("who listens at `{address}` {problem}")]
    Stranger { address: String, problem: String },
    #[error("`{address}` is in use by another process")]
    InUse { address: String },
    #[error("could not {act} `{place}`")]
    Place {
        act: &'static str,
        place: String,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    NotPrivate(#[from] NotPrivate),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// Found alike by all ranks.
    #[error("nothing can be moved between ranks by {way}: {reason}")]
    NoWay { way: &'static str, reason: String },
    #[cfg(feature = "mpi")]
    #[error("MPI cannot be used: {reason}")]
    Mpi { reason: String },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl CommError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CommError::Ended { verdict } => verdict.code,
            CommError::Timeout { .. } | CommError::Aborted { .. } | CommError::Lost { .. } => ExitCode::PeerLost,
            CommError::MissingRanks { .. } | CommError::Unreachable { .. } => ExitCode::PeerLost,
            CommError::Stream { .. } | CommError::NoRandomness(_) => ExitCode::InputOutput,
            CommError::Place { cause, .. } => ExitCode::of_io(cause, ExitCode::InputOutput),
            CommError::OutOfStep { .. } | CommError::Length { .. } => ExitCode::Internal,
            CommError::OtherModel { .. } => ExitCode::BadData,
            CommError::OtherVersion { .. } | CommError::OtherConfiguration { .. } => ExitCode::BadConfig,
            CommError::OtherWorldSize { .. } | CommError::RankTaken { .. } => ExitCode::BadConfig,
            CommError::InUse { .. } => ExitCode::BadConfig,
            CommError::TokenRefused { .. } | CommError::NotOurJob { .. } => ExitCode::PermissionDenied,
            CommError::Stranger { .. } => ExitCode::PermissionDenied,
            CommError::NotPrivate(cause) => cause.exit_code(),
            CommError::Token(cause) => cause.exit_code(),
            CommError::NoWay { .. } => ExitCode::DeviceUnavailable,
            #[cfg(feature = "mpi")]
            CommError::Mpi { .. } => ExitCode::DeviceUnavailable,
            CommError::Device(cause) => cause.exit_code(),
        }
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            CommError::MissingRanks { num_refused: 1.., .. } => {
                "somebody with another token was refused: is the token the same on all hosts?"
            }
            CommError::MissingRanks { .. } => "look for their own messages; `init_timeout` says how long to wait",
            CommError::Unreachable { .. } => "is rank 0 running, and can this host reach it?",
            CommError::OtherVersion { .. } => "install the same `scout-dist` on all hosts",
            CommError::OtherConfiguration { .. } => "give all ranks the same file, keys and variables",
            CommError::OtherModel { .. } => "give all ranks the same `model_name_or_path`, complete on every host",
            CommError::OtherWorldSize { .. } => "start all ranks together, with one world size",
            CommError::RankTaken { .. } => "each rank needs a number of its own",
            CommError::TokenRefused { .. } | CommError::NotOurJob { .. } => {
                "hand all ranks the same token, or choose another address if a second job runs there"
            }
            CommError::Stranger { .. } => "choose another address",
            CommError::NoWay { .. } => {
                "`gather: auto` takes whichever way works for units, `weights: auto` lets no rows travel where none does"
            }
            CommError::InUse { .. } => "wait for the other job to end, or choose another address",
            CommError::NotPrivate(cause) => return cause.hint(),
            CommError::Token(cause) => return cause.hint(),
            CommError::Device(cause) => return cause.hint(),
            _ => return None,
        };
        Some(hint.to_string())
    }

    /// Whether this is what a rank sees of another rank's trouble. Its cause is the control plane's verdict.
    pub fn is_an_echo(&self) -> bool {
        match self {
            CommError::Timeout { .. } | CommError::Aborted { .. } => true,
            CommError::Lost { .. } | CommError::Ended { .. } => true,
            CommError::Device(cause) => cause.may_be_an_echo(),
            _ => false,
        }
    }
}

/// `120 s`, `0.5 s`.
pub(crate) fn in_seconds(duration: Duration) -> String {
    let seconds = (duration.as_secs_f64() * 10.0).round() / 10.0;
    format!("{seconds} s")
}

/// `rank 3`, `ranks 3 and 5`, `ranks 1, 3 and 5`.
fn ranks_in_words(ranks: &[Rank]) -> String {
    match ranks {
        [] => "no rank".to_string(),
        [one] => format!("rank {one}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(Rank::to_string).collect();
            format!("ranks {} and {last}", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ranks_are_named_by_number() {
        for (missing, expected) in [
            (vec![3], "rank 3 of 8 did not come within 120 s"),
            (vec![3, 5], "ranks 3 and 5 of 8 did not come within 120 s"),
            (vec![1, 3, 5], "ranks 1, 3 and 5 of 8 did not come within 120 s"),
        ] {
            let missing = missing.into_iter().map(Rank).collect();
            let waited = Duration::from_secs(120);
            let error = CommError::MissingRanks { missing, size: 8, waited, num_refused: 0 };
            assert_eq!(error.to_string(), expected);
        }
    }
}
