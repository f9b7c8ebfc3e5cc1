//! Frames between ranks: a fixed header and plain bytes. Both sides run the same program on the same kind of machine, so
//! numbers travel as they lie in memory; what a header says is checked all the same.

use std::io::{self, Read, Write};

use scout_core::{DType, Rank};
use scout_device::Buffer;

use crate::op::{Called, Op};

const MAGIC: u32 = 0x5c07_d157;
pub(crate) const HEADER_LEN: usize = 40;
/// No part of an operation is larger: a wrong length must not become an allocation.
const MAX_PAYLOAD: u64 = 64 << 30;
/// A reason is a sentence.
const MAX_REASON: u64 = 64 << 10;

/// What one rank tells another.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Its part of operation `sequence`.
    Part { sequence: u64, called: Called, buffer: Buffer },
    /// The work of all ranks has ended.
    Abort { reason: String },
    /// It will say nothing more, and that is as it should be.
    Bye,
}

/// Writes a part of an operation: elements `start..start + len` of `buffer`.
pub(crate) fn write_part(
    sink: &mut dyn Write,
    sequence: u64,
    called: Called,
    (buffer, start, len): (&Buffer, usize, usize),
) -> io::Result<()> {
    let (op, root) = op_code(called.op);
    let dtype = match called.dtype {
        DType::F32 => 0,
        DType::BF16 => 1,
        _ => 2,
    };
    let bytes = buffer.bytes_of(start..start + len);
    write_header(sink, [0, op, dtype, 0], root, [sequence, called.count as u64, bytes.len() as u64])?;
    sink.write_all(bytes)
}

pub(crate) fn write_abort(sink: &mut dyn Write, reason: &str) -> io::Result<()> {
    write_header(sink, [1, 0, 0, 0], 0, [0, 0, reason.len() as u64])?;
    sink.write_all(reason.as_bytes())
}

pub(crate) fn write_bye(sink: &mut dyn Write) -> io::Result<()> {
    write_header(sink, [2, 0, 0, 0], 0, [0, 0, 0])
}

fn write_header(sink: &mut dyn Write, kinds: [u8; 4], root: u32, numbers: [u64; 3]) -> io::Result<()> {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..8].copy_from_slice(&kinds);
    header[8..12].copy_from_slice(&root.to_le_bytes());
    for (slot, number) in header[16..].chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    sink.write_all(&header)
}

/// The next frame. Fails at the end of the stream, and on anything that no rank would send.
pub(crate) fn read_frame(source: &mut dyn Read) -> io::Result<Frame> {
    let mut header = [0; HEADER_LEN];
    source.read_exact(&mut header)?;
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (sequence, count, payload_len) = (u64_at(16), u64_at(24), u64_at(32));
    if u32_at(0) != MAGIC {
        return Err(refused("a frame without the mark"));
    }
    match header[4] {
        0 => {
            let called = Called { op: op(header[5], u32_at(8))?, count: count as usize, dtype: dtype(header[6])? };
            let element_len = called.dtype.size().0;
            if payload_len > MAX_PAYLOAD || payload_len % element_len != 0 || payload_len > count * element_len {
                return Err(refused("a part longer than its operation"));
            }
            let mut buffer = Buffer::zeros(called.dtype, (payload_len / element_len) as usize)
                .map_err(|error| io::Error::other(error.to_string()))?;
            source.read_exact(buffer.bytes_mut())?;
            Ok(Frame::Part { sequence, called, buffer })
        }
        1 if payload_len <= MAX_REASON => {
            let mut reason = vec![0; payload_len as usize];
            source.read_exact(&mut reason)?;
            Ok(Frame::Abort { reason: String::from_utf8_lossy(&reason).into_owned() })
        }
        2 if payload_len == 0 => Ok(Frame::Bye),
        _ => Err(refused("a frame of an unknown kind")),
    }
}

/// An operation as two numbers.
pub(crate) fn op_code(op: Op) -> (u8, u32) {
    match op {
        Op::AllGather => (0, 0),
        Op::ReduceScatter => (1, 0),
        Op::AllReduce => (2, 0),
        Op::Broadcast { root } => (3, root.0 as u32),
        Op::Barrier => (4, 0),
    }
}

pub(crate) fn op(code: u8, root: u32) -> io::Result<Op> {
    Ok(match code {
        0 => Op::AllGather,
        1 => Op::ReduceScatter,
        2 => Op::AllReduce,
        3 => Op::Broadcast { root: Rank(root as usize) },
        4 => Op::Barrier,
        _ => return Err(refused("an unknown operation")),
    })
}

fn dtype(code: u8) -> io::Result<DType> {
    match code {
        0 => Ok(DType::F32),
        1 => Ok(DType::BF16),
        2 => Ok(DType::U8),
        _ => Err(refused("an unknown element type")),
    }
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_out_as_it_went_in() {
        let buffer = Buffer::from_f32(vec![1.5, -2.0, 3.25, 4.0]);
        let called = Called { op: Op::Broadcast { root: Rank(3) }, count: 4, dtype: DType::F32 };
        let mut bytes = Vec::new();
        write_part(&mut bytes, 7, called, (&buffer, 1, 2)).unwrap();
        write_abort(&mut bytes, "disk full").unwrap();
        write_bye(&mut bytes).unwrap();
        let source = &mut bytes.as_slice();
        let Frame::Part { sequence, called: read, buffer } = read_frame(source).unwrap() else { panic!("a part") };
        assert_eq!((sequence, read, buffer), (7, called, Buffer::from_f32(vec![-2.0, 3.25])));
        assert!(matches!(read_frame(source).unwrap(), Frame::Abort { reason } if reason == "disk full"));
        assert!(matches!(read_frame(source).unwrap(), Frame::Bye));
        assert!(read_frame(source).is_err());
    }

    #[test]
    fn what_no_rank_would_send_is_refused_without_an_allocation() {
        let mut good = Vec::new();
        let called = Called { op: Op::AllGather, count: 2, dtype: DType::F32 };
        write_part(&mut good, 0, called, (&Buffer::from_f32(vec![1.0, 2.0]), 0, 2)).unwrap();
        for (at, value) in [(0, 1), (4, 9), (5, 9), (6, 9), (32, 7), (39, 0xff), (36, 1), (35, 0x7f)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(read_frame(&mut bad.as_slice()).is_err(), "byte {at} = {value}");
        }
    }
}
