//! The first words between two processes: a challenge, an introduction that answers it, and a welcome. All of fixed
//! size, so that a stranger's bytes decide nothing, not even how much memory is taken.

use std::io::{self, Write};
use std::time::Instant;

use scout_core::random::random;
use scout_core::{Mesh, Rank};

use crate::error::{CommError, Result};
use crate::key::{KEY_LEN, Key, Proof};
use crate::peer::{Introduction, PeerName};
use crate::stream::PeerStream;

/// Changes whenever anything on the wire changes.
const PROTOCOL: u32 = 1;
const MARK: &[u8; 8] = b"scoutjob";
const NONCE_LEN: usize = 32;
pub(crate) const CHALLENGE_LEN: usize = 16 + NONCE_LEN;
pub(crate) const HELLO_LEN: usize = WORDS_LEN + KEY_LEN;
const ANSWER_LEN: usize = 16 + KEY_LEN;
const TEXT_LEN: usize = 72;
const VERSION_LEN: usize = 32;
const WORDS_LEN: usize = 32 + NONCE_LEN + 2 * 32 + VERSION_LEN + 2 * TEXT_LEN;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Control = 1,
    Data = 2,
}

/// Who comes, and what for.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub purpose: Purpose,
    pub rank: Rank,
    pub world_size: usize,
    pub introduction: Introduction,
    /// Where other ranks open their streams to this one; empty over Unix sockets, whose paths all know.
    pub address: String,
}

/// Keys for the two directions of a link whose ends have proved themselves.
#[derive(Debug)]
pub(crate) struct LinkKeys {
    pub from_guest: Key,
    pub from_host: Key,
}

/// Why a guest was not let in.
#[derive(Debug)]
pub(crate) enum Rebuff {
    /// Nobody there, or nobody with time: worth another try.
    Io(io::Error),
    TokenRefused,
    NotOurJob,
    Stranger(String),
}

/// The host's side, without the stream it happens on.
#[derive(Debug, Clone)]
pub(crate) struct Challenge([u8; CHALLENGE_LEN]);

impl Challenge {
    pub fn new() -> Result<Challenge> {
        let mut words = [0; CHALLENGE_LEN];
        words[..8].copy_from_slice(MARK);
        words[8..12].copy_from_slice(&PROTOCOL.to_le_bytes());
        words[16..].copy_from_slice(&random::<NONCE_LEN>()?);
        Ok(Challenge(words))
    }

    pub fn words(&self) -> &[u8] {
        &self.0
    }

    /// Whether `start` can still become a hello. Noise is turned away at its first bytes.
    pub fn may_become_a_hello(start: &[u8]) -> bool {
        let len = start.len().min(MARK.len());
        start[..len] == MARK[..len]
    }

    /// Who the guest is and the welcome to send it, or the refusal to send it.
    pub fn answer(
        &self,
        key: &Key,
        host: Rank,
        hello: &[u8; HELLO_LEN],
    ) -> std::result::Result<(Hello, LinkKeys, [u8; ANSWER_LEN]), [u8; ANSWER_LEN]> {
        let (words, proof) = hello.split_at(WORDS_LEN);
        let proof = Proof::from_bytes(proof.try_into().expect("a hello ends with a proof"));
        if proof != proof_of_hello(key, host, &self.0, words) {
            return Err(answer(REFUSED, &[0; KEY_LEN]));
        }
        let Some(guest) = Hello::from_words(words) else { return Err(answer(REFUSED, &[0; KEY_LEN])) };
        let welcome = proof_of_welcome(key, &self.0, hello);
        Ok((guest, LinkKeys::new(key, &self.0, hello), answer(WELCOME, welcome.bytes())))
    }
}

const WELCOME: u32 = 1;
const REFUSED: u32 = 2;

fn answer(status: u32, proof: &[u8; KEY_LEN]) -> [u8; ANSWER_LEN] {
    let mut words = [0; ANSWER_LEN];
    words[..8].copy_from_slice(MARK);
    words[8..12].copy_from_slice(&status.to_le_bytes());
    words[16..].copy_from_slice(proof);
    words
}

