//! A training run from start to end: load, step, log, evaluate, save. Each rank runs this; the first one speaks and
//! writes files.

use scout_comm::Job;
use scout_config::RunConfig;
use scout_core::Phase;
use scout_telemetry::Progress;

use crate::assemble::{Parts, Weights};
use crate::attention_plans::{self, Sizes};
use crate::error::{Result, TrainError};
use crate::prepare::Prepared;
use crate::readers::{Progressed, Readers, with_signs_of_life};
use crate::recorder::Recorder;
use crate::seated::Seated;
use crate::session::{Outcome, Session};
use crate::{recorder, save};

/// Trains as `prepared` says and leaves the run folder behind. `progress` is silent on all ranks but the first. What
/// ends one rank ends all of them, with the same reason.
pub fn run(config: &RunConfig, prepared: Prepared, job: &Job, progress: &mut Progress) -> Result<Outcome> {
    let rank = job.mesh().rank();
    run_on_this_rank(config, &prepared, job, progress)
        .inspect(|_| prepared.machine.leave())
        .inspect_err(|error| job.comm.abort(&format!("rank {rank}: {}", error.with_causes())))
}

fn run_on_this_rank(config: &RunConfig, prepared: &Prepared, job: &Job, progress: &mut Progress) -> Result<Outcome> {
    let recorder = match job.mesh().is_first() {
        true => Some(Recorder::create(config, prepared.plan.least_result(), progress)?),
        false => None,
    };
    job.whereabouts.enter(Phase::Load);
    let parts = Parts::of(config, prepared);
    let weights = weights_and_plans(&parts, config, prepared, job, progress)?;
    let mut trainer = parts.assemble(job, weights)?;
    if let Some(recorder) = &recorder {
        recorder.begin(config)?;
    }
    let outcome = train(config, prepared, &mut trainer, (recorder, progress));
    if let Err(TrainError::NotANumber { .. }) = &outcome {
        // All ranks come to this at the same step: what they have begun to gather ends first, as after a good end.
        let _ = trainer.leave();
    }
    outcome
}

fn train(
    config: &RunConfig,
    prepared: &Prepared,
    trainer: &mut Seated,
    (mut recorder, progress): (Option<Recorder>, &mut Progress),
) -> Result<Outcome> {
    let steps = prepared.plan.steps.expect("a prepared run knows its steps");
    let mut session = Session::begin(config, prepared, steps, trainer)?;
    progress.begin(0, steps.total_steps as u64);
    for step in 0..steps.total_steps {
        session.step(trainer, step)?;
        if session.logs_after(step) {
            let record = session.take_record(step, trainer)?;
            if let Some(recorder) = &mut recorder {
                recorder.logged(&record, progress);
            }
        }
        if session.evaluates_after(step) {
            trainer.job.whereabouts.enter(Phase::Evaluate);
            let (record, results) = session.evaluate(step, trainer)?;
            if let Some(recorder) = &mut recorder {
                recorder.evaluated(&record, results, progress);
            }
        }
        progress.advance(step as u64 + 1);
    }
    progress.finish();
    let outcome = session.finish(recorder::folder_of(config)?.to_path_buf(), trainer);
    trainer.job.whereabouts.enter(Phase::Save);
    save::save(config, prepared, trainer, &outcome.output_dir)?;
    if let Some(recorder) = recorder {
        recorder.finish(config, &outcome.summary)?;
    }
    trainer.job.comm.barrier()?; // nobody leaves before the result is on disk
    trainer.leave()?;
    Ok(outcome)
}

/// Reads this rank's weights while attention's plans are made: one waits for the disk, the other for a compiler.
fn weights_and_plans(
    parts: &Parts,
    config: &RunConfig,
    Prepared { plan, data, machine, .. }: &Prepared,
    job: &Job,
    progress: &mut Progress,
) -> Result<Weights> {
    let (read, made) = std::thread::scope(|scope| {
        let sizes = || Sizes::of_run(config, plan, data, job.mesh().rank().0);
        let making = scope.spawn(move || attention_plans::prepare(machine, &plan.source.config, sizes));
        let tell = |progressed: Progressed| progress.reading(progressed.done, progressed.in_all);
        let tell = with_signs_of_life(&job.whereabouts, tell);
        let read = parts.weights(job, &mut Readers::default().telling(tell));
        (read, making.join().expect("a panic is on its way out already"))
    });
    progress.finish_reading();
    let weights = read?;
    if let Some(reading) = &weights.reading {
        progress.say(&reading.on_all_ranks(&*job.comm)?);
    }
    for line in weights.said.iter().chain(&made?) {
        progress.say(line);
    }
    Ok(weights)
}
