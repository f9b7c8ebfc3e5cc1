//! Whether all ranks can go on, and how far, before anything moves between their GPUs.

use std::fmt::Display;

use crate::communicator::Communicator;
use crate::error::{CommError, Result};
use crate::words;

/// The largest number of any rank.
pub(super) fn largest(comm: &dyn Communicator, own: f64) -> Result<f64> {
    let all = words::of_all_ranks(comm, own.to_le_bytes())?;
    Ok(all.into_iter().map(f64::from_le_bytes).fold(f64::NEG_INFINITY, f64::max))
}

/// Whether something succeeded on all ranks; where it did not, the first reason, on all of them.
pub(super) fn agree(comm: &dyn Communicator, own: std::result::Result<(), String>) -> Result<Option<String>> {
    let reason = match own {
        Ok(()) => String::new(),
        Err(reason) if reason.is_empty() => "no reason is known".to_string(),
        Err(reason) => reason,
    };
    let reasons = words::of_any_length(comm, reason.into_bytes())?;
    let first = reasons.iter().enumerate().find(|(_, reason)| !reason.is_empty());
    Ok(first.map(|(rank, reason)| format!("rank {rank}: {}", String::from_utf8_lossy(reason))))
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
    use super::*;
    use crate::words::tests::on_ranks;

    #[test]
    fn the_largest_number_of_any_rank_is_found_by_all() {
        let largest = on_ranks(|comm| largest(comm, -(comm.mesh().rank().0 as f64) - 1.0).unwrap());
        assert_eq!(largest, [-1.0; 3]);
    }

    #[test]
    fn one_rank_that_cannot_stops_all_with_its_reason() {
        let all_can = on_ranks(|comm| agree(comm, Ok(())).unwrap());
        assert_eq!(all_can, [None, None, None]);
        let long = "ä".repeat(300);
        for (reason, expected) in [("no way", "no way"), ("", "no reason is known"), (&long, &long)] {
            let one_cannot = on_ranks(|comm| {
                let own = if comm.mesh().rank().0 == 1 { Err(reason.to_string()) } else { Ok(()) };
                agree(comm, own).unwrap()
            });
            assert!(one_cannot.iter().all(|told| *told == Some(format!("rank 1: {expected}"))), "{one_cannot:?}");
        }
    }
}
