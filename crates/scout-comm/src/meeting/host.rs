//! Rank 0's side of the meeting: it listens, looks at everybody who comes, and tells all of them who is there, or why
//! nothing will come of it.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use scout_core::Rank;

use super::approach::{Approach, MeetingPlace};
use super::met::{KnownPeer, Met, lost_at_the_start};
use super::{tcp, unix};
use crate::control::link::link;
use crate::control::message::Message;
use crate::control::watch::Event;
use crate::door::hello::{Hello, Purpose};
use crate::door::{Door, Visitor};
use crate::error::{CommError, Result};
use crate::peer::{PeerName, name_of};
use crate::verdict::Verdict;

/// How long the door stays open when the job is off: ranks are started together and come together.
const FOR_LATECOMERS: Duration = Duration::from_secs(1);

/// Waits until all ranks have come.
pub(super) fn gather(approach: &Approach) -> Result<Met> {
    let (sender, events) = channel();
    let mut met = Met {
        peers: Vec::new(),
        links: approach.mesh.ranks().map(|_| None).collect(),
        ears: Vec::new(),
        events,
        sender,
        door: None,
        data_listener: None,
        listening_at: None,
    };
    let mut names: Vec<Option<KnownPeer>> = approach.mesh.ranks().map(|_| None).collect();
    names[0] = Some(KnownPeer { name: approach.introduction.name(), address: String::new() });
    if approach.mesh.size() > 1 {
        open_door(approach, &mut met)?;
        if let Err(error) = wait_for_all(approach, &mut met, &mut names) {
            let end = Message::End(verdict_of(&error));
            tell_all(&mut met, &end);
            if !matches!(error, CommError::MissingRanks { .. }) {
                tell_latecomers(&met, names.iter().filter(|peer| peer.is_none()).count(), &end);
            }
            return Err(error);
        }
    }
    met.peers = names.into_iter().flatten().collect();
    let roster: Vec<Message> =
        met.peers.iter().map(|peer| Message::Peer { name: peer.name.clone(), address: peer.address.clone() }).collect();
    roster.iter().for_each(|peer| tell_all(&mut met, peer));
    Ok(met)
}

fn open_door(approach: &Approach, met: &mut Met) -> Result<()> {
    let listener = match &approach.place {
        MeetingPlace::Unix { socket } => unix::listen(socket)?,
        MeetingPlace::Tcp { address, .. } => tcp::listen(address)?,
        MeetingPlace::Loopback { .. } => tcp::listen_somewhere(std::net::Ipv4Addr::LOCALHOST.into())?,
    };
    let address = listener.place();
    met.listening_at = (!matches!(approach.place, MeetingPlace::Unix { .. })).then(|| address.clone());
    let sender = met.sender.clone();
    let deliver = move |visitor| {
        // Nobody to hand it to any more: the visitor's connection closes.
        let _ = sender.send(Event::Came(visitor));
    };
    met.door = Some(Door::open(listener, Rank(0), approach.mesh.size(), approach.key(), deliver)?);
    if let MeetingPlace::Loopback { publish, .. } = &approach.place {
        tcp::publish(&address, publish)?;
    }
    Ok(())
}

fn wait_for_all(approach: &Approach, met: &mut Met, peers: &mut [Option<KnownPeer>]) -> Result<()> {
    let until = Instant::now() + approach.limits.init_timeout;
    while peers.iter().any(Option::is_none) {
        match met.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Came(visitor)) => receive(approach, met, peers, visitor)?,
            Ok(Event::Closed(rank, reason)) => {
                let known: Vec<PeerName> =
                    peers.iter().map(|peer| peer.as_ref().map_or(unknown(), |it| it.name.clone())).collect();
                let verdict = lost_at_the_start(rank, &name_of(rank, &known), &reason, Rank(0));
                return Err(CommError::Ended { verdict });
            }
            // A rank that has come has nothing to say before all have.
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let absent = |(rank, peer): (usize, &Option<KnownPeer>)| peer.is_none().then_some(Rank(rank));
                return Err(CommError::MissingRanks {
                    missing: peers.iter().enumerate().filter_map(absent).collect(),
                    size: approach.mesh.size(),
                    waited: approach.limits.init_timeout,
                    num_refused: met.door.as_ref().map_or(0, Door::num_refused),
                });
            }
        }
    }
    Ok(())
}

