//! The door of a rank, which lets in those who prove themselves and turns away the rest, on one thread, however many
//! come: a few may stand there at a time, each for a few seconds, with a fixed number of bytes.

pub(crate) mod hello;
pub(crate) mod listener;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scout_core::Rank;

use crate::error::{CommError, Result};
use crate::key::Key;
use crate::stream::PeerStream;
use hello::{Challenge, HELLO_LEN, Hello, LinkKeys};
use listener::Listener;

/// From the connection to the last byte of the hello.
pub(crate) const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Somebody who has proved to belong to the job.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub stream: PeerStream,
    pub hello: Hello,
    pub keys: LinkKeys,
}

/// Closes when dropped, and takes its socket's file along.
pub(crate) struct Door {
    /// The thread listens to the other end of this, and goes when this end is gone.
    bell: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    num_refused: Arc<AtomicU64>,
}

/// A connection that has not proved anything yet.
struct HalfOpen {
    stream: PeerStream,
    challenge: Challenge,
    until: Instant,
    hello: [u8; HELLO_LEN],
    filled: usize,
}

struct Porter {
    listener: Listener,
    host: Rank,
    key: Key,
    max_half_open: usize,
    half_open: Vec<HalfOpen>,
    num_refused: Arc<AtomicU64>,
}

impl Door {
    /// Lets in visitors of `host` that know `key` and hands each to `deliver`.
    pub fn open(
        listener: Listener,
        host: Rank,
        world_size: usize,
        key: Key,
        deliver: impl FnMut(Visitor) + Send + 'static,
    ) -> Result<Door> {
        let failed = |cause| CommError::Place { act: "listen at", place: listener.place(), cause };
        let (bell, rung) = UnixStream::pair().map_err(failed)?;
        listener.set_nonblocking().map_err(failed)?;
        let place = listener.place();
        let num_refused = Arc::new(AtomicU64::new(0));
        let max_half_open = 4 * world_size;
        let half_open = Vec::with_capacity(max_half_open);
        let porter = Porter { listener, host, key, max_half_open, half_open, num_refused: num_refused.clone() };
        let thread = thread::Builder::new()
            .name("door".to_string())
            .spawn(move || porter.run(&rung, deliver))
            .map_err(|cause| CommError::Place { act: "listen at", place, cause })?;
        Ok(Door { bell: Some(bell), thread: Some(thread), num_refused })
    }

    /// How many connections proved nothing.
    pub fn num_refused(&self) -> u64 {
        self.num_refused.load(Ordering::Relaxed)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.bell.take();
        if let Some(thread) = self.thread.take() {
            // A porter that panicked is gone as well.
            let _ = thread.join();
        }
    }
}

impl Porter {
    fn run(mut self, bell: &UnixStream, mut deliver: impl FnMut(Visitor)) {
        loop {
            let Some(ready) = self.wait(bell) else { return };
            // From the back, so that those who leave do not move those still to be looked at.
            for index in (0..self.half_open.len()).rev() {
                if ready[index] {
                    self.hear(index, &mut deliver);
                }
            }
            let now = Instant::now();
            let before = self.half_open.len();
            self.half_open.retain(|waiting| waiting.until > now);
            self.refuse(before - self.half_open.len());
            self.accept();
        }
    }

    /// Waits until something happens; says which of the half-open connections have something to read. `None` when the
    /// door is to close.
    fn wait(&self, bell: &UnixStream) -> Option<Vec<bool>> {
        let mut fds = vec![PollFd::new(bell, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.half_open.iter().map(|waiting| PollFd::new(&waiting.stream, PollFlags::IN)));
        let first_deadline = self.half_open.iter().map(|waiting| waiting.until).min();
        let timeout = first_deadline.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Some(vec![false; self.half_open.len()]),
            Err(_) => return None,
        }
        let is_ready = |fd: &PollFd| !fd.revents().is_empty();
        (!is_ready(&fds[0])).then(|| fds[2..].iter().map(is_ready).collect())
    }

    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    // Out of files, most likely: they come back when others close, and turning round would not help.
                    thread::sleep(Duration::from_millis(50));
                    return;
                }
            };
            let is_full = self.half_open.len() >= self.max_half_open;
            if is_full || !self.let_wait(stream) {
                self.refuse(1);
            }
        }
    }

    /// Challenges a connection. The challenge fits into the buffer of a new connection, so nobody is waited for.
    fn let_wait(&mut self, mut stream: PeerStream) -> bool {
        let Ok(challenge) = Challenge::new() else { return false };
        let is_welcome = stream.is_ours() && stream.set_nonblocking(true).is_ok();
        if is_welcome && stream.write_all(challenge.words()).is_ok() {
            let until = Instant::now() + HANDSHAKE_LIMIT;
            self.half_open.push(HalfOpen { stream, challenge, until, hello: [0; HELLO_LEN], filled: 0 });
            return true;
        }
        false
    }

    /// Reads what there is from one connection and decides, if that is enough to decide.
    fn hear(&mut self, index: usize, deliver: &mut impl FnMut(Visitor)) {
        let waiting = &mut self.half_open[index];
        match waiting.stream.read(&mut waiting.hello[waiting.filled..]) {
            Ok(read @ 1..) => waiting.filled += read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Ok(0) | Err(_) => return self.turn_away(index),
        }
        if !Challenge::may_become_a_hello(&waiting.hello[..waiting.filled]) {
            return self.turn_away(index);
        }
        if waiting.filled < HELLO_LEN {
            return;
        }
        let mut waiting = self.half_open.swap_remove(index);
        match waiting.challenge.answer(&self.key, self.host, &waiting.hello) {
            Ok((hello, keys, welcome)) => {
                let is_there =
                    waiting.stream.write_all(&welcome).is_ok() && waiting.stream.set_nonblocking(false).is_ok();
                if is_there {
                    deliver(Visitor { stream: waiting.stream, hello, keys });
                }
            }
            Err(refusal) => {
                // Told or not, a stranger goes.
                let _ = waiting.stream.write_all(&refusal);
                self.refuse(1);
            }
        }
    }

    fn turn_away(&mut self, index: usize) {
        self.half_open.swap_remove(index);
        self.refuse(1);
    }

    fn refuse(&self, count: usize) {
        self.num_refused.fetch_add(count as u64, Ordering::Relaxed);
    }
}
