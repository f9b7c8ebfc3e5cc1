//! The other ranks' side of the meeting: go where rank 0 listens, as often as it takes, say who one is, and wait to be told
//! who else has come.

use std::io::{self, ErrorKind};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use scout_core::Rank;

use super::approach::{Approach, MeetingPlace};
use super::met::{KnownPeer, Met, lost_at_the_start};
use super::{tcp, unix};
use crate::control::link::{Ear, link};
use crate::control::message::Message;
use crate::control::watch::Event;
use crate::door::HANDSHAKE_LIMIT;
use crate::door::hello::{Hello, LinkKeys, Purpose, Rebuff, introduce};
use crate::door::listener::Listener;
use crate::error::{CommError, Result};
use crate::stream::PeerStream;
use crate::verdict::Verdict;

/// Between two attempts to reach somebody who may not be there yet.
const PAUSE: Duration = Duration::from_millis(20);
/// Rank 0 tells everybody what became of the meeting; one that is late with that is gone.
const GRACE: Duration = Duration::from_secs(15);

/// Goes to rank 0 and waits until all ranks have come.
pub(super) fn come(approach: &Approach) -> Result<Met> {
    if let MeetingPlace::Unix { socket } = &approach.place {
        unix::secure_folder(socket)?;
    }
    let (stream, keys, data_listener) = reach_rank_0(approach)?;
    let address = approach.address();
    let unusable = |cause| CommError::Place { act: "meet the ranks at", place: address.clone(), cause };
    let (speaks, mut ear) = link(stream, keys.from_guest, keys.from_host).map_err(unusable)?;
    let peers = hear_who_is_there(approach, &mut ear)?;
    let (sender, events) = channel();
    let to_watch = sender.clone();
    let ear = ear.keep_hearing(Rank(0), move |heard| {
        let event =
            heard.map_or_else(|reason| Event::Closed(Rank(0), reason), |message| Event::Heard(Rank(0), message));
        to_watch.send(event).is_ok()
    });
    let mut links: Vec<_> = approach.mesh.ranks().map(|_| None).collect();
    links[0] = Some(speaks);
    let ears = vec![ear.map_err(unusable)?];
    Ok(Met { peers, links, ears, events, sender, door: None, data_listener, listening_at: None })
}

/// Tries until rank 0 lets this rank in, or says why not, or the time is over.
pub(super) fn reach_rank_0(approach: &Approach) -> Result<(PeerStream, LinkKeys, Option<Listener>)> {
    let until = Instant::now() + approach.limits.init_timeout;
    loop {
        let cause = match attempt(approach, until) {
            Ok(reached) => return reached,
            Err(Rebuff::Io(cause)) => cause,
            Err(rebuff) => return Err(rebuff.into_error(&approach.address())),
        };
        if Instant::now() + PAUSE >= until {
            let (address, waited) = (approach.address(), approach.limits.init_timeout);
            return Err(CommError::Unreachable { address, waited, cause });
        }
        thread::sleep(PAUSE);
    }
}

type Reached = Result<(PeerStream, LinkKeys, Option<Listener>)>;

fn attempt(approach: &Approach, until: Instant) -> std::result::Result<Reached, Rebuff> {
    let mut stream = match &approach.place {
        MeetingPlace::Unix { socket } => PeerStream::Unix(connect_unix(socket)?),
        MeetingPlace::Tcp { address, .. } => PeerStream::Tcp(tcp::connect(address, until).map_err(Rebuff::Io)?),
        MeetingPlace::Loopback { publish, .. } => {
            let address = tcp::published(publish).map_err(Rebuff::Io)?;
            PeerStream::Tcp(tcp::connect(&address, until).map_err(Rebuff::Io)?)
        }
    };
    check_owner(&stream)?;
    let listener = match data_listener(approach, &stream) {
        Ok(listener) => listener,
        Err(error) => return Ok(Err(error)),
    };
    let address = listener.as_ref().map(Listener::place).unwrap_or_default();
    let hello = Hello::new(Purpose::Control, approach.mesh, &approach.introduction, address);
    let until = until.min(Instant::now() + HANDSHAKE_LIMIT);
    let keys = introduce(&mut stream, &approach.key(), Rank(0), &hello, until)?;
    Ok(Ok((stream, keys, listener)))
}

pub(super) fn connect_unix(socket: &std::path::Path) -> std::result::Result<std::os::unix::net::UnixStream, Rebuff> {
    std::os::unix::net::UnixStream::connect(socket).map_err(Rebuff::Io)
}

/// Nothing is said to another user's process.
pub(super) fn check_owner(stream: &PeerStream) -> std::result::Result<(), Rebuff> {
    let problem = || Rebuff::Stranger("belongs to another user".to_string());
    stream.is_ours().then_some(()).ok_or_else(problem)
}

/// Where the ranks above this one will open their streams over TCP: at the address by which it reached rank 0.
fn data_listener(approach: &Approach, to_rank_0: &PeerStream) -> Result<Option<Listener>> {
    let PeerStream::Tcp(to_rank_0) = to_rank_0 else { return Ok(None) };
    if approach.mesh.rank().0 + 1 == approach.mesh.size() {
        return Ok(None);
    }
    let own = to_rank_0.local_addr();
    let own = own.map_err(|cause| CommError::Place { act: "listen for", place: "streams".to_string(), cause })?;
    tcp::listen_somewhere(own.ip()).map(Some)
}

/// Rank 0 names all ranks in order, or says why nothing comes of the meeting.
fn hear_who_is_there(approach: &Approach, ear: &mut Ear) -> Result<Vec<KnownPeer>> {
    let mut peers = Vec::with_capacity(approach.mesh.size());
    while peers.len() < approach.mesh.size() {
        match ear.hear_within(approach.limits.init_timeout + GRACE) {
            Ok(Message::Peer { name, address }) => peers.push(KnownPeer { name, address }),
            Ok(Message::End(verdict)) => return Err(CommError::Ended { verdict }),
            Ok(_) => {}
            Err(error) => return Err(CommError::Ended { verdict: without_rank_0(approach, &error) }),
        }
    }
    Ok(peers)
}

fn without_rank_0(approach: &Approach, error: &io::Error) -> Verdict {
    let reason = match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "it does not answer",
        _ => "connection lost",
    };
    // Ranks that have come know rank 0 and themselves; the lowest of the others speaks, if it has come.
    let name = format!("rank 0 of {} at `{}`", approach.mesh.size(), approach.address());
    lost_at_the_start(Rank(0), &name, reason, Rank(1))
}
