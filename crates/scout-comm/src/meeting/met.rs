//! What a rank has when it knows all others, before there are streams.

use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;

use scout_core::{ExitCode, Rank};

use crate::control::link::Link;
use crate::control::watch::Event;
use crate::door::Door;
use crate::door::listener::Listener;
use crate::peer::PeerName;
use crate::verdict::Verdict;

pub(super) struct Met {
    pub peers: Vec<KnownPeer>,
    pub links: Vec<Option<Link>>,
    pub ears: Vec<JoinHandle<()>>,
    pub events: Receiver<Event>,
    pub sender: Sender<Event>,
    /// Rank 0's, which stays open.
    pub door: Option<Door>,
    /// Where the others take streams over TCP.
    pub data_listener: Option<Listener>,
    pub listening_at: Option<String>,
}

pub(super) struct KnownPeer {
    pub name: PeerName,
    /// Where it takes streams over TCP.
    pub address: String,
}

/// A rank that was there and is gone before the work began.
pub(super) fn lost_at_the_start(rank: Rank, name: &str, reason: &str, speaker: Rank) -> Verdict {
    let sentence = format!("{name} was lost in start: {reason}");
    Verdict { rank, code: ExitCode::PeerLost, sentence, speaker }
}
