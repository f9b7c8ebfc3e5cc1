//! What must hold for every backend and every number of ranks. Each case is run by all ranks, and each rank checks what
//! it received itself.

use scout_comm::Communicator;
use scout_core::{DType, Rank};
use scout_device::Buffer;

pub type Case = fn(&dyn Communicator);

const LENGTHS: [usize; 5] = [0, 1, 7, 1000, 100_003];

/// Values that differ from rank to rank and from place to place, and whose sum depends on the order of adding.
pub fn values(rank: usize, len: usize) -> Vec<f32> {
    let value = |index: usize| {
        let mixed = (index as u32).wrapping_mul(2_654_435_761).wrapping_add(rank as u32 * 40_503);
        (mixed >> 8) as f32 / (1 << 24) as f32 * 10f32.powi((mixed % 9) as i32 - 4)
    };
    (0..len).map(value).collect()
}

pub fn sum_in_rank_order(world: usize, len: usize) -> Vec<f32> {
    let mut sum = values(0, len);
    for rank in 1..world {
        sum.iter_mut().zip(values(rank, len)).for_each(|(sum, value)| *sum += value);
    }
    sum
}

fn seat(comm: &dyn Communicator) -> (usize, usize) {
    (comm.mesh().rank().0, comm.mesh().size())
}

pub fn gathers_lay_shards_in_rank_order_for_every_element_type(comm: &dyn Communicator) {
    let (rank, world) = seat(comm);
    for len in LENGTHS {
        let of_u8 = |rank: usize| vec![rank as u8; len];
        let mut of_bf16 = Buffer::zeros(DType::BF16, len).unwrap();
        of_bf16.bytes_mut().fill(rank as u8 + 1);
        let shards = [Buffer::from_f32(values(rank, len)), Buffer::from_u8(of_u8(rank)), of_bf16];

        let mut all_bf16 = Buffer::zeros(DType::BF16, len * world).unwrap();
        for (index, byte) in all_bf16.bytes_mut().iter_mut().enumerate() {
            *byte = (index / (2 * len)) as u8 + 1;
        }
        let all_f32 = Buffer::from_f32((0..world).flat_map(|rank| values(rank, len)).collect());
        let expected = [all_f32, Buffer::from_u8((0..world).flat_map(of_u8).collect()), all_bf16];

        for (shard, expected) in shards.into_iter().zip(expected) {
            let full = Buffer::zeros(shard.dtype(), len * world).unwrap();
            let found = comm.all_gather(&shard, full).unwrap().wait().unwrap();
            assert!(found == expected, "{len} elements of {}", shard.dtype());
        }
    }
}

pub fn sums_are_taken_in_rank_order_to_the_last_bit(comm: &dyn Communicator) {
    let (rank, world) = seat(comm);
    for len in LENGTHS {
        let whole = len * world;
        let sum = comm.all_reduce(Buffer::from_f32(values(rank, len))).unwrap();
        let part = Buffer::zeros(DType::F32, len).unwrap();
        let part = comm.reduce_scatter(Buffer::from_f32(values(rank, whole)), part).unwrap();
        let (sum, part) = (sum.wait().unwrap(), part.wait().unwrap());
        assert_eq!(sum.f32s().unwrap(), sum_in_rank_order(world, len), "{len} elements");
        let expected = &sum_in_rank_order(world, whole)[rank * len..(rank + 1) * len];
        assert_eq!(part.f32s().unwrap(), expected, "{len} elements");
    }
}

pub fn every_rank_can_be_the_one_that_all_listen_to(comm: &dyn Communicator) {
    let (rank, world) = seat(comm);
    let told = |root: usize| comm.broadcast(Rank(root), Buffer::from_f32(values(rank, 1000))).unwrap();
    let all: Vec<_> = (0..world).map(told).collect();
    comm.barrier().unwrap();
    for (root, pending) in all.into_iter().enumerate() {
        assert_eq!(pending.wait().unwrap().f32s().unwrap(), values(root, 1000), "root {root}");
    }
}

