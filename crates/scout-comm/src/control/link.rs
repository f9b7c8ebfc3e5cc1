//! One rank's control connection to another: frames of bounded size, each with a proof that the other end wrote it, in
//! this order.

use std::io::{self, ErrorKind, Read, Write};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use scout_core::Rank;

use super::message::Message;
use crate::key::{KEY_LEN, Key, Proof};
use crate::stream::PeerStream;

/// A sentence and some names fit easily.
const MAX_FRAME: usize = 64 << 10;
/// Control frames are small and the peer reads them on a thread of its own: one that cannot be written is not read.
const WRITE_DEADLINE: Duration = Duration::from_millis(200);

/// The end that speaks.
#[derive(Debug)]
pub(crate) struct Link {
    stream: PeerStream,
    key: Key,
    num_sent: u64,
}

/// The end that listens.
#[derive(Debug)]
pub(crate) struct Ear {
    stream: PeerStream,
    key: Key,
    num_heard: u64,
}

/// Both ends of a connection whose handshake is done: `speaks` is the key of this side.
pub(crate) fn link(stream: PeerStream, speaks: Key, hears: Key) -> io::Result<(Link, Ear)> {
    stream.set_write_deadline(WRITE_DEADLINE)?;
    stream.set_read_deadline(None)?;
    let heard = stream.try_clone()?;
    Ok((Link { stream, key: speaks, num_sent: 0 }, Ear { stream: heard, key: hears, num_heard: 0 }))
}

impl Link {
    /// After an error the link is ended: what was written may be half a frame.
    pub fn tell(&mut self, message: &Message) -> io::Result<()> {
        let bytes = message.to_bytes();
        let mut frame = Vec::with_capacity(4 + bytes.len() + KEY_LEN);
        frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        frame.extend_from_slice(&bytes);
        frame.extend_from_slice(proof_of_frame(&self.key, self.num_sent, &bytes).bytes());
        self.num_sent += 1;
        self.stream.write_all(&frame).inspect_err(|_| self.stream.end())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The ear holds the same connection open.
        self.stream.end();
    }
}

impl Ear {
    /// Waits for the next message, for as long as the connection lives.
    pub fn hear(&mut self) -> io::Result<Message> {
        let mut len = [0; 4];
        self.stream.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_FRAME {
            return Err(refused("too long a frame"));
        }
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        let mut proof = [0; KEY_LEN];
        self.stream.read_exact(&mut proof)?;
        if Proof::from_bytes(proof) != proof_of_frame(&self.key, self.num_heard, &bytes) {
            return Err(refused("a frame that it did not sign here and now"));
        }
        self.num_heard += 1;
        Message::from_bytes(&bytes).ok_or_else(|| refused("a frame of an unknown kind"))
    }

    /// Like [`Ear::hear`], but gives up when nothing comes for `patience`.
    pub fn hear_within(&mut self, patience: Duration) -> io::Result<Message> {
        self.stream.set_read_deadline(Some(patience))?;
        let message = self.hear()?;
        self.stream.set_read_deadline(None)?;
        Ok(message)
    }

    /// Hands everything heard to `tell`, until the connection ends; then says why. `tell` returns whether to go on.
    pub fn keep_hearing(
        mut self,
        peer: Rank,
        mut tell: impl FnMut(std::result::Result<Message, String>) -> bool + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(format!("control-{peer}")).spawn(move || {
            loop {
                let heard = self.hear().map_err(|error| match error.kind() {
                    ErrorKind::InvalidData => error.to_string(),
                    _ => "connection lost".to_string(),
                });
                let is_last = heard.is_err();
                if !tell(heard) || is_last {
                    return;
                }
            }
        })
    }
}

fn proof_of_frame(key: &Key, count: u64, bytes: &[u8]) -> Proof {
    key.proof("frame", &[&count.to_le_bytes(), bytes])
}

fn refused(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("it sent {what}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use scout_core::Token;

    use super::*;

    fn pair() -> (Link, Ear, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let raw = ours.try_clone().unwrap();
        let key = Key::of_job(&Token::generate().unwrap());
        let (link, _) = link(PeerStream::Unix(ours), key.clone(), key.clone()).unwrap();
        let ear = Ear { stream: PeerStream::Unix(theirs), key, num_heard: 0 };
        (link, ear, raw)
    }

    #[test]
    fn frames_are_heard_in_order_and_their_end_is_an_error() {
        let (mut link, mut ear, raw) = pair();
        link.tell(&Message::Goodbye).unwrap();
        let failed = Message::Failed { code: scout_core::ExitCode::BadData, sentence: "x".repeat(1000) };
        link.tell(&failed).unwrap();
        assert_eq!(ear.hear().unwrap(), Message::Goodbye);
        assert_eq!(ear.hear().unwrap(), failed);
        drop((link, raw));
        assert_eq!(ear.hear().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_frame_said_twice_bent_or_too_long_is_refused() {
        let frame = |key: &Key, count| {
            let bytes = Message::Goodbye.to_bytes();
            let mut frame = (bytes.len() as u32).to_le_bytes().to_vec();
            frame.extend_from_slice(&bytes);
            frame.extend_from_slice(proof_of_frame(key, count, &bytes).bytes());
            frame
        };
        let told = |frames: &dyn Fn(&Key) -> Vec<u8>| {
            let (link, mut ear, mut raw) = pair();
            raw.write_all(&frames(&link.key)).unwrap();
            raw.shutdown(std::net::Shutdown::Write).unwrap();
            (ear.hear().is_ok(), ear.hear().is_ok())
        };
        assert_eq!(told(&|key| [frame(key, 0), frame(key, 1)].concat()), (true, true));
        assert_eq!(told(&|key| [frame(key, 0), frame(key, 0)].concat()), (true, false), "a replay");
        for at in 0..frame(&Key::of_one_host(), 0).len() {
            let bent = |key: &Key| {
                let mut bent = frame(key, 0);
                bent[at] ^= 1;
                bent
            };
            assert!(!told(&bent).0, "byte {at}");
        }
        assert!(!told(&|_| u32::MAX.to_le_bytes().to_vec()).0);
    }
}
