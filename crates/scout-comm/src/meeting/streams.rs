//! The streams for collectives: each rank opens one to every rank below it and takes one from every rank above it, with
//! the same proofs as at the meeting.

use std::io::{self, ErrorKind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use scout_core::Rank;

use super::approach::{Approach, MeetingPlace};
use super::guest::{check_owner, connect_unix};
use super::met::KnownPeer;
use super::{tcp, unix};
use crate::control::shared::Shared;
use crate::door::hello::{Hello, Purpose, Rebuff, introduce};
use crate::door::listener::Listener;
use crate::door::{Door, HANDSHAKE_LIMIT, Visitor};
use crate::error::{CommError, Result};
use crate::stream::PeerStream;

/// How often a rank that waits for streams looks for a verdict.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Streams<'a> {
    pub approach: &'a Approach,
    pub peers: &'a [KnownPeer],
    pub shared: &'a Shared,
}

/// Where streams arrive that come through a door.
type Opened = (Sender<(Rank, PeerStream)>, Receiver<(Rank, PeerStream)>);

impl Streams<'_> {
    /// One stream for each other rank. The door for them is open until all have come.
    pub fn connect(self, listener: Option<Listener>, (sender, opened): Opened) -> Result<Vec<Option<PeerStream>>> {
        let mesh = self.approach.mesh;
        let _door = self.open_door(listener, sender)?;
        let until = Instant::now() + self.approach.limits.init_timeout;
        let mut streams: Vec<Option<PeerStream>> = mesh.ranks().map(|_| None).collect();
        for peer in mesh.ranks().take(mesh.rank().0) {
            streams[peer.0] = Some(self.open(peer, until)?);
        }
        while let Some(peer) = mesh.ranks().skip(mesh.rank().0 + 1).find(|peer| streams[peer.0].is_none()) {
            match opened.recv_timeout(LOOK) {
                Ok((rank, stream)) if rank > mesh.rank() && rank.0 < mesh.size() => {
                    // A second stream of a rank replaces nothing.
                    streams[rank.0].get_or_insert(stream);
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.check(peer, until, || ErrorKind::TimedOut.into())?;
                }
            }
        }
        Ok(streams)
    }

    /// Takes streams of the ranks above this one. Over Unix sockets only now: when all have come, no two processes have
    /// the same number, and none takes another one's path.
    fn open_door(&self, listener: Option<Listener>, opened: Sender<(Rank, PeerStream)>) -> Result<Option<Door>> {
        let (mesh, key) = (self.approach.mesh, self.approach.key());
        let is_between = !mesh.is_first() && mesh.rank().0 + 1 < mesh.size();
        let listener = match &self.approach.place {
            MeetingPlace::Unix { socket } if is_between => Some(unix::listen(&unix::socket_of(socket, mesh.rank()))?),
            _ => listener,
        };
        let deliver = move |Visitor { stream, hello, .. }: Visitor| {
            if hello.purpose == Purpose::Data {
                // Nobody to hand it to any more: the stream closes.
                let _ = opened.send((hello.rank, stream));
            }
        };
        listener.map(|listener| Door::open(listener, mesh.rank(), mesh.size(), key, deliver)).transpose()
    }

    /// Opens a stream to `peer`, which will listen in a moment, and whose door may be full.
    fn open(&self, peer: Rank, until: Instant) -> Result<PeerStream> {
        loop {
            match self.attempt(peer, until) {
                Ok(stream) => return Ok(stream),
                Err(Rebuff::Io(cause)) => self.check(peer, until, || cause)?,
                Err(rebuff) => return Err(rebuff.into_error(&self.address_of(peer))),
            }
            thread::sleep(LOOK);
        }
    }

    fn attempt(&self, peer: Rank, until: Instant) -> std::result::Result<PeerStream, Rebuff> {
        let mut stream = match &self.approach.place {
            MeetingPlace::Unix { socket } => PeerStream::Unix(connect_unix(&unix::socket_of(socket, peer))?),
            _ => PeerStream::Tcp(tcp::connect(&self.address_of(peer), until).map_err(Rebuff::Io)?),
        };
        check_owner(&stream)?;
        let hello = Hello::new(Purpose::Data, self.approach.mesh, &self.approach.introduction, String::new());
        let until = until.min(Instant::now() + HANDSHAKE_LIMIT);
        introduce(&mut stream, &self.approach.key(), peer, &hello, until)?;
        Ok(stream)
    }

    fn address_of(&self, peer: Rank) -> String {
        match (peer, &self.approach.place) {
            (Rank(0), _) => self.approach.address(),
            (_, MeetingPlace::Unix { socket }) => unix::socket_of(socket, peer).display().to_string(),
            _ => self.peers[peer.0].address.clone(),
        }
    }

    /// Fails when somebody was judged meanwhile, or when the time is over.
    fn check(&self, peer: Rank, until: Instant, cause: impl FnOnce() -> io::Error) -> Result<()> {
        if let Some(verdict) = self.shared.verdict() {
            return Err(CommError::Ended { verdict });
        }
        if Instant::now() >= until {
            return Err(CommError::Stream { peer, cause: cause() });
        }
        Ok(())
    }
}
