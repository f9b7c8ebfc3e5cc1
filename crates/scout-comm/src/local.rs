//! Ranks as threads of one process. A rank lays down what it gives and goes on; whoever waits takes what all have laid
//! down. Nothing is copied before somebody waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use scout_core::{DType, Mesh, Rank};
use scout_device::Buffer;

use crate::error::{Called, Op};
use crate::{CommError, Communicator, Pending, Result};

/// One communicator for each of `size` ranks that live in this process.
pub fn local_group(size: usize, deadline: Duration) -> Vec<LocalCommunicator> {
    let meeting = Arc::new(Meeting::default());
    (0..size)
        .filter_map(|rank| Mesh::new(Rank(rank), size))
        .map(|mesh| LocalCommunicator { mesh, meeting: meeting.clone(), sequence: AtomicU64::new(0), deadline })
        .collect()
}

#[derive(Debug)]
pub struct LocalCommunicator {
    mesh: Mesh,
    meeting: Arc<Meeting>,
    /// Number of operations this rank has begun; equal operations carry equal numbers on all ranks.
    sequence: AtomicU64,
    deadline: Duration,
}

#[derive(Debug, Default)]
struct Meeting {
    board: Mutex<Board>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Board {
    rounds: HashMap<u64, Round>,
    aborted: Option<String>,
}

/// One operation: what each rank has laid down. It leaves the board when every rank has taken the result.
#[derive(Debug)]
struct Round {
    given: Vec<Option<Given>>,
    num_taken: usize,
}

#[derive(Debug, Clone)]
struct Given {
    op: Op,
    buffer: Arc<Buffer>,
}

impl LocalCommunicator {
    /// Lays down `buffer` for the next operation and returns its number.
    fn give(&self, op: Op, buffer: Buffer) -> Result<u64> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut board = self.meeting.lock();
        if let Some(reason) = &board.aborted {
            return Err(CommError::Aborted { reason: reason.clone() });
        }
        let size = self.mesh.size();
        let round = board.rounds.entry(sequence).or_insert_with(|| Round { given: vec![None; size], num_taken: 0 });
        round.given[self.mesh.rank().0] = Some(Given { op, buffer: Arc::new(buffer) });
        self.meeting.changed.notify_all();
        Ok(sequence)
    }

    /// A promise to take operation `sequence` and to finish it with what all ranks gave.
    fn pending(
        &self,
        sequence: u64,
        finish: impl FnOnce(Vec<Arc<Buffer>>) -> Result<Buffer> + Send + 'static,
    ) -> Pending {
        let (meeting, mesh) = (self.meeting.clone(), self.mesh);
        Pending::new(self.deadline, move |deadline| finish(meeting.take(sequence, mesh, deadline)?))
    }
}

impl Communicator for LocalCommunicator {
    fn mesh(&self) -> Mesh {
        self.mesh
    }

    fn all_gather(&self, shard: &Buffer, mut full: Buffer) -> Result<Pending> {
        expect_len(Op::AllGather, full.len(), shard.len() * self.mesh.size())?;
        let sequence = self.give(Op::AllGather, shard.clone())?;
        Ok(self.pending(sequence, move |given| {
            let mut start = 0;
            for part in given {
                full.copy_from(start, &part)?;
                start += part.len();
            }
            Ok(full)
        }))
    }

    fn reduce_scatter(&self, full: Buffer, mut shard: Buffer) -> Result<Pending> {
        expect_len(Op::ReduceScatter, full.len(), shard.len() * self.mesh.size())?;
        let start = shard.len() * self.mesh.rank().0;
        let sequence = self.give(Op::ReduceScatter, full)?;
        Ok(self.pending(sequence, move |given| {
            sum_in_rank_order(shard.f32s_mut()?, &given, start)?;
            Ok(shard)
        }))
    }

    fn all_reduce(&self, buffer: Buffer) -> Result<Pending> {
        let mut sum = Buffer::zeros(buffer.dtype(), buffer.len())?;
        let sequence = self.give(Op::AllReduce, buffer)?;
        Ok(self.pending(sequence, move |given| {
            sum_in_rank_order(sum.f32s_mut()?, &given, 0)?;
            Ok(sum)
        }))
    }

    fn broadcast(&self, root: Rank, buffer: Buffer) -> Result<Pending> {
        let sequence = self.give(Op::Broadcast { root }, buffer)?;
        Ok(self.pending(sequence, move |given| Ok((*given[root.0]).clone())))
    }

    fn barrier(&self) -> Result<()> {
        let sequence = self.give(Op::Barrier, Buffer::zeros(DType::U8, 0)?)?;
        self.pending(sequence, |_| Ok(Buffer::zeros(DType::U8, 0)?)).wait()?;
        Ok(())
    }

