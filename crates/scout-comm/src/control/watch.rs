//! The thread beside the training thread: it sends signs of life, listens to the others, asks the judge, and ends a rank
//! that does not leave by itself.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use scout_core::{ExitCode, Rank, Whereabouts};

use super::judge::{Heard, Judge};
use super::link::{Link, link};
use super::message::{Awaiting, Beat, Message};
use super::shared::Shared;
use crate::door::Visitor;
use crate::door::hello::Purpose;
use crate::peer::{PeerName, name_of};
use crate::stream::PeerStream;
use crate::verdict::Verdict;

/// Everything the watch hears of, in one row.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody came through rank 0's door.
    Came(Visitor),
    Heard(Rank, Message),
    Closed(Rank, String),
    Fail {
        code: ExitCode,
        sentence: String,
    },
    Leave,
    Stop,
    #[cfg(test)]
    Pause(Duration),
}

pub(crate) struct Watch {
    pub shared: Arc<Shared>,
    pub names: Vec<PeerName>,
    /// From rank 0 to all others, from these to rank 0; one entry for each rank.
    pub links: Vec<Option<Link>>,
    /// The threads that hear what comes over the links.
    pub ears: Vec<JoinHandle<()>>,
    pub whereabouts: Arc<Whereabouts>,
    /// Where streams for collectives are waited for that come through rank 0's door.
    pub streams: Sender<(Rank, PeerStream)>,
}

/// After a verdict a rank may take this long to leave by itself.
const GRACE: Duration = Duration::from_secs(1);

/// A watch at work.
struct Running {
    watch: Watch,
    judge: Judge,
    begun: Instant,
    /// This rank's failure, while rank 0 cannot be told it any more and may still be heard.
    untold: Option<Heard>,
}

impl Watch {
    pub fn start(self, events: Receiver<Event>) -> io::Result<JoinHandle<()>> {
        let judge = Judge::new(self.shared.mesh.rank(), self.names.clone(), Duration::ZERO);
        let running = Running { watch: self, judge, begun: Instant::now(), untold: None };
        thread::Builder::new().name("control".to_string()).spawn(move || running.run(&events))
    }
}

impl Running {
    fn run(mut self, events: &Receiver<Event>) {
        let mut looked = self.begun.elapsed();
        let mut next_beat = looked;
        // When this rank has had time enough to leave.
        let mut end_at = None;
        loop {
            let wake = end_at.map_or(next_beat, |end: Duration| end.min(next_beat));
            let event = match events.recv_timeout(wake.saturating_sub(self.begun.elapsed())) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            };
            let now = self.begun.elapsed();
            let interval = self.interval();
            // A process that was stopped hears nothing either; what it missed lies in the row and is still to be read.
            let away = now.saturating_sub(looked);
            if away > 4 * interval {
                self.judge.forgive(away);
            }
            looked = now;
            if event.is_some_and(|event| self.handle(event).is_break()) {
                return self.end();
            }
            if now >= next_beat {
                next_beat = now + interval;
                self.beat(now);
            }
            if let Some(verdict) = self.watch.shared.verdict() {
                let end = *end_at.get_or_insert(now + GRACE);
                if now >= end && end != Duration::MAX {
                    end_at = Some(Duration::MAX);
                    let Shared { limits, .. } = &*self.watch.shared;
                    self.watch.shared.tell(|verdict| limits.ending.say(verdict), Duration::ZERO);
                    limits.ending.end(&verdict);
                }
            }
        }
    }

    /// Often enough that the limit is seen in time and that a place told is a place of now; rarely enough to cost nothing.
    fn interval(&self) -> Duration {
        (self.watch.shared.hang_limit() / 8).clamp(Duration::from_millis(20), Duration::from_millis(250))
    }

    /// Tells the others where this rank is, and asks the judge.
    fn beat(&mut self, now: Duration) {
        let me = self.watch.shared.mesh.rank();
        self.watch.whereabouts.take_step_times().into_iter().for_each(|step| self.watch.shared.step_took(step));
        let beat = self.watch.present();
        self.watch.tell_all(&Message::Beat(beat));
        if self.watch.shared.verdict().is_some() {
            return;
        }
        self.note_who_left();
        let hang = self.watch.shared.hang_limit();
        let verdict = self.judge.hear(now, me, Heard::Beat(beat)).or_else(|| self.judge.tick(now, hang));
        if let Some(verdict) = verdict {
            self.watch.pronounce(verdict);
        }
    }

    fn handle(&mut self, event: Event) -> ControlFlow<()> {
        let me = self.watch.shared.mesh.rank();
        match event {
            Event::Stop => return ControlFlow::Break(()),
            Event::Leave => {
                self.watch.tell_all(&Message::Goodbye);
                return ControlFlow::Break(());
            }
            Event::Came(visitor) => self.watch.receive(visitor),
            Event::Heard(Rank(0), Message::End(verdict)) => self.watch.take(verdict),
            Event::Heard(rank, Message::Beat(beat)) => self.judge_by(rank, Heard::Beat(beat)),
            Event::Heard(rank, Message::Goodbye) => self.judge_by(rank, Heard::Goodbye),
            Event::Heard(rank, Message::Failed { code, sentence }) => {
                self.judge_by(rank, Heard::Failed { code, sentence })
            }
            // No rank says these here, and none of them changes anything.
            Event::Heard(_, Message::Peer { .. } | Message::End(_)) => {}
            Event::Closed(rank, reason) => {
                // It went without a last word.
                if let Some(failed) = self.untold.take_if(|_| rank == Rank(0)) {
                    self.judge_by(me, failed);
                }
                self.judge_by(rank, Heard::Closed { reason });
            }
            Event::Fail { code, sentence } => self.fail(code, sentence),
            #[cfg(test)]
            Event::Pause(pause) => thread::sleep(pause),
        }
        ControlFlow::Continue(())
    }

    /// Rank 0 is told, which may have heard of another failure before. When it is gone already, what it said before
    /// comes first: it is still to be read.
    fn fail(&mut self, code: ExitCode, sentence: String) {
        let me = self.watch.shared.mesh.rank();
        let failed = Message::Failed { code, sentence: sentence.clone() };
        let heard = Heard::Failed { code, sentence };
        if me == Rank(0) || !self.judge.is_here(Rank(0)) {
            self.judge_by(me, heard);
        } else if !self.watch.tell(Rank(0), &failed) {
            self.untold.get_or_insert(heard);
        }
    }

    fn judge_by(&mut self, rank: Rank, heard: Heard) {
        self.note_who_left();
        let verdict = self.judge.hear(self.begun.elapsed(), rank, heard);
        if let Some(verdict) = verdict.filter(|_| self.watch.shared.verdict().is_none()) {
            self.watch.pronounce(verdict);
        }
    }

    /// Ranks other than 0 hear goodbyes on the streams of the collectives only.
    fn note_who_left(&mut self) {
        let mesh = self.watch.shared.mesh;
        if !mesh.is_first() {
            let board = &self.watch.shared.ledger.board;
            mesh.ranks().skip(1).filter(|rank| board.has_left(*rank)).for_each(|rank| self.judge.leaves(rank));
        }
    }

    fn end(mut self) {
        self.watch.links.clear();
        for ear in self.watch.ears.drain(..) {
            // Its connection has ended, so it ends.
            let _ = ear.join();
        }
    }
}

