//! This process among the ranks of its job: joined before the work that others would wait for, and left in order, so that
//! whatever ends one rank ends all of them, with one sentence and one exit code.

use std::fs::File;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use scout_comm::{
    Approach, CommError, Control, Ending, Introduction, Job, Limits, PeerName, Through, Verdict, Verdicts,
};
use scout_core::causes::with_causes;
use scout_core::{ExitCode, Mesh, Rank, Whereabouts};
use scout_telemetry::Progress;
use scout_train::TrainError;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::failure::{self, JobEnded, leave_at_once};
use crate::ranks::{Launcher, Ranks};

/// A rank alone waits for nobody; a deadline is set all the same, because every wait has one.
pub const ALONE_DEADLINE: Duration = Duration::from_secs(120);
/// How long ranks wait for each other at the start, where no configuration says so.
pub const INIT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a rank whose collective failed waits to be told why.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a rank that is asked to end waits to be told why, and for a thread that is about to say it: longer than either
/// takes, shorter than most patience.
const LAST_WORD: Duration = Duration::from_millis(300);
/// How long a rank that has said the last word stays, so that whoever started it takes its lines for those of a living rank.
const UNTIL_READ: Duration = Duration::from_millis(100);

/// What all ranks of a job must have in common.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub config: [u8; 32],
    pub model: [u8; 32],
}

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    pub init_timeout: Duration,
    pub hang_limit: Option<Duration>,
}

/// This process as one rank of a job, of one rank or many.
pub struct Joined {
    pub job: Job,
    others: Option<Others>,
}

struct Others {
    control: Control,
    peers: Vec<PeerName>,
    mesh: Mesh,
}

impl Joined {
    /// Meets the other ranks and returns when all have come and mean the same job. The first rank says that they met.
    pub fn with_others(
        ranks: &Ranks,
        identity: Identity,
        waits: Waits,
        progress: &mut Progress,
    ) -> anyhow::Result<Joined> {
        // A launcher that cannot tell where a dead rank was tells the rest all the same.
        let place_file = ranks.place_file.as_ref().and_then(|path| File::create(path).ok());
        let whereabouts = Arc::new(Whereabouts::new(place_file));
        let Some(place) = ranks.meeting_place()? else {
            let alone = Job::alone(waits.hang_limit.unwrap_or(ALONE_DEADLINE));
            return Ok(Joined { job: Job { whereabouts, ..alone }, others: None });
        };
        let mesh = ranks.mesh();
        let introduction = Introduction {
            version: env!("CARGO_PKG_VERSION").to_string(),
            config_digest: identity.config,
            model_digest: identity.model,
            host: scout_device::host::name(),
            pid: std::process::id(),
        };
        let limits = Limits {
            init_timeout: waits.init_timeout,
            hang_limit: waits.hang_limit,
            ending: Ending::calling(say, end),
        };
        let through = way_of_collectives(ranks.seat.launcher, progress)?;
        let approach = Approach { place, mesh, introduction, limits, through };
        let seat = scout_comm::meet(&approach, whereabouts).map_err(|error| during_the_meeting(error, mesh))?;
        speak_before_the_end(mesh.rank(), seat.control.verdicts())?;
        if let Some(address) = &seat.listening_at {
            progress.say(&format!("meeting at {address}"));
        }
        let limit = seat.control.hang_limit().as_secs_f64();
        progress.say(&format!("{} ranks met; one without progress for {limit} s ends the job", mesh.size()));
        Ok(Joined { job: seat.job, others: Some(Others { control: seat.control, peers: seat.peers, mesh }) })
    }

