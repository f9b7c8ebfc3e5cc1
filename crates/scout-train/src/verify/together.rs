//! What the ranks of a comparison say to each other beside what training says: whether all of them can go on, and the
//! rows that each has computed. Nothing is computed here.

use scout_comm::{CommError, Communicator, Op, words};

use super::compare::{Numbered, Numbers, Values};
use crate::error::{Result, TrainError};

/// `own` where every rank succeeded; otherwise, on all ranks, the reason of the first that did not. A rank that went on
/// while another cannot would wait for it.
pub fn agree<T>(comm: &dyn Communicator, own: Result<T>) -> Result<std::result::Result<T, String>> {
    let reason = own.as_ref().err().map(TrainError::with_causes).unwrap_or_default();
    let reasons = words::of_any_length(comm, reason.into_bytes())?;
    let first = reasons.into_iter().find(|reason| !reason.is_empty());
    Ok(match (own, first) {
        (Ok(value), None) => Ok(value),
        (_, reason) => Err(String::from_utf8_lossy(&reason.unwrap_or_default()).into_owned()),
    })
}

/// Tensors of which each rank filled its own rows, whole on every rank. All of them have `num_rows` rows, and row i is
/// that of rank i modulo their number.
pub fn merge_rows(comm: &dyn Communicator, num_rows: usize, mut tensors: Numbered) -> Result<Numbered> {
    let own: Vec<u8> = tensors.values().flat_map(to_bytes).collect();
    let expected = own.len();
    let all = words::of_any_length(comm, own)?;
    if let Some(other) = all.iter().find(|other| other.len() != expected) {
        return Err(CommError::Length { op: Op::AllGather, found: other.len(), expected }.into());
    }
    let mut start = 0;
    for numbers in tensors.values_mut() {
        let num_bytes = to_bytes(numbers).len();
        let row_bytes = num_bytes / num_rows.max(1);
        let rows = (0..num_rows).flat_map(|row| &all[row % all.len()][start + row * row_bytes..][..row_bytes]);
        replace(numbers, &rows.copied().collect::<Vec<u8>>());
        start += num_bytes;
    }
    Ok(tensors)
}

fn to_bytes(numbers: &Numbers) -> Vec<u8> {
    match &numbers.values {
        Values::Floats(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Integers(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

fn replace(numbers: &mut Numbers, bytes: &[u8]) {
    match &mut numbers.values {
        Values::Floats(values) => {
            values
                .iter_mut()
                .zip(bytes.as_chunks::<4>().0)
                .for_each(|(value, word)| *value = f32::from_le_bytes(*word));
        }
        Values::Integers(values) => {
            values
                .iter_mut()
                .zip(bytes.as_chunks::<8>().0)
                .for_each(|(value, word)| *value = i64::from_le_bytes(*word));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scout_comm::local_group;
    use scout_core::ExitCode;

    use super::*;

    fn on_ranks<R: Send>(size: usize, body: impl Fn(&dyn Communicator) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let body = &body;
            let group = local_group(size, Duration::from_secs(20));
            let ranks: Vec<_> = group.into_iter().map(|comm| scope.spawn(move || body(&comm))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_row_comes_from_the_rank_it_was_dealt_to() {
        for size in [1, 2, 3, 5] {
            let merged = on_ranks(size, |comm| {
                // Whatever is not this rank's own is a number of its own that must not survive.
                let own = |row: usize| row % size == comm.mesh().rank().0;
                let floats = (0..6).map(|i| if own(i / 2) { i as f32 } else { f32::NAN }).collect();
                let integers = (0..3).map(|row| if own(row) { row as i64 - 1 } else { 77 }).collect();
                let tensors = [
                    ("floats".to_string(), Numbers::floats(&[3, 2], floats)),
                    ("integers".to_string(), Numbers::integers(&[3], integers)),
                ];
                merge_rows(comm, 3, tensors.into()).unwrap()
            });
            for merged in merged {
                assert_eq!(merged["floats"], Numbers::floats(&[3, 2], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), "{size}");
                assert_eq!(merged["integers"], Numbers::integers(&[3], vec![-1, 0, 1]), "{size}");
            }
        }
    }

    #[test]
    fn one_rank_that_cannot_go_on_stops_all_with_its_reason() {
        let agreed = on_ranks(3, |comm| {
            let rank = comm.mesh().rank().0;
            let problem = format!("is bad on rank {rank}");
            let failed = TrainError::Input { path: "x".to_string(), problem, code: ExitCode::BadData };
            let before = agree(comm, Ok(rank)).unwrap().unwrap();
            (before, agree(comm, if rank == 0 { Ok(()) } else { Err(failed) }).unwrap())
        });
        for (rank, (before, agreed)) in agreed.into_iter().enumerate() {
            assert_eq!(before, rank);
            assert_eq!(agreed, Err("`x` is bad on rank 1".to_string()));
        }
    }
}