/// The guest's side: answers the challenge that waits on `stream`, and checks that the host knows the key too.
pub(crate) fn introduce(
    stream: &mut PeerStream,
    key: &Key,
    host: Rank,
    hello: &Hello,
    until: Instant,
) -> std::result::Result<LinkKeys, Rebuff> {
    let mut challenge = [0; CHALLENGE_LEN];
    stream.read_until(&mut challenge, until).map_err(Rebuff::Io)?;
    if &challenge[..8] != MARK {
        return Err(Rebuff::Stranger("is another program".to_string()));
    }
    match u32::from_le_bytes(challenge[8..12].try_into().expect("four bytes")) {
        PROTOCOL => {}
        theirs => return Err(Rebuff::Stranger(format!("speaks protocol {theirs}, this rank {PROTOCOL}"))),
    }
    let mut words = hello.to_words(&random().map_err(|error| Rebuff::Io(io::Error::other(error)))?).to_vec();
    let proof = proof_of_hello(key, host, &challenge, &words);
    words.extend_from_slice(proof.bytes());
    let hello: [u8; HELLO_LEN] = words.try_into().expect("words and a proof make a hello");
    stream.write_all(&hello).map_err(Rebuff::Io)?;
    let mut answer = [0; ANSWER_LEN];
    stream.read_until(&mut answer, until).map_err(Rebuff::Io)?;
    match u32::from_le_bytes(answer[8..12].try_into().expect("four bytes")) {
        _ if &answer[..8] != MARK => return Err(Rebuff::Stranger("is another program".to_string())),
        REFUSED => return Err(Rebuff::TokenRefused),
        _ => {}
    }
    let proof = Proof::from_bytes(answer[16..].try_into().expect("an answer ends with a proof"));
    if proof != proof_of_welcome(key, &challenge, &hello) {
        return Err(Rebuff::NotOurJob);
    }
    Ok(LinkKeys::new(key, &challenge, &hello))
}

/// Covers both nonces, who asks whom, and everything the guest says about itself.
fn proof_of_hello(key: &Key, host: Rank, challenge: &[u8], words: &[u8]) -> Proof {
    key.proof("hello", &[&(host.0 as u64).to_le_bytes(), challenge, words])
}

fn proof_of_welcome(key: &Key, challenge: &[u8], hello: &[u8]) -> Proof {
    key.proof("welcome", &[challenge, hello])
}

impl LinkKeys {
    fn new(key: &Key, challenge: &[u8], hello: &[u8]) -> LinkKeys {
        let from_guest = key.derive("link from guest", &[challenge, hello]);
        LinkKeys { from_guest, from_host: key.derive("link from host", &[challenge, hello]) }
    }
}

impl Hello {
    pub fn new(purpose: Purpose, mesh: Mesh, introduction: &Introduction, address: String) -> Hello {
        let introduction = introduction.clone();
        Hello { purpose, rank: mesh.rank(), world_size: mesh.size(), introduction, address }
    }

    pub fn name(&self) -> PeerName {
        self.introduction.name()
    }

    fn to_words(&self, nonce: &[u8; NONCE_LEN]) -> [u8; WORDS_LEN] {
        let mut words = [0; WORDS_LEN];
        let mut rest = &mut words[..];
        let mut put = |bytes: &[u8], len: usize| {
            let (field, after) = std::mem::take(&mut rest).split_at_mut(len);
            let fitting = bytes.len().min(len);
            field[..fitting].copy_from_slice(&bytes[..fitting]);
            rest = after;
        };
        let Introduction { version, config_digest, model_digest, host, pid } = &self.introduction;
        put(MARK, 8);
        let numbers = [PROTOCOL, self.purpose as u32, self.rank.0 as u32, self.world_size as u32, *pid, 0];
        numbers.iter().for_each(|number| put(&number.to_le_bytes(), 4));
        put(nonce, NONCE_LEN);
        put(config_digest, 32);
        put(model_digest, 32);
        put(version.as_bytes(), VERSION_LEN);
        put(host.as_bytes(), TEXT_LEN);
        put(self.address.as_bytes(), TEXT_LEN);
        words
    }

