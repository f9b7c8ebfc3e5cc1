//! What ranks tell each other on the control plane, as bytes.

use scout_core::{ExitCode, Place, Rank};

use crate::op::Op;
use crate::peer::PeerName;
use crate::verdict::Verdict;
use crate::wire;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// One of all ranks, told by rank 0 in their order before anything else.
    Peer { name: PeerName, address: String },
    /// The sender lives, and this is where it is.
    Beat(Beat),
    /// The sender ends, and that is as it should be.
    Goodbye,
    /// The sender has failed.
    Failed { code: ExitCode, sentence: String },
    /// Everybody ends.
    End(Verdict),
}

/// A rank's sign of life. Any difference between two of them is progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beat {
    pub place: Place,
    /// Places entered so far.
    pub num_changes: u64,
    /// Operations begun so far.
    pub num_begun: u64,
    /// Bytes received from other ranks so far: a long transfer is no hang.
    pub num_received: u64,
    pub awaited: Option<Awaiting>,
}

/// The operation that a rank waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Awaiting {
    pub sequence: u64,
    pub op: Op,
    /// The first rank whose part it misses.
    pub missing: Option<Rank>,
}

const NO_RANK: u64 = u64::MAX;

impl Message {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Message::Peer { name, address } => {
                put_number(&mut bytes, 0);
                put_number(&mut bytes, name.pid.into());
                put_text(&mut bytes, &name.host);
                put_text(&mut bytes, address);
            }
            Message::Beat(Beat { place, num_changes, num_begun, num_received, awaited }) => {
                put_number(&mut bytes, 1);
                for number in [place.to_bits(), *num_changes, *num_begun, *num_received, awaited.is_some().into()] {
                    put_number(&mut bytes, number);
                }
                if let Some(Awaiting { sequence, op, missing }) = awaited {
                    let (op, root) = wire::op_code(*op);
                    let missing = missing.map_or(NO_RANK, |rank| rank.0 as u64);
                    [*sequence, op.into(), root.into(), missing].iter().for_each(|n| put_number(&mut bytes, *n));
                }
            }
            Message::Goodbye => put_number(&mut bytes, 2),
            Message::Failed { code, sentence } => {
                put_number(&mut bytes, 3);
                put_number(&mut bytes, code.code().into());
                put_text(&mut bytes, sentence);
            }
            Message::End(Verdict { rank, code, sentence, speaker }) => {
                put_number(&mut bytes, 4);
                let numbers = [rank.0 as u64, code.code().into(), speaker.0 as u64];
                numbers.iter().for_each(|number| put_number(&mut bytes, *number));
                put_text(&mut bytes, sentence);
            }
        }
        bytes
    }

    /// `None` for anything that no rank would send.
    pub fn from_bytes(bytes: &[u8]) -> Option<Message> {
        let mut rest = bytes;
        let rest = &mut rest;
        let message = match number(rest)? {
            0 => {
                let pid = number(rest)?.try_into().ok()?;
                Message::Peer { name: PeerName { pid, host: text(rest)? }, address: text(rest)? }
            }
            1 => Message::Beat(Beat {
                place: Place::from_bits(number(rest)?)?,
                num_changes: number(rest)?,
                num_begun: number(rest)?,
                num_received: number(rest)?,
                awaited: match number(rest)? {
                    0 => None,
                    _ => Some(awaiting(rest)?),
                },
            }),
            2 => Message::Goodbye,
            3 => Message::Failed { code: code(rest)?, sentence: text(rest)? },
            4 => {
                let (rank, code, speaker) = (Rank(number(rest)? as usize), code(rest)?, Rank(number(rest)? as usize));
                Message::End(Verdict { rank, code, sentence: text(rest)?, speaker })
            }
            _ => return None,
        };
        rest.is_empty().then_some(message)
    }
}

fn awaiting(rest: &mut &[u8]) -> Option<Awaiting> {
    let (sequence, op, root) = (number(rest)?, number(rest)?, number(rest)?);
    let op = wire::op(op.try_into().ok()?, root.try_into().ok()?).ok()?;
    let missing = Some(number(rest)?).filter(|rank| *rank != NO_RANK).map(|rank| Rank(rank as usize));
    Some(Awaiting { sequence, op, missing })
}

fn code(rest: &mut &[u8]) -> Option<ExitCode> {
    ExitCode::from_code(number(rest)?.try_into().ok()?)
}

fn put_number(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let len = number(rest)?.try_into().ok()?;
    let (text, after) = rest.split_at_checked(len)?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use scout_core::Phase;

    use super::*;

    fn examples() -> Vec<Message> {
        let place = Place { phase: Phase::Backward, step: 17 };
        let beat = Beat { place, num_changes: 5, num_begun: 8123, num_received: 1 << 40, awaited: None };
        let awaiting = |op, missing| Some(Awaiting { sequence: 8122, op, missing });
        let broadcast = awaiting(Op::Broadcast { root: Rank(3) }, Some(Rank(5)));
        let code = ExitCode::BadData;
        vec![
            Message::Peer { name: PeerName { host: "node".to_string(), pid: 9 }, address: "[::1]:7".to_string() },
            Message::Beat(beat),
            Message::Beat(Beat { awaited: awaiting(Op::ReduceScatter, None), ..beat }),
            Message::Beat(Beat { awaited: broadcast, ..beat }),
            Message::Goodbye,
            Message::Failed { code, sentence: "`a.json` line 3: größer".to_string() },
            Message::End(Verdict { rank: Rank(5), code, sentence: "s".to_string(), speaker: Rank(0) }),
        ]
    }

    #[test]
    fn a_message_comes_out_as_it_went_in() {
        for message in examples() {
            assert_eq!(Message::from_bytes(&message.to_bytes()), Some(message));
        }
    }

    #[test]
    fn a_message_cut_short_or_with_something_behind_it_is_refused() {
        for message in examples() {
            let mut bytes = message.to_bytes();
            for len in 0..bytes.len() {
                assert_eq!(Message::from_bytes(&bytes[..len]), None, "{message:?}, {len} bytes");
            }
            bytes.push(0);
            assert_eq!(Message::from_bytes(&bytes), None, "{message:?}");
        }
        assert_eq!(Message::from_bytes(&[9; 8]), None);
    }
}