fn unknown() -> PeerName {
    PeerName { host: "unknown".to_string(), pid: 0 }
}

/// Seats a rank that has come, or says why the job cannot begin with it.
fn receive(approach: &Approach, met: &mut Met, peers: &mut [Option<KnownPeer>], visitor: Visitor) -> Result<()> {
    let Visitor { stream, hello, keys } = visitor;
    if hello.purpose != Purpose::Control {
        // Nobody knows yet where to open streams.
        return Ok(());
    }
    let (mut speaks, ear) = match link(stream, keys.from_host, keys.from_guest) {
        Ok(ends) => ends,
        // It is gone already, and will be missed.
        Err(_) => return Ok(()),
    };
    let rank = hello.rank;
    let taken = peers.get(rank.0).and_then(Option::as_ref);
    if let Err(error) = check(approach, &hello, taken.map(|peer| &peer.name)) {
        // It has no seat yet, so it is told apart from the others.
        let _ = speaks.tell(&Message::End(verdict_of(&error)));
        return Err(error);
    }
    let sender = met.sender.clone();
    let ear = ear.keep_hearing(rank, move |heard| {
        let event = heard.map_or_else(|reason| Event::Closed(rank, reason), |message| Event::Heard(rank, message));
        sender.send(event).is_ok()
    });
    met.ears.push(ear.map_err(|cause| CommError::Stream { peer: rank, cause })?);
    met.links[rank.0] = Some(speaks);
    peers[rank.0] = Some(KnownPeer { name: hello.name(), address: hello.address });
    Ok(())
}

/// Whether this rank belongs here.
fn check(approach: &Approach, hello: &Hello, taken: Option<&PeerName>) -> Result<()> {
    let (rank, theirs, ours) = (hello.rank, &hello.introduction, &approach.introduction);
    if hello.world_size != approach.mesh.size() || rank.0 >= approach.mesh.size() {
        return Err(CommError::OtherWorldSize { rank, theirs: hello.world_size, ours: approach.mesh.size() });
    }
    if theirs.version != ours.version {
        return Err(CommError::OtherVersion { rank, theirs: theirs.version.clone(), ours: ours.version.clone() });
    }
    if theirs.config_digest != ours.config_digest {
        return Err(CommError::OtherConfiguration { rank });
    }
    if theirs.model_digest != ours.model_digest {
        return Err(CommError::OtherModel { rank });
    }
    match taken {
        Some(first) => Err(CommError::RankTaken { rank, first: first.clone(), second: hello.name() }),
        None => Ok(()),
    }
}

/// What the others are told: rank 0 says it, and they leave with the same code.
fn verdict_of(error: &CommError) -> Verdict {
    let rank = match error {
        CommError::Ended { verdict } => return verdict.clone(),
        CommError::MissingRanks { missing, .. } => missing.first().copied().unwrap_or_default(),
        CommError::OtherVersion { rank, .. } | CommError::OtherWorldSize { rank, .. } => *rank,
        CommError::OtherConfiguration { rank } | CommError::OtherModel { rank } => *rank,
        CommError::RankTaken { rank, .. } => *rank,
        _ => Rank(0),
    };
    Verdict { rank, code: error.exit_code(), sentence: scout_core::causes::with_causes(error), speaker: Rank(0) }
}

/// A rank that comes when the job is off already would otherwise look for a listener until its own `init_timeout`.
fn tell_latecomers(met: &Met, mut num_absent: usize, end: &Message) {
    let until = Instant::now() + FOR_LATECOMERS;
    while num_absent > 0
        && let Ok(event) = met.events.recv_timeout(until.saturating_duration_since(Instant::now()))
    {
        let Event::Came(Visitor { stream, hello, keys }) = event else { continue };
        if hello.purpose == Purpose::Control
            && let Ok((mut speaks, _)) = link(stream, keys.from_host, keys.from_guest)
        {
            let _ = speaks.tell(end);
            num_absent -= 1;
        }
    }
}

fn tell_all(met: &mut Met, message: &Message) {
    for link in met.links.iter_mut().flatten() {
        // Whoever is gone is reported by its ear.
        let _ = link.tell(message);
    }
}