    /// Does the work of this rank, and leaves: with a goodbye after success, and otherwise with the verdict that ends all
    /// ranks. An error of this rank comes back as it is where this rank is the one to tell it.
    pub fn work<T>(self, work: impl FnOnce(&Job) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let Joined { job, others } = self;
        let Some(others) = others else { return work(&job) };
        // The message of a panic was printed where it happened; the other ranks must hear of it all the same.
        let done = catch_unwind(AssertUnwindSafe(|| work(&job)));
        let error = match done {
            Ok(Ok(value)) => {
                // Collectives say their own goodbyes first: an end of a stream before ours would be a death.
                drop(job);
                others.control.leave();
                return Ok(value);
            }
            Ok(Err(error)) => error,
            Err(panic) => {
                others.control.fail(ExitCode::Internal, &others.sentence(&job, "a bug in scout-dist"));
                std::panic::resume_unwind(panic);
            }
        };
        Err(others.settle(&job, error))
    }
}

fn say(verdict: &Verdict) {
    // Where stderr is gone, the exit code still tells.
    let _ = writeln!(io::stderr(), "error: {}", verdict.sentence);
}

/// Ends the process with the verdict's code.
fn end(verdict: &Verdict) {
    leave_at_once(verdict.code.code().into())
}

/// Whoever asks this rank to end may do so because another rank died, as `mpirun` does at once: then this is the last
/// chance to say which, where and when.
fn speak_before_the_end(own: Rank, verdicts: Verdicts) -> io::Result<()> {
    let mut asked = Signals::new([SIGTERM])?;
    let wait = move || {
        asked.forever().next();
        let code = match verdicts.wait_for_verdict(LAST_WORD) {
            Some(verdict) => {
                verdicts.tell(say, LAST_WORD);
                if verdict.speaker == own {
                    // A launcher must still read it.
                    thread::sleep(UNTIL_READ);
                }
                verdict.code.code().into()
            }
            None => 128 + SIGTERM,
        };
        // Without the last acts of libraries, which other threads are still calling: CUDA's would end in a SIGSEGV.
        leave_at_once(code);
    };
    thread::Builder::new().name("last-word".to_string()).spawn(wait)?;
    Ok(())
}

/// With MPI in this program and MPI around it, collectives go through MPI.
#[cfg(feature = "mpi")]
fn way_of_collectives(launcher: Launcher, progress: &mut Progress) -> anyhow::Result<Through> {
    if !matches!(launcher, Launcher::OpenMpi | Launcher::Pmi) {
        return Ok(Through::Streams);
    }
    progress.say(&format!("collectives through {}", scout_comm::mpi::library()));
    Ok(Through::Mpi)
}

#[cfg(not(feature = "mpi"))]
fn way_of_collectives(_: Launcher, _: &mut Progress) -> anyhow::Result<Through> {
    Ok(Through::Streams)
}

impl Others {
    /// Finds out whose failure counts: this rank's own, or that of another of which `error` is only the echo.
    fn settle(&self, job: &Job, error: anyhow::Error) -> anyhow::Error {
        let verdict = match error.downcast_ref().is_some_and(TrainError::tells_of_another_rank) {
            true => self.control.wait_for_verdict(PATIENCE),
            false => None,
        };
        let sentence = self.sentence(job, &with_causes(error.as_ref()));
        let verdict = verdict.unwrap_or_else(|| self.control.fail(failure::exit_code(&error), &sentence));
        let is_own = verdict.rank == self.mesh.rank() && verdict.sentence == sentence;
        let hint = if is_own { failure::hint(&error) } else { None };
        let ended = JobEnded { verdict, hint }.into();
        self.control.tell(|_| failure::say(&ended), LAST_WORD);
        ended
    }

    fn sentence(&self, job: &Job, what: &str) -> String {
        let rank = self.mesh.rank();
        format!("rank {rank} of {} ({}), {}: {what}", self.mesh.size(), self.peers[rank.0], job.whereabouts.place())
    }
}

/// A rank that ended while the ranks met ends them all, and one of them tells.
fn during_the_meeting(error: CommError, mesh: Mesh) -> anyhow::Error {
    match error {
        CommError::Ended { verdict } => {
            let speaks = verdict.speaker == mesh.rank();
            let ended = JobEnded { verdict, hint: None }.into();
            if speaks {
                failure::say(&ended);
            }
            ended
        }
        error => error.into(),
    }
}