    fn from_words(words: &[u8]) -> Option<Hello> {
        let mut rest = words;
        let mut take = |len: usize| {
            let (field, after) = rest.split_at(len);
            rest = after;
            field
        };
        let mark = take(8);
        let mut number = || u32::from_le_bytes(take(4).try_into().expect("four bytes"));
        let numbers = [number(), number(), number(), number(), number(), number()];
        let [protocol, purpose, rank, world_size, pid, _] = numbers;
        let _nonce = take(NONCE_LEN);
        let config_digest = take(32).try_into().expect("a digest");
        let model_digest = take(32).try_into().expect("a digest");
        let (version, host, address) = (text(take(VERSION_LEN)), text(take(TEXT_LEN)), text(take(TEXT_LEN)));
        let purpose = match purpose {
            1 => Purpose::Control,
            2 => Purpose::Data,
            _ => return None,
        };
        let introduction = Introduction { version, config_digest, model_digest, host, pid };
        let (rank, world_size) = (Rank(rank as usize), world_size as usize);
        (mark == MARK && protocol == PROTOCOL).then_some(Hello { purpose, rank, world_size, introduction, address })
    }
}

/// A field of text, up to its first zero.
fn text(field: &[u8]) -> String {
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..len]).into_owned()
}

impl Rebuff {
    /// As an error about the place at which it happened.
    pub fn into_error(self, address: &str) -> CommError {
        let address = address.to_string();
        match self {
            Rebuff::Io(cause) => CommError::Place { act: "meet the ranks at", place: address, cause },
            Rebuff::TokenRefused => CommError::TokenRefused { address },
            Rebuff::NotOurJob => CommError::NotOurJob { address },
            Rebuff::Stranger(problem) => CommError::Stranger { address, problem },
        }
    }
}

#[cfg(test)]
mod tests {
    use scout_core::Token;

    use super::*;

    pub fn hello() -> Hello {
        let introduction = Introduction {
            version: "0.1.0".to_string(),
            config_digest: [1; 32],
            model_digest: [2; 32],
            host: "node-7".to_string(),
            pid: 4711,
        };
        let mesh = Mesh::new(Rank(3), 8).unwrap();
        Hello::new(Purpose::Data, mesh, &introduction, "127.0.0.1:4000".to_string())
    }

    fn signed(key: &Key, host: Rank, challenge: &Challenge) -> [u8; HELLO_LEN] {
        let mut words = hello().to_words(&[9; NONCE_LEN]).to_vec();
        words.extend_from_slice(proof_of_hello(key, host, &challenge.0, &words).bytes());
        words.try_into().unwrap()
    }

    #[test]
    fn an_introduction_comes_out_as_it_went_in() {
        let key = Key::of_one_host();
        let challenge = Challenge::new().unwrap();
        let (guest, _, _) = challenge.answer(&key, Rank(0), &signed(&key, Rank(0), &challenge)).unwrap();
        assert_eq!(format!("{guest:?}"), format!("{:?}", hello()));
    }

    #[test]
    fn a_hello_holds_for_one_challenge_one_host_one_key_and_these_words() {
        let key = Key::of_job(&Token::generate().unwrap());
        let challenge = Challenge::new().unwrap();
        let good = signed(&key, Rank(0), &challenge);
        assert!(challenge.answer(&key, Rank(0), &good).is_ok());
        assert!(Challenge::new().unwrap().answer(&key, Rank(0), &good).is_err(), "a replay");
        assert!(challenge.answer(&key, Rank(1), &good).is_err(), "another host");
        assert!(challenge.answer(&Key::of_one_host(), Rank(0), &good).is_err(), "another key");
        for at in 0..HELLO_LEN {
            let mut bent = good;
            bent[at] ^= 1;
            assert!(challenge.answer(&key, Rank(0), &bent).is_err(), "byte {at}");
        }
    }

    #[test]
    fn text_that_is_too_long_is_cut_and_noise_is_recognised() {
        let mut long = hello();
        long.introduction.host = "h".repeat(200);
        let read = Hello::from_words(&long.to_words(&[0; NONCE_LEN])).unwrap();
        assert_eq!(read.introduction.host, "h".repeat(TEXT_LEN));
        for (start, expected) in [(&b""[..], true), (b"sco", true), (b"scoutjob and more", true), (b"GET / HT", false)]
        {
            assert_eq!(Challenge::may_become_a_hello(start), expected);
        }
    }
}
