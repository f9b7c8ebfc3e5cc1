//! `train`: the main job. One process is one rank.

use std::time::{Duration, Instant};

use scout_comm::Job;
use scout_config::{DeviceKind, Loaded};
use scout_core::ExitCode;
use scout_device::device::DeviceWish;
use scout_telemetry::{Progress, grouped};
use scout_train::plan::RunPlan;
use scout_train::prepare::prepare;
use scout_train::run::{self, Outcome};

use super::{compute_on_host, load, plan};
use crate::{ConfigArguments, surroundings};

/// A rank alone waits for nobody; a deadline is set all the same, because every wait has one.
pub const ALONE_DEADLINE: Duration = Duration::from_secs(120);

pub fn run(arguments: &ConfigArguments) -> anyhow::Result<ExitCode> {
    let loaded = load(arguments)?;
    loaded.check_for_training()?;
    let mut progress = Progress::new(surroundings::terminal());
    let outcome = train(&loaded, &mut progress)?;
    for line in closing_lines(&loaded, &outcome) {
        progress.say(&line)?;
    }
    Ok(ExitCode::Success)
}

/// Trains and returns what the run can tell.
pub fn train(loaded: &Loaded, progress: &mut Progress) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let config = &loaded.config;
    compute_on_host(wish(config.device.device))?;
    let job = Job::alone(config.device.hang_limit.unwrap_or(ALONE_DEADLINE));
    for note in &loaded.notes {
        progress.say(&format!("note: {note}"))?;
    }
    let prepared = prepare(config, job.mesh().size()).map_err(anyhow::Error::from)?;
    for note in &prepared.notes {
        progress.say(&format!("note: {note}"))?;
    }
    for line in opening_lines(&prepared.plan) {
        progress.say(&line)?;
    }
    let outcome = run::run(config, prepared, &job, progress)?;
    progress.say(&format!("done in {:.1} s", begun.elapsed().as_secs_f64()))?;
    Ok(outcome)
}

fn wish(kind: DeviceKind) -> DeviceWish {
    match kind {
        DeviceKind::Auto => DeviceWish::Auto,
        DeviceKind::Cpu => DeviceWish::Cpu,
        DeviceKind::Cuda => DeviceWish::Cuda,
    }
}

/// The plan in a few lines, before training.
fn opening_lines(plan: &RunPlan) -> Vec<String> {
    let mut lines = plan::summary(plan);
    lines.truncate(20);
    lines
}

fn closing_lines(loaded: &Loaded, outcome: &Outcome) -> Vec<String> {
    let train = &outcome.summary.train;
    let last = outcome.losses.last().copied().unwrap_or(f32::NAN);
    let mut lines = vec![format!(
        "{} steps in {:.1} s, {} tokens/s, final loss {last:.4}{}",
        outcome.losses.len(),
        train.train_runtime,
        grouped((train.num_input_tokens_seen as f64 / train.train_runtime) as u64),
        outcome.memory_peak.map(|peak| format!(", {peak} at most")).unwrap_or_default(),
    )];
    if let Some(eval) = &outcome.summary.eval {
        lines.push(format!("loss on held-out rows {:.4}", eval.eval_loss));
    }
    let folder = outcome.output_dir.display();
    lines.push(format!("adapter: {folder}/adapter_model.safetensors"));
    if let Some(model) = &loaded.config.model.model_name_or_path {
        lines.push(format!("serve it: vllm serve {} --enable-lora --lora-modules tuned={folder}", model.display()));
    }
    lines
}
