//! Moving the parts of one operation, once all ranks have agreed on it. MPI counts in 32 bits, so buffers move as plain
//! bytes and in pieces; nothing is added here.

use std::ops::Range;

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use scout_core::{DType, Mesh, Rank};
use scout_device::Buffer;

use crate::op::{Called, Op};

/// Bytes of all ranks together in one call: long enough that the call itself costs nothing, short enough that the room
/// where pieces arrive, which stands in no plan, stays small.
const PIECE_LEN: usize = 16 << 20;

/// What each rank gave to the operation `called`, as far as this rank takes it. This rank's own part stays empty: it is
/// on the board already.
pub(super) fn parts(world: &SimpleCommunicator, mesh: Mesh, called: &Called, buffer: &Buffer) -> Vec<Buffer> {
    match called.op {
        Op::AllGather | Op::AllReduce => gathered(world, mesh, buffer),
        Op::ReduceScatter => exchanged(world, mesh, buffer),
        Op::Broadcast { root } => heard(world, mesh, root, buffer),
        Op::Barrier => mesh.ranks().map(|_| room(buffer.dtype(), 0)).collect(),
    }
}

/// All of everybody's elements.
fn gathered(world: &SimpleCommunicator, mesh: Mesh, buffer: &Buffer) -> Vec<Buffer> {
    let bytes = buffer.bytes_of(0..buffer.len());
    let mut parts = rooms(mesh, buffer.dtype(), buffer.len());
    let mut arrived = Vec::new();
    for piece in pieces(bytes.len(), mesh.size()) {
        arrived.resize(piece.len() * mesh.size(), 0);
        world.all_gather_into(&bytes[piece.clone()], &mut arrived[..]);
        lay_down(&mut parts, mesh, piece, &arrived);
    }
    parts
}

/// From everybody, the elements that this rank sums.
fn exchanged(world: &SimpleCommunicator, mesh: Mesh, buffer: &Buffer) -> Vec<Buffer> {
    let bytes = buffer.bytes_of(0..buffer.len());
    let part_len = bytes.len() / mesh.size();
    let mut parts = rooms(mesh, buffer.dtype(), buffer.len() / mesh.size());
    let (mut leaving, mut arrived) = (Vec::new(), Vec::new());
    for piece in pieces(part_len, mesh.size()) {
        leaving.clear();
        for peer in mesh.ranks() {
            let start = peer.0 * part_len;
            leaving.extend_from_slice(&bytes[start + piece.start..start + piece.end]);
        }
        arrived.resize(leaving.len(), 0);
        world.all_to_all_into(&leaving[..], &mut arrived[..]);
        lay_down(&mut parts, mesh, piece, &arrived);
    }
    parts
}

/// The elements of `root`; the others give none.
fn heard(world: &SimpleCommunicator, mesh: Mesh, root: Rank, buffer: &Buffer) -> Vec<Buffer> {
    let speaker = world.process_at_rank(root.0 as i32);
    let bytes = buffer.bytes_of(0..buffer.len());
    let mut parts: Vec<Buffer> = mesh.ranks().map(|_| room(buffer.dtype(), 0)).collect();
    if mesh.rank() == root {
        // MPI wants to be able to write even where it only reads, so the pieces are copied.
        for piece in pieces(bytes.len(), 1) {
            speaker.broadcast_into(&mut bytes[piece].to_vec()[..]);
        }
    } else {
        parts[root.0] = room(buffer.dtype(), buffer.len());
        for piece in pieces(bytes.len(), 1) {
            speaker.broadcast_into(&mut parts[root.0].bytes_mut()[piece]);
        }
    }
    parts
}

/// The ranges into which `len` bytes of each rank are cut.
fn pieces(len: usize, num_ranks: usize) -> impl Iterator<Item = Range<usize>> {
    let piece_len = (PIECE_LEN / num_ranks).max(1);
    (0..len).step_by(piece_len).map(move |start| start..len.min(start + piece_len))
}

/// Copies the same piece of everybody's part to its place.
fn lay_down(parts: &mut [Buffer], mesh: Mesh, piece: Range<usize>, arrived: &[u8]) {
    let arrived = arrived.chunks_exact(piece.len());
    for ((rank, part), bytes) in mesh.ranks().zip(parts).zip(arrived) {
        if rank != mesh.rank() {
            part.bytes_mut()[piece.clone()].copy_from_slice(bytes);
        }
    }
}

fn rooms(mesh: Mesh, dtype: DType, len: usize) -> Vec<Buffer> {
    mesh.ranks().map(|rank| room(dtype, if rank == mesh.rank() { 0 } else { len })).collect()
}

fn room(dtype: DType, len: usize) -> Buffer {
    Buffer::zeros(dtype, len).expect("there is a buffer of this element type already")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_byte_once_and_never_exceed_what_one_call_moves() {
        for num_ranks in [1, 3, 8] {
            for len in [0, 1, PIECE_LEN / num_ranks, PIECE_LEN / num_ranks + 1, 5 * PIECE_LEN + 7] {
                let mut next = 0;
                for piece in pieces(len, num_ranks) {
                    assert!(piece.start == next && !piece.is_empty() && piece.len() * num_ranks <= PIECE_LEN);
                    next = piece.end;
                }
                assert_eq!(next, len);
            }
        }
    }
}
