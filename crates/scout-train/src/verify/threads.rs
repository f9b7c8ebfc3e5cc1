//! Ranks as threads of this process. What ends one of them ends all, and nobody waits for a rank that is gone.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::Duration;

use scout_comm::{Job, local_group};

use crate::error::{Result, TrainError};

/// Runs `body` on every rank and returns what the first one returned. Fails with the cause when any rank failed; ranks
/// that only report the loss of another are no cause.
pub fn on_threads<R: Send>(
    world_size: usize,
    deadline: Duration,
    body: impl Fn(&Job) -> Result<R> + Sync,
) -> Result<R> {
    let on_rank = |job: Job| {
        let rank = job.mesh().rank();
        // A panic is reported where it happens; the others must hear of it, or they would wait until the deadline.
        match catch_unwind(AssertUnwindSafe(|| body(&job))) {
            Ok(done) => done.inspect_err(|error| job.comm.abort(&format!("rank {rank}: {}", error.with_causes()))),
            Err(panic) => {
                job.comm.abort(&format!("rank {rank} panicked"));
                resume_unwind(panic)
            }
        }
    };
    let results: Vec<thread::Result<Result<R>>> = thread::scope(|scope| {
        let on_rank = &on_rank;
        let spawn = |comm| scope.spawn(move || on_rank(Job::over(comm)));
        let ranks: Vec<_> = local_group(world_size, deadline).into_iter().map(spawn).collect();
        ranks.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut of_first = None;
    let mut failures = Vec::new();
    for result in results {
        match result.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok(done) => of_first = of_first.or(Some(done)),
            Err(error) => failures.push(error),
        }
    }
    let is_cause = |error: &TrainError| !error.tells_of_another_rank();
    if let Some(cause) = failures.iter().position(is_cause).or((!failures.is_empty()).then_some(0)) {
        return Err(failures.swap_remove(cause));
    }
    Ok(of_first.expect("a group has a first rank, and no rank failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    #[test]
    fn the_first_rank_speaks_for_all() {
        let rank = on_threads(3, DEADLINE, |job| {
            job.comm.barrier()?;
            Ok(job.mesh().rank().0)
        });
        assert_eq!(rank.unwrap(), 0);
    }

    #[test]
    fn the_rank_that_failed_is_the_cause_and_those_that_waited_for_it_are_not() {
        let error = on_threads(3, DEADLINE, |job| match job.mesh().rank().0 {
            1 => Err(TrainError::NotANumber { what: "loss", step: 4 }),
            _ => Ok(job.comm.barrier()?),
        });
        assert!(matches!(error, Err(TrainError::NotANumber { step: 4, .. })), "{error:?}");
    }

    #[test]
    fn a_panic_of_one_rank_ends_the_others_at_once() {
        let begun = std::time::Instant::now();
        let panicked = catch_unwind(|| {
            on_threads(2, DEADLINE, |job| match job.mesh().rank().0 {
                1 => panic!("on purpose"),
                _ => Ok(job.comm.barrier()?),
            })
        });
        assert!(panicked.is_err() && begun.elapsed() < DEADLINE / 2);
    }
}