impl Watch {
    fn present(&self) -> Beat {
        let (place, num_changes) = (self.whereabouts.place(), self.whereabouts.num_changes());
        let ledger = &self.shared.ledger;
        let awaited = ledger.board.awaited(self.shared.mesh.rank());
        let awaited = awaited.map(|it| Awaiting { sequence: it.sequence, op: it.called.op, missing: it.missing });
        Beat { place, num_changes, num_begun: ledger.num_begun(), num_received: ledger.num_received(), awaited }
    }

    fn tell_all(&mut self, message: &Message) {
        for link in self.links.iter_mut().flatten() {
            // A link that fails has ended; its ear reports that.
            let _ = link.tell(message);
        }
    }

    fn tell(&mut self, rank: Rank, message: &Message) -> bool {
        self.links[rank.0].as_mut().is_some_and(|link| link.tell(message).is_ok())
    }

    /// Rank 0 tells all before it acts itself: it may be gone a moment later.
    fn pronounce(&mut self, verdict: Verdict) {
        if self.shared.mesh.is_first() {
            self.tell_all(&Message::End(verdict.clone()));
        }
        self.take(verdict);
    }

    /// What became of another rank is told here and now. The thread that works may be long in coming, and whoever started
    /// the ranks kills them when one is dead: Open MPI's `mpirun` some 20 ms after it has asked them to end.
    fn take(&self, verdict: Verdict) {
        self.shared.adopt_and_tell(verdict, |verdict| self.shared.limits.ending.say(verdict));
    }

    /// The ranks still open streams for collectives; whoever else comes now is late.
    fn receive(&mut self, visitor: Visitor) {
        let rank = visitor.hello.rank;
        if visitor.hello.purpose == Purpose::Data {
            // When nobody waits for streams any more, this one closes here.
            let _ = self.streams.send((rank, visitor.stream));
            return;
        }
        let instead =
            self.names.get(rank.0).map(|_| format!(" with {}", name_of(rank, &self.names))).unwrap_or_default();
        let sentence = format!("rank {rank} ({}) came when the job had begun{instead}", visitor.hello.name());
        let verdict = Verdict { rank, code: ExitCode::BadConfig, sentence, speaker: rank };
        if let Ok((mut link, _)) = link(visitor.stream, visitor.keys.from_host, visitor.keys.from_guest) {
            // Whoever does not listen learns nothing.
            let _ = link.tell(&Message::End(verdict));
        }
    }
}
