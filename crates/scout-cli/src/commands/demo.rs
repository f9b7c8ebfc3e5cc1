//! `demo`: the main job on an embedded default, from nothing to a proven adapter. Everything it does, `synth`, `launch`
//! of `train`, and `train` with `adapter_name_or_path` do for users.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExitCode;
use std::time::Instant;

use scout_comm::Job;
use scout_config::RunConfig;
use scout_core::{DType, ExitCode, Mesh};
use scout_device::Account;
use scout_telemetry::{Progress, terminal_plot};
use scout_train::assemble::build;
use scout_train::prepare::prepare;
use scout_train::synth::{SynthRequest, SynthShape, write_folder};
use scout_train::{TrainError, load};

use super::launch;
use crate::failure::Mistake;
use crate::joined::ALONE_DEADLINE;
use crate::surroundings::{self, print};

/// Ranks of the demo, all on this host.
const NUM_RANKS: usize = 4;
/// The demo's configuration; `{folder}` is where it works.
const CONFIG: &str = include_str!("demo.yaml");

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder to work in; a demo that it holds is made anew
    #[arg(long, default_value = "scout-demo")]
    out: PathBuf,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ProcessExitCode> {
    let terminal = surroundings::terminal();
    let mut progress = Progress::new(terminal);
    let folder = fresh_folder(&arguments.out)?;
    progress.say(&format!("making a tiny Scout and toy conversations in {}", folder.display()));
    let request = SynthRequest { shape: SynthShape::Tiny, num_layers: None, dtype: DType::F32, seed: 42 };
    write_folder(&folder, &request)?;
    let text = CONFIG.replace("{folder}", &folder.display().to_string());
    let config_path = folder.join("demo.yaml");
    std::fs::write(&config_path, &text).map_err(|cause| TrainError::Io {
        act: "write",
        path: config_path.display().to_string(),
        cause,
    })?;
    let begun = Instant::now();
    let code = launch::start(NUM_RANKS, vec![OsString::from("train"), config_path.clone().into()], Vec::new())?;
    if code != 0 {
        return Ok(launch::exit_code(code)); // the rank that failed has said why
    }
    let seconds = begun.elapsed().as_secs_f64();

    let config = RunConfig::load(&config_path, &[], &[])?.config;
    let output_dir = folder.join("run");
    let losses = logged_losses(&output_dir)?;
    print(&terminal_plot(&losses, 72, 12, terminal.utf8))?;
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    print(&format!(
        "loss {first:.3} -> {last:.3} in {} steps on {NUM_RANKS} ranks, {seconds:.1} s",
        config.train.max_steps.unwrap_or_default()
    ))?;
    let proof = prove(&config, &output_dir)?;
    print(&format!(
        "adapter read back from {}: loss {:.4} with it, {:.4} without",
        output_dir.display(),
        proof.with,
        proof.without
    ))?;
    if !(last < first / 2.0 && proof.with < proof.without / 2.0) {
        print("the loss did not fall by half: something is wrong on this machine")?;
        return Ok(ProcessExitCode::from(ExitCode::CheckFailed.code()));
    }
    print("\nnext:")?;
    print(&format!("  look at {}", output_dir.join("training_loss.png").display()))?;
    print(&format!(
        "  train again, changed:  scout-dist launch -n {NUM_RANKS} train {} learning_rate=1e-3 overwrite_output_dir=true",
        config_path.display()
    ))?;
    print("  plan a real run:       scout-dist plan configs/scout-lora-8gpu.yaml --world 8 --device-memory 78GiB")?;
    Ok(ProcessExitCode::SUCCESS)
}

/// The losses of the run's log, as anybody would read them.
fn logged_losses(output_dir: &Path) -> anyhow::Result<Vec<f64>> {
    let path = output_dir.join("trainer_log.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|cause| TrainError::Io {
        act: "read",
        path: path.display().to_string(),
        cause,
    })?;
    let lines = text.lines().map(serde_json::from_str::<serde_json::Value>);
    let losses: Vec<f64> =
        lines.filter_map(|line| line.map(|line| line["loss"].as_f64()).transpose()).collect::<Result<_, _>>()?;
    anyhow::ensure!(!losses.is_empty(), "`{}` holds no loss", path.display());
    Ok(losses)
}

fn fresh_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    // A demo that was run before leaves `demo.yaml`; anything else is not ours to delete.
    if folder.join("demo.yaml").is_file() {
        std::fs::remove_dir_all(folder).map_err(|cause| TrainError::Io {
            act: "replace",
            path: folder.display().to_string(),
            cause,
        })?;
    } else if folder.exists() {
        let message = format!("`{}` exists and holds no earlier demo", folder.display());
        return Err(
            Mistake { message, code: ExitCode::CannotCreate, hint: Some("choose another `--out`".into()) }.into()
        );
    }
    Ok(folder.to_path_buf())
}

/// Loss over the whole data set.
struct Proof {
    with: f64,
    without: f64,
}

/// Reads the adapter back from its files into a fresh model and scores the training rows with and without it.
fn prove(config: &RunConfig, output_dir: &Path) -> Result<Proof, TrainError> {
    let prepared = prepare(config, 1)?;
    let model = prepared.plan.source.config.clone();
    let mut trainer = build(config, &prepared, &Job::alone(ALONE_DEADLINE))?;
    let rows = prepared.data.all_rows(config.train.per_device_train_batch_size, model.attention_chunk_size)?;
    let without = trainer.evaluate(&rows)?;
    let loaded = load::adapter(output_dir, &model)?;
    trainer.adapter = load::adapter_state(&loaded, &model, Mesh::solo(), &Account::new(None))?;
    Ok(Proof { with: trainer.evaluate(&rows)?, without })
}
