//! One list of cases for every way in which ranks exchange buffers. A backend without a row in `BACKENDS` is no backend.

mod backends;
mod faults;

use std::time::Duration;

use backends::{BACKENDS, on_every_rank};
use scout_core::{DType, Rank};
use scout_device::Buffer;

const WORLDS: [usize; 5] = [1, 2, 3, 4, 8];
const LENGTHS: [usize; 5] = [0, 1, 7, 1000, 100_003];
const PATIENT: Duration = Duration::from_secs(60);

/// Values that differ from rank to rank and from place to place, and whose sum depends on the order of adding.
fn values(rank: usize, len: usize) -> Vec<f32> {
    let value = |index: usize| {
        let mixed = (index as u32).wrapping_mul(2_654_435_761).wrapping_add(rank as u32 * 40_503);
        (mixed >> 8) as f32 / (1 << 24) as f32 * 10f32.powi((mixed % 9) as i32 - 4)
    };
    (0..len).map(value).collect()
}

fn sum_in_rank_order(world: usize, len: usize) -> Vec<f32> {
    let mut sum = values(0, len);
    for rank in 1..world {
        sum.iter_mut().zip(values(rank, len)).for_each(|(sum, value)| *sum += value);
    }
    sum
}

#[test]
fn gathers_lay_shards_in_rank_order_for_every_element_type() {
    for world in WORLDS {
        for len in LENGTHS {
            for (name, results) in on_every_rank(BACKENDS, world, PATIENT, |comm| {
                let rank = comm.mesh().rank().0;
                let f32s = Buffer::from_f32(values(rank, len));
                let u8s = Buffer::from_u8(vec![rank as u8; len]);
                let mut bf16s = Buffer::zeros(DType::BF16, len).unwrap();
                bf16s.bytes_mut().fill(rank as u8 + 1);
                [f32s, u8s, bf16s].map(|shard| {
                    let full = Buffer::zeros(shard.dtype(), len * world).unwrap();
                    comm.all_gather(&shard, full).unwrap().wait().unwrap()
                })
            }) {
                let f32s = (0..world).flat_map(|rank| values(rank, len)).collect();
                let u8s = (0..world).flat_map(|rank| vec![rank as u8; len]).collect();
                let mut bf16s = Buffer::zeros(DType::BF16, len * world).unwrap();
                for (index, byte) in bf16s.bytes_mut().iter_mut().enumerate() {
                    *byte = (index / (2 * len)) as u8 + 1;
                }
                let expected = [Buffer::from_f32(f32s), Buffer::from_u8(u8s), bf16s];
                for found in results {
                    assert!(found == expected, "{name}, {world} ranks, {len} elements");
                }
            }
        }
    }
}

#[test]
fn sums_are_taken_in_rank_order_to_the_last_bit_on_every_backend() {
    for world in WORLDS {
        for len in LENGTHS {
            let (whole, expected_sum) = (len * world, sum_in_rank_order(world, len));
            let expected_parts = sum_in_rank_order(world, whole);
            for (name, results) in on_every_rank(BACKENDS, world, PATIENT, |comm| {
                let rank = comm.mesh().rank().0;
                let sum = comm.all_reduce(Buffer::from_f32(values(rank, len))).unwrap();
                let part = Buffer::zeros(DType::F32, len).unwrap();
                let part = comm.reduce_scatter(Buffer::from_f32(values(rank, whole)), part).unwrap();
                (sum.wait().unwrap(), part.wait().unwrap())
            }) {
                for (rank, (sum, part)) in results.into_iter().enumerate() {
                    let expected_part = &expected_parts[rank * len..(rank + 1) * len];
                    assert_eq!(sum.f32s().unwrap(), expected_sum, "{name}, {world} ranks, {len} elements");
                    assert_eq!(part.f32s().unwrap(), expected_part, "{name}, {world} ranks, rank {rank}");
                }
            }
        }
    }
}

#[test]
fn every_rank_can_be_the_one_that_all_listen_to() {
    for world in WORLDS {
        for (name, results) in on_every_rank(BACKENDS, world, PATIENT, |comm| {
            let rank = comm.mesh().rank().0;
            let told = |root: usize| comm.broadcast(Rank(root), Buffer::from_f32(values(rank, 1000))).unwrap();
            let all: Vec<_> = (0..world).map(told).collect();
            comm.barrier().unwrap();
            all.into_iter().map(|pending| pending.wait().unwrap()).collect::<Vec<_>>()
        }) {
            for told in results {
                for (root, buffer) in told.into_iter().enumerate() {
                    assert_eq!(buffer.f32s().unwrap(), values(root, 1000), "{name}, {world} ranks, root {root}");
                }
            }
        }
    }
}

#[test]
fn long_mixed_sequences_may_be_waited_for_in_any_order() {
    // The sequence is legal: all ranks begin the same operations in the same order, and wait as they like.
    for world in [2, 3, 8] {
        for (name, results) in on_every_rank(BACKENDS, world, PATIENT, |comm| {
            let rank = comm.mesh().rank().0;
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
            // Odd ranks wait from the back.
            let numbered = pending.into_iter().map(Result::unwrap).enumerate();
            let mut order: Vec<_> = numbered.collect();
            if rank % 2 == 1 {
                order.reverse();
            }
            let mut lens: Vec<_> = order.into_iter().map(|(turn, p)| (turn, p.wait().unwrap().len())).collect();
            lens.sort_unstable();
            lens
        }) {
            for lens in results {
                for (turn, found) in lens {
                    let len = (turn * 37) % 211;
                    let expected = if turn % 4 == 2 { len * world } else { len };
                    assert_eq!(found, expected, "{name}, {world} ranks, operation {turn}");
                }
            }
        }
    }
}

#[test]
fn buffers_that_do_not_fit_together_are_refused_before_anything_is_sent() {
    for (name, results) in on_every_rank(BACKENDS, 2, PATIENT, |comm| {
        let shard = Buffer::from_f32(vec![0.0; 3]);
        let odd = || Buffer::zeros(DType::F32, 5).unwrap();
        let gather = comm.all_gather(&shard, odd()).unwrap_err().to_string();
        let scatter = comm.reduce_scatter(odd(), shard).unwrap_err().to_string();
        comm.barrier().unwrap();
        [gather, scatter]
    }) {
        for [gather, scatter] in results {
            assert_eq!(gather, "all_gather: found 5 elements, expected 6", "{name}");
            assert_eq!(scatter, "reduce_scatter: found 5 elements, expected 6", "{name}");
        }
    }
}
