//! `train`: the main job. One process is one rank; which one it is, its surroundings say.

use std::time::Instant;

use scout_comm::Job;
use scout_config::{FinetuningType, Loaded, RunConfig};
use scout_core::{ExitCode, Phase};
use scout_telemetry::{Progress, grouped};
use scout_train::identity;
use scout_train::plan::ModelSource;
use scout_train::prepare::plan_model;
use scout_train::recorder;
use scout_train::run;
use scout_train::session::Outcome;

use super::configuration::{ConfigArguments, load, placing};
use super::machine::Found;
use super::plan;
use crate::build_info;
use crate::joined::{Identity, Joined, Waits};
use crate::ranks::{Ranks, Seat};
use crate::surroundings;

pub fn run(arguments: &ConfigArguments) -> anyhow::Result<ExitCode> {
    let loaded = load(arguments)?;
    loaded.check_for_training()?;
    let begun = Instant::now();
    let ranks = surroundings::ranks()?;
    let mut progress = match ranks.mesh().is_first() {
        true => Progress::new(surroundings::terminal()),
        false => Progress::silent(),
    };
    progress.say(&format!("scout-dist {}, commit {}", env!("CARGO_PKG_VERSION"), build_info::COMMIT));
    for note in &loaded.notes {
        progress.say(&format!("note: {note}"));
    }
    surroundings::share_the_host(ranks.seat.local_size.unwrap_or(1))?;
    let source = ModelSource::find(&loaded.config, false)?;
    let joined = join(&ranks, &loaded.config, &source, &mut progress)?;
    joined.work(|job| {
        let outcome = placing(&loaded, || train(&loaded, source, (&ranks.seat, job), &mut progress))?;
        progress.say(&format!("done in {:.1} s", begun.elapsed().as_secs_f64()));
        for line in closing_lines(&loaded, &outcome) {
            progress.say(&line);
        }
        Ok(ExitCode::Success)
    })
}

fn join(ranks: &Ranks, config: &RunConfig, source: &ModelSource, progress: &mut Progress) -> anyhow::Result<Joined> {
    let waits = Waits { init_timeout: config.device.init_timeout, hang_limit: config.device.hang_limit };
    let model = identity::of_model(source, config.model.random_weights)?;
    Joined::with_others(ranks, Identity { config: identity::of_config(config), model }, waits, progress)
}

/// Trains and returns what the run can tell.
fn train(
    loaded: &Loaded,
    source: ModelSource,
    (seat, job): (&Seat, &Job),
    progress: &mut Progress,
) -> anyhow::Result<Outcome> {
    let config = &loaded.config;
    if job.mesh().is_first() {
        // Before GPUs are opened and have met, which takes longer than all that may be wrong with a file.
        recorder::must_be_free(config)?;
    }
    let mut found = Found::by(config, seat)?;
    if let Some(line) = found.describe() {
        progress.say(&line);
    }
    job.whereabouts.enter(Phase::Data);
    let planned = plan_model(config, source, found.hardware(&*job.comm)?)?;
    for note in &planned.notes {
        progress.say(&format!("note: {note}"));
    }
    for line in plan::summary(&planned.plan) {
        progress.say(&line);
    }
    identity::must_plan_alike(&planned, &*job.comm)?;
    let machine = found.machine(&planned.plan)?;
    Ok(run::run(config, planned.on(machine), job, progress)?)
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
    if loaded.config.lora.finetuning_type != FinetuningType::Lora {
        lines.push(format!("model: {folder}"));
        lines.push(format!("serve it: vllm serve {folder}"));
        return lines;
    }
    lines.push(format!("adapter: {folder}/adapter_model.safetensors"));
    if loaded.config.lora.lora_target.any_experts() {
        lines.push(
            "its adapters of routed experts are for PEFT; vLLM serves a model that they were merged into".to_string(),
        );
        return lines;
    }
    if let Some(model) = &loaded.config.model.model_name_or_path {
        lines.push(format!("serve it: vllm serve {} --enable-lora --lora-modules tuned={folder}", model.display()));
    }
    lines
}