    fn abort(&self, reason: &str) {
        let mut board = self.meeting.lock();
        // The first reason is the cause; later ones are its echo.
        board.aborted.get_or_insert_with(|| reason.to_string());
        self.meeting.changed.notify_all();
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, Board> {
        // A rank that panics while it holds the board leaves it as consistent as one that does not: entries are whole.
        self.board.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until every rank has given its part of operation `sequence`, checks that all mean the same, and takes it.
    fn take(&self, sequence: u64, mesh: Mesh, deadline: Duration) -> Result<Vec<Arc<Buffer>>> {
        let begun = Instant::now();
        let mut board = self.lock();
        loop {
            if let Some(reason) = &board.aborted {
                return Err(CommError::Aborted { reason: reason.clone() });
            }
            let round = board.rounds.get_mut(&sequence).expect("a rank takes only what it has given to");
            let ours = round.given[mesh.rank().0].clone().expect("a rank takes only what it has given to");
            for (rank, theirs) in round.given.iter().enumerate() {
                if let Some(theirs) = theirs {
                    expect_same(sequence, &ours, theirs, Rank(rank))?;
                }
            }
            let Some(missing) = round.given.iter().position(Option::is_none) else {
                let given = round.given.iter().flatten().map(|given| given.buffer.clone()).collect();
                round.num_taken += 1;
                if round.num_taken == mesh.size() {
                    board.rounds.remove(&sequence);
                }
                return Ok(given);
            };
            let Some(left) = deadline.checked_sub(begun.elapsed()) else {
                return Err(CommError::Timeout {
                    op: ours.op,
                    sequence,
                    waited: begun.elapsed(),
                    missing: Rank(missing),
                });
            };
            let (next, _) = self.changed.wait_timeout(board, left).unwrap_or_else(|poisoned| poisoned.into_inner());
            board = next;
        }
    }
}

fn expect_len(op: Op, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(CommError::Length { op, found, expected }) }
}

fn expect_same(sequence: u64, ours: &Given, theirs: &Given, theirs_rank: Rank) -> Result<()> {
    let called = |given: &Given| Called { op: given.op, count: given.buffer.len(), dtype: given.buffer.dtype() };
    let (ours, theirs) = (called(ours), called(theirs));
    if ours == theirs { Ok(()) } else { Err(CommError::OutOfStep { sequence, ours, theirs, theirs_rank }) }
}

fn sum_in_rank_order(sum: &mut [f32], given: &[Arc<Buffer>], start: usize) -> Result<()> {
    let len = sum.len();
    for (rank, buffer) in given.iter().enumerate() {
        let part = &buffer.f32s()?[start..start + len];
        if rank == 0 {
            sum.copy_from_slice(part);
        } else {
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_every_rank<R: Send>(size: usize, body: impl Fn(&LocalCommunicator) -> R + Sync) -> Vec<R> {
        let group = local_group(size, Duration::from_millis(300));
        std::thread::scope(|scope| {
            let ranks: Vec<_> = group.iter().map(|comm| scope.spawn(|| body(comm))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn gathers_scatters_reduces_and_broadcasts_for_every_world_size() {
        for size in [1, 2, 3, 4, 8] {
            for len in [0, 1, 7, 1000] {
                let results = on_every_rank(size, |comm| {
                    let rank = comm.mesh().rank().0 as f32;
                    let shard = Buffer::from_f32(vec![rank; len]);
                    let full = comm.all_gather(&shard, Buffer::zeros(DType::F32, len * size).unwrap()).unwrap();
                    let reduced = comm
                        .reduce_scatter(
                            Buffer::from_f32(vec![rank + 1.0; len * size]),
                            Buffer::zeros(DType::F32, len).unwrap(),
                        )
                        .unwrap();
                    comm.barrier().unwrap();
                    let last = Rank(size - 1);
                    let told = comm.broadcast(last, shard.clone()).unwrap();
                    let summed = comm.all_reduce(shard).unwrap();
                    [summed, told, reduced, full].map(|pending| pending.wait().unwrap())
                });
                let ranks: Vec<f32> = (0..size).map(|rank| rank as f32).collect();
                let sum: f32 = ranks.iter().sum();
                for [summed, told, reduced, full] in results {
                    assert_eq!(summed, Buffer::from_f32(vec![sum; len]));
                    assert_eq!(told, Buffer::from_f32(vec![(size - 1) as f32; len]));
                    assert_eq!(reduced, Buffer::from_f32(vec![sum + size as f32; len]));
                    let expected: Vec<f32> = ranks.iter().flat_map(|&rank| vec![rank; len]).collect();
                    assert_eq!(full, Buffer::from_f32(expected));
                }
            }
        }
    }

    #[test]
    fn a_rank_that_does_something_else_is_an_error_on_every_rank() {
        let errors = on_every_rank(3, |comm| {
            if comm.mesh().rank() == Rank(1) {
                comm.broadcast(Rank(0), Buffer::from_f32(vec![1.0])).unwrap().wait().unwrap_err().to_string()
            } else {
                comm.all_reduce(Buffer::from_f32(vec![1.0])).unwrap().wait().unwrap_err().to_string()
            }
        });
        assert!(errors[0].contains("rank 1 called broadcast from rank 0 of 1 f32"), "{}", errors[0]);
        assert!(errors[2].contains("where this rank called all_reduce of 1 f32 (#0)"), "{}", errors[2]);
        assert!(errors[1].contains("called all_reduce"), "{}", errors[1]);
    }

    #[test]
    fn a_missing_rank_is_named_at_the_deadline_and_an_abort_ends_every_wait_at_once() {
        let errors = on_every_rank(3, |comm| match comm.mesh().rank().0 {
            2 => String::new(),
            _ => comm.barrier().unwrap_err().to_string(),
        });
        assert!(errors[0].contains("barrier #0 waited") && errors[0].ends_with("for rank 2"), "{}", errors[0]);

        let begun = Instant::now();
        let errors = on_every_rank(2, |comm| match comm.mesh().rank().0 {
            1 => {
                comm.abort("the disk is full");
                comm.abort("an echo");
                String::new()
            }
            _ => comm.barrier().unwrap_err().to_string(),
        });
        assert_eq!(errors[0], "the ranks were ended: the disk is full");
        assert!(begun.elapsed() < Duration::from_millis(250));
    }
}
