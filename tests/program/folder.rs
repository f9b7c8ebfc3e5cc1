//! A folder to start the program in, and readers for what it leaves there. Knows nothing of any one command.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::SafeTensors;
use scout_tests::{Ended, program, run_in};
use serde_json::Value;
use tempfile::TempDir;

/// Far more than any of these runs takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(100);

/// A toy that trains in a blink; every test adds what it is about.
const RUN: &str = "\
model_name_or_path: toy
dataset: toy_messages
dataset_dir: toy/data
template: llama4
cutoff_len: 128
lora_rank: 4
output_dir: run
overwrite_output_dir: true
max_steps: 3
logging_steps: 1
per_device_train_batch_size: 4
learning_rate: 1.0e-2
device: cpu
";

pub struct Folder {
    folder: TempDir,
}

impl Folder {
    pub fn empty() -> Folder {
        Folder { folder: tempfile::tempdir().unwrap() }
    }

    /// With `toy/`, a model of one layer, and `run.yaml`, which trains on it.
    pub fn with_toy() -> Folder {
        let folder = Folder::empty();
        folder.succeed(&["synth", "--shape", "tiny", "--layers", "1", "--out", "toy"]);
        folder.write("run.yaml", RUN);
        folder
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Names in a folder, sorted.
    pub fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        run_in(self.root(), arguments, LIMIT)
    }

    /// Runs, and fails unless all went well.
    pub fn succeed(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{}\n{}{}", arguments.join(" "), ended.stdout, ended.stderr);
        ended
    }

    /// Runs with variables set; `timeout` bounds the wait.
    pub fn run_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let output = std::process::Command::new("timeout")
            .arg(LIMIT.as_secs().to_string())
            .arg(program())
            .args(arguments)
            .envs(variables.iter().copied())
            .current_dir(self.root())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Every line of the step log of a run folder.
    pub fn log(&self, run: &str) -> Vec<Value> {
        let text = self.text(&format!("{run}/trainer_log.jsonl"));
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// The bits of every logged loss and gradient norm, which two equal runs share.
    pub fn bits(&self, run: &str) -> Vec<String> {
        let bits = |line: &Value| {
            ["loss_bits", "grad_norm_bits"]
                .map(|key| line[key].as_str().unwrap_or_else(|| panic!("{key}: {line}")).to_string())
        };
        self.log(run).iter().filter(|line| line.get("loss").is_some()).flat_map(bits).collect()
    }

    pub fn losses(&self, run: &str) -> Vec<f64> {
        self.log(run).iter().filter_map(|line| line.get("loss")?.as_f64()).collect()
    }
}

/// All tensors of a file of f32: name, shape and values.
pub fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    file.tensors()
        .into_iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
            (name, (tensor.shape().to_vec(), values(tensor.data())))
        })
        .collect()
}
