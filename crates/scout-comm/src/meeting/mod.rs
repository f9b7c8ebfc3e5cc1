//! How the ranks of a job find each other. Rank 0 listens at a place all know; the others come there and say who they
//! are. When all have come and mean the same job, each pair opens a stream for collectives, and every rank gets its seat.

pub(crate) mod door;
mod guest;
pub(crate) mod hello;
mod host;
pub mod secret;
mod streams;
mod tcp;
mod unix;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use scout_core::{ExitCode, Mesh, Rank, Whereabouts};

pub use secret::Token;

#[cfg(feature = "mpi")]
use crate::MpiCommunicator;
use crate::control::link::Link;
use crate::control::{Control, Event, Limits, Shared, Verdict, Watch, name_of};
use crate::tcp::TcpCommunicator;
use crate::{CommError, Communicator, Job, Result};
use door::{Door, Listener};
use secret::Key;
use streams::Streams;

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

/// What a rank has once all have met.
pub struct Seat {
    pub job: Job,
    pub control: Control,
    /// All ranks by number, this one included.
    pub peers: Vec<PeerName>,
    /// Where rank 0 listens, for the log; `None` on other ranks and over Unix sockets.
    pub listening_at: Option<String>,
}

/// Through what collectives go once all have met.
enum Through {
    Streams,
    #[cfg(feature = "mpi")]
    Mpi,
}

/// Meets the other ranks: returns when all have come, all mean the same job, and every pair has its stream.
///
/// Fails after `limits.init_timeout` with the ranks that did not come, and at once when a rank that came belongs to
/// another job, version, configuration or model; every rank that came gets the same reason. `job.comm` then waits for
/// the others only as long as the control plane lets it.
pub fn meet(
    place: &MeetingPlace,
    mesh: Mesh,
    introduction: Introduction,
    limits: Limits,
    whereabouts: Arc<Whereabouts>,
) -> Result<Seat> {
    let approach = Approach { place, mesh, introduction: &introduction, limits: &limits };
    meet_through(Through::Streams, &approach, whereabouts)
}

/// The same for ranks that MPI started: they meet and are watched as others are, and their collectives go through MPI.
/// MPI begins when all have met, and fails if it counts the ranks in another way than their starter.
#[cfg(feature = "mpi")]
pub fn meet_over_mpi(
    place: &MeetingPlace,
    mesh: Mesh,
    introduction: Introduction,
    limits: Limits,
    whereabouts: Arc<Whereabouts>,
) -> Result<Seat> {
    let approach = Approach { place, mesh, introduction: &introduction, limits: &limits };
    meet_through(Through::Mpi, &approach, whereabouts)
}

fn meet_through(through: Through, approach: &Approach, whereabouts: Arc<Whereabouts>) -> Result<Seat> {
    let (mesh, limits) = (approach.mesh, approach.limits);
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
    let comm: Result<Arc<dyn Communicator>> = match through {
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

/// What a rank brings to the meeting.
struct Approach<'a> {
    place: &'a MeetingPlace,
    mesh: Mesh,
    introduction: &'a Introduction,
    limits: &'a Limits,
}

/// What a rank has when it knows all others.
struct Met {
    peers: Vec<KnownPeer>,
    links: Vec<Option<Link>>,
    ears: Vec<JoinHandle<()>>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    /// Rank 0's, which stays open.
    door: Option<Door>,
    /// Where the others take streams over TCP.
    data_listener: Option<Listener>,
    listening_at: Option<String>,
}

struct KnownPeer {
    name: PeerName,
    /// Where it takes streams over TCP.
    address: String,
}

impl Approach<'_> {
    fn key(&self) -> Key {
        match self.place {
            MeetingPlace::Unix { .. } => Key::of_one_host(),
            MeetingPlace::Tcp { token, .. } | MeetingPlace::Loopback { token, .. } => token.key(),
        }
    }

    /// The place, as messages name it.
    fn address(&self) -> String {
        match self.place {
            MeetingPlace::Unix { socket } => socket.display().to_string(),
            MeetingPlace::Tcp { address, .. } => address.clone(),
            MeetingPlace::Loopback { publish, .. } => {
                tcp::published(publish).unwrap_or_else(|_| publish.display().to_string())
            }
        }
    }
}

/// A rank that was there and is gone before the work began.
fn lost_at_the_start(rank: Rank, name: &str, reason: &str, speaker: Rank) -> Verdict {
    let sentence = format!("{name} was lost in start: {reason}");
    Verdict { rank, code: ExitCode::PeerLost, sentence, speaker }
}

#[cfg(test)]
pub(crate) mod tests;
