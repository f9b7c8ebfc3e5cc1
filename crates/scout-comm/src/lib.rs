//! Collectives among ranks: one trait, complete for every backend, whose results are owned by a [`Pending`] until they
//! may be read. What is moved, and when, is decided elsewhere.

#![forbid(unsafe_code)]

mod ahead;
mod board;
mod communicator;
mod control;
mod door;
mod error;
mod finish;
mod gathering;
pub mod gpu;
mod job;
mod key;
mod ledger;
mod local;
mod meeting;
#[cfg(feature = "mpi")]
pub mod mpi;
mod op;
mod peer;
mod routed_rows;
mod stream;
mod tcp;
mod verdict;
mod wire;
pub mod words;

pub use communicator::{Communicator, Pending};
pub use control::{Control, Ending, Limits, Verdicts};
pub use error::{CommError, Result};
pub use job::Job;
pub use local::{LocalCommunicator, local_group};
pub use meeting::{Approach, MeetingPlace, Seat, Through, meet};
#[cfg(feature = "mpi")]
pub use mpi::MpiCommunicator;
pub use op::{Called, Op};
pub use peer::{Introduction, PeerName};
pub use routed_rows::RoutedRows;
pub use verdict::Verdict;
