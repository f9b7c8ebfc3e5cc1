//! The backends under test, and a way to run the same body on every rank of each.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use scout_comm::{Communicator, PeerStream, TcpCommunicator, local_group};
use scout_core::{Mesh, Rank};

pub type Group = Vec<Box<dyn Communicator>>;
pub type Backend = (&'static str, fn(usize, Duration) -> Group);

pub const BACKENDS: &[Backend] = &[("local", local), ("unix", unix), ("tcp", tcp)];
/// Those whose ranks share no memory.
pub const STREAMS: &[Backend] = &[("unix", unix), ("tcp", tcp)];

fn local(size: usize, deadline: Duration) -> Group {
    local_group(size, deadline).into_iter().map(|comm| Box::new(comm) as Box<dyn Communicator>).collect()
}

fn unix(size: usize, deadline: Duration) -> Group {
    connected(size, deadline, || {
        let (a, b) = UnixStream::pair().unwrap();
        (PeerStream::Unix(a), PeerStream::Unix(b))
    })
}

fn tcp(size: usize, deadline: Duration) -> Group {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    connected(size, deadline, || {
        let a = TcpStream::connect(address).unwrap();
        let (b, _) = listener.accept().unwrap();
        (PeerStream::Tcp(a), PeerStream::Tcp(b))
    })
}

/// A stream between any two of `size` ranks.
fn connected(size: usize, deadline: Duration, mut pair: impl FnMut() -> (PeerStream, PeerStream)) -> Group {
    let mut streams: Vec<Vec<Option<PeerStream>>> = (0..size).map(|_| (0..size).map(|_| None).collect()).collect();
    let pairs = (0..size).flat_map(|a| (a + 1..size).map(move |b| (a, b)));
    for (a, b) in pairs {
        let (of_a, of_b) = pair();
        streams[a][b] = Some(of_a);
        streams[b][a] = Some(of_b);
    }
    let comm = |(rank, streams)| {
        let mesh = Mesh::new(Rank(rank), size).unwrap();
        Box::new(TcpCommunicator::new(mesh, streams, deadline).unwrap()) as Box<dyn Communicator>
    };
    streams.into_iter().enumerate().map(comm).collect()
}

/// What each rank's body returned, in rank order, for each backend.
pub fn on_every_rank<R: Send>(
    backends: &[Backend],
    size: usize,
    deadline: Duration,
    body: impl Fn(Box<dyn Communicator>) -> R + Sync,
) -> Vec<(&'static str, Vec<R>)> {
    let run = |(name, group): &Backend| {
        let body = &body;
        let results = std::thread::scope(|scope| {
            let ranks: Vec<_> = group(size, deadline).into_iter().map(|comm| scope.spawn(move || body(comm))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        (*name, results)
    };
    backends.iter().map(run).collect()
}
