//! Small runs of bytes that all ranks tell each other before anything moves between GPUs.

use std::fmt::Display;

use scout_core::{DType, Rank};
use scout_device::Buffer;

use crate::communicator::Communicator;
use crate::error::{CommError, Result};

/// What every rank gave, by rank. All give equally much.
pub(super) fn of_all_ranks<const N: usize>(comm: &dyn Communicator, own: [u8; N]) -> Result<Vec<[u8; N]>> {
    let all = Buffer::zeros(DType::U8, N * comm.mesh().size())?;
    let all = comm.all_gather(&Buffer::from_u8(own.to_vec()), all)?.wait()?;
    Ok(all.u8s()?.chunks_exact(N).map(|of_rank| of_rank.try_into().expect("chunks of that many")).collect())
}

/// What the first rank gave.
pub(super) fn of_first_rank<const N: usize>(comm: &dyn Communicator, own: [u8; N]) -> Result<[u8; N]> {
    let first = comm.broadcast(Rank(0), Buffer::from_u8(own.to_vec()))?.wait()?;
    Ok(first.u8s()?.try_into().expect("as many as were given"))
}

/// The largest number of any rank.
pub(super) fn largest(comm: &dyn Communicator, own: f64) -> Result<f64> {
    let all = of_all_ranks(comm, own.to_le_bytes())?;
    Ok(all.into_iter().map(f64::from_le_bytes).fold(f64::NEG_INFINITY, f64::max))
}

/// Whether something succeeded on all ranks; where it did not, the first reason, on all of them.
pub(super) fn agree(comm: &dyn Communicator, own: std::result::Result<(), String>) -> Result<Option<String>> {
    const ROOM: usize = 256;
    let mut told = [0; ROOM];
    if let Err(reason) = own {
        let reason = if reason.is_empty() { "no reason is known" } else { &reason };
        let mut end = reason.len().min(ROOM);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        told[..end].copy_from_slice(&reason.as_bytes()[..end]);
    }
    let all = of_all_ranks(comm, told)?;
    let reasons = all.iter().enumerate().map(|(rank, told)| {
        let text = String::from_utf8_lossy(told);
        (rank, text.trim_end_matches('\0').to_string())
    });
    Ok(reasons
        .into_iter()
        .find(|(_, reason)| !reason.is_empty())
        .map(|(rank, reason)| format!("rank {rank}: {reason}")))
}

/// Fails on all ranks where `own` failed on one: a rank that went on would wait for it.
pub(super) fn must_agree<T>(comm: &dyn Communicator, own: scout_device::Result<T>) -> Result<T> {
    match agree(comm, own.as_ref().map(|_| ()).map_err(|error| error.to_string()))? {
        Some(reason) if own.is_ok() => Err(CommError::Aborted { reason }),
        // This rank's own error says more; another rank's reason is only an echo here.
        _ => Ok(own?),
    }
}

/// Where `own` failed on one rank, `way` works on none of them, and all of them say so alike.
pub(super) fn all_can<T, E: Display + Into<CommError>>(
    comm: &dyn Communicator,
    way: &'static str,
    own: std::result::Result<T, E>,
) -> Result<T> {
    match agree(comm, own.as_ref().map(|_| ()).map_err(|error| error.to_string()))? {
        Some(reason) => Err(CommError::NoWay { way, reason }),
        None => own.map_err(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::local::{LocalCommunicator, local_group};

    fn on_ranks<T: Send>(of_rank: impl Fn(&LocalCommunicator) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let group = local_group(3, Duration::from_secs(20));
            let ranks: Vec<_> = group.into_iter().map(|comm| scope.spawn(|| of_rank(&{ comm }))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_hears_what_all_ranks_told() {
        let told = on_ranks(|comm| {
            let rank = comm.mesh().rank().0;
            let all = of_all_ranks(comm, [rank as u8, 7]).unwrap();
            (all, of_first_rank(comm, [rank as u8 + 40]).unwrap(), largest(comm, -(rank as f64) - 1.0).unwrap())
        });
        assert!(told.iter().all(|told| *told == (vec![[0, 7], [1, 7], [2, 7]], [40], -1.0)), "{told:?}");
    }

    #[test]
    fn one_rank_that_cannot_stops_all_with_its_reason() {
        let all_can = on_ranks(|comm| agree(comm, Ok(())).unwrap());
        assert_eq!(all_can, [None, None, None]);
        let long = "ä".repeat(300);
        for (reason, expected) in
            [("no way", "no way".to_string()), ("", "no reason is known".to_string()), (&long, "ä".repeat(128))]
        {
            let one_cannot = on_ranks(|comm| {
                let own = if comm.mesh().rank().0 == 1 { Err(reason.to_string()) } else { Ok(()) };
                agree(comm, own).unwrap()
            });
            assert!(one_cannot.iter().all(|told| *told == Some(format!("rank 1: {expected}"))), "{one_cannot:?}");
        }
    }
}