/// The sequence is legal: all ranks begin the same operations in the same order, and wait as they like.
pub fn long_mixed_sequences_may_be_waited_for_in_any_order(comm: &dyn Communicator) {
    let (rank, world) = seat(comm);
    let mut pending = Vec::new();
    for turn in 0..60 {
        let len = (turn * 37) % 211;
        pending.push(match turn % 4 {
            0 => comm.all_reduce(Buffer::from_f32(values(rank, len))),
            1 => comm.broadcast(Rank(turn % world), Buffer::from_f32(values(rank, len))),
            2 => {
                let full = Buffer::zeros(DType::F32, len * world).unwrap();
                comm.all_gather(&Buffer::from_f32(values(rank, len)), full)
            }
            _ => {
                let part = Buffer::zeros(DType::F32, len).unwrap();
                comm.reduce_scatter(Buffer::from_f32(values(rank, len * world)), part)
            }
        });
    }
    let mut order: Vec<_> = pending.into_iter().map(Result::unwrap).enumerate().collect();
    // Odd ranks wait from the back.
    if rank % 2 == 1 {
        order.reverse();
    }
    for (turn, pending) in order {
        let len = (turn * 37) % 211;
        let expected = if turn % 4 == 2 { len * world } else { len };
        assert_eq!(pending.wait().unwrap().len(), expected, "operation {turn}");
    }
}

/// The longest piece that a backend moves in one call is 16 MiB of all ranks together.
pub fn buffers_longer_than_any_backend_moves_at_once_arrive_whole(comm: &dyn Communicator) {
    let (rank, world) = seat(comm);
    let whole = 17 << 20;
    let byte = |rank: usize, index: usize| ((index + index / 4099 + rank * 31) % 251) as u8;
    let bytes = |rank: usize, len: usize| Buffer::from_u8((0..len).map(|index| byte(rank, index)).collect());

    let shard_len = whole / world + 5;
    let full = Buffer::zeros(DType::U8, shard_len * world).unwrap();
    let full = comm.all_gather(&bytes(rank, shard_len), full).unwrap().wait().unwrap();
    for (rank, shard) in full.u8s().unwrap().chunks_exact(shard_len).enumerate() {
        assert!(shard.iter().enumerate().all(|(index, found)| *found == byte(rank, index)), "of rank {rank}");
    }

    let root = world - 1;
    let told = comm.broadcast(Rank(root), bytes(rank, whole + 5)).unwrap().wait().unwrap();
    assert!(told == bytes(root, whole + 5), "from rank {root}");

    // Small whole numbers, whose sum is exact in any order.
    let part_len = whole / 4 / world + 5;
    let numbers = (0..part_len * world).map(|index| f32::from(byte(rank, index))).collect();
    let part = Buffer::zeros(DType::F32, part_len).unwrap();
    let part = comm.reduce_scatter(Buffer::from_f32(numbers), part).unwrap().wait().unwrap();
    for (index, found) in part.f32s().unwrap().iter().enumerate() {
        let expected: u32 = (0..world).map(|giver| u32::from(byte(giver, rank * part_len + index))).sum();
        assert!(*found == expected as f32, "element {index}: found {found}, expected {expected}");
    }
}

pub fn buffers_that_do_not_fit_together_are_refused_before_anything_is_sent(comm: &dyn Communicator) {
    let (_, world) = seat(comm);
    let shard = Buffer::from_f32(vec![0.0; 3]);
    let odd = || Buffer::zeros(DType::F32, 3 * world - 1).unwrap();
    let gather = comm.all_gather(&shard, odd()).unwrap_err().to_string();
    let scatter = comm.reduce_scatter(odd(), shard).unwrap_err().to_string();
    let (found, expected) = (3 * world - 1, 3 * world);
    assert_eq!(gather, format!("all_gather: found {found} elements, expected {expected}"));
    assert_eq!(scatter, format!("reduce_scatter: found {found} elements, expected {expected}"));
    comm.barrier().unwrap();
}
