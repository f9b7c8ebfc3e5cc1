//! A folder with a toy model and a configuration for jobs of four or eight ranks, and readers for what they leave there.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use scout_tests::{program, run_in};
use serde_json::Value;
use tempfile::TempDir;

use crate::started::LIMIT;

/// Twenty quick steps; a test that needs more, or other limits, says so as `key=value`.
const RUN: &str = "\
model_name_or_path: toy
dataset: toy_messages
dataset_dir: toy/data
template: llama4
cutoff_len: 128
lora_rank: 4
lora_target: all+experts
output_dir: run
overwrite_output_dir: true
max_steps: 20
logging_steps: 1
per_device_train_batch_size: 1
learning_rate: 1.0e-2
device: cpu
hang_limit: 3
";

pub struct Toy {
    folder: TempDir,
}

impl Toy {
    pub fn new() -> Toy {
        let folder = tempfile::tempdir().unwrap();
        let ended = run_in(folder.path(), &["synth", "--shape", "tiny", "--layers", "2", "--out", "toy"], LIMIT);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        fs::write(folder.path().join("run.yaml"), RUN).unwrap();
        Toy { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command in this folder.
    pub fn command(&self, name: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(name);
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    /// `scout-dist launch -n N … train run.yaml KEY=VALUE…`, with the launcher's own options between.
    pub fn launch(&self, num_ranks: usize, options: &[&str], changes: &[&str]) -> Command {
        let number = num_ranks.to_string();
        let arguments = [&["launch", "-n", &number], options, &["train", "run.yaml"], changes].concat();
        self.command(program(), &arguments)
    }

    /// The bits of every logged loss of a run, in order.
    pub fn loss_bits(&self, run: &str) -> Vec<String> {
        let path = self.path(run).join("trainer_log.jsonl");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| Some(line.get("loss_bits")?.as_str().expect("bits are a string").to_string())).collect()
    }
}
