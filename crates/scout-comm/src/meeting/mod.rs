//! How the ranks of a job find each other. Rank 0 listens at a place all know; the others come there and say who they
//! are. When all have come and mean the same job, each pair opens a stream for collectives, and every rank gets its seat.

mod approach;
mod guest;
mod host;
mod met;
mod streams;
mod tcp;
mod unix;

use std::sync::Arc;
use std::sync::mpsc::channel;

use scout_core::Whereabouts;

pub use approach::{Approach, MeetingPlace, Through};

use crate::communicator::Communicator;
use crate::control::Control;
use crate::control::shared::Shared;
use crate::control::watch::Watch;
use crate::error::{CommError, Result};
use crate::job::Job;
#[cfg(feature = "mpi")]
use crate::mpi::MpiCommunicator;
use crate::peer::PeerName;
use crate::tcp::TcpCommunicator;
use streams::Streams;

/// What a rank has once all have met.
pub struct Seat {
    pub job: Job,
    pub control: Control,
    /// All ranks by number, this one included.
    pub peers: Vec<PeerName>,
    /// Where rank 0 listens, for the log; `None` on other ranks and over Unix sockets.
    pub listening_at: Option<String>,
}

/// Meets the other ranks: returns when all have come, all mean the same job, and their collectives can begin.
///
/// Fails after `limits.init_timeout` with the ranks that did not come, and at once when a rank that came belongs to
/// another job, version, configuration or model; every rank that came gets the same reason. `job.comm` then waits for
/// the others only as long as the control plane lets it.
pub fn meet(approach: &Approach, whereabouts: Arc<Whereabouts>) -> Result<Seat> {
    let (mesh, limits) = (approach.mesh, &approach.limits);
    let met = if mesh.is_first() { host::gather(approach)? } else { guest::come(approach)? };
    let (opened, taken) = channel();
    let shared = Arc::new(Shared::new(mesh, limits.clone()));
    let names: Vec<PeerName> = met.peers.iter().map(|peer| peer.name.clone()).collect();
    let watch = Watch {
        shared: shared.clone(),
        names: names.clone(),
        links: met.links,
        ears: met.ears,
        whereabouts: whereabouts.clone(),
        streams: opened.clone(),
    };
    let watch = watch.start(met.events).map_err(|cause| CommError::Stream { peer: mesh.rank(), cause })?;
    let control = Control::new(shared.clone(), met.sender, watch, met.door);
    // From here on whoever is lost is judged, so the rest of the meeting cannot wait for the dead.
    let streams = Streams { approach, peers: &met.peers, shared: &shared };
    let comm: Result<Arc<dyn Communicator>> = match approach.through {
        Through::Streams => streams.connect(met.data_listener, (opened, taken)).and_then(|streams| {
            Ok(Arc::new(TcpCommunicator::new(mesh, streams, shared.ledger.clone())?) as Arc<dyn Communicator>)
        }),
        #[cfg(feature = "mpi")]
        Through::Mpi => MpiCommunicator::of_job(mesh, shared.ledger.clone(), limits.init_timeout)
            .map(|comm| Arc::new(comm) as Arc<dyn Communicator>),
    };
    let comm = match comm {
        Ok(comm) => comm,
        Err(error) => return Err(CommError::Ended { verdict: control.fail(error.exit_code(), &error.to_string()) }),
    };
    shared.watch_over(&comm);
    Ok(Seat { job: Job { comm, whereabouts }, control, peers: names, listening_at: met.listening_at })
}

#[cfg(test)]
pub(crate) mod tests;
