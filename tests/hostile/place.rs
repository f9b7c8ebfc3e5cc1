//! A folder that holds everything a training run needs, copied afresh for each case, and the tools to damage it. Starts
//! the program only to make the first copy and an adapter.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scout_tests::run_in;
use serde_json::Value;
use tempfile::TempDir;

/// Far more than any of these runs takes on a busy machine: most end within a tenth of a second.
pub const LIMIT: Duration = Duration::from_secs(20);

const RUN: &str = "\
model_name_or_path: model
dataset: toy_messages
dataset_dir: model/data
template: llama4
cutoff_len: 128
lora_rank: 2
output_dir: run
max_steps: 1
per_device_train_batch_size: 2
device: cpu
";

/// The undamaged original: `model/` with one layer and toy data, `adapter/` of one step, `run.yaml`.
pub struct Good {
    folder: TempDir,
}

impl Good {
    pub fn make() -> Good {
        let folder = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let ended = run_in(folder.path(), arguments, LIMIT);
            assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        };
        run(&["synth", "--shape", "tiny", "--layers", "1", "--out", "model"]);
        fs::write(folder.path().join("run.yaml"), RUN).unwrap();
        run(&["train", "run.yaml", "output_dir=adapter", "lora_target=all+experts"]);
        Good { folder }
    }

    pub fn copy(&self) -> Place {
        let folder = tempfile::tempdir().unwrap();
        copy_all(self.folder.path(), folder.path());
        Place { folder }
    }
}

/// One copy. Paths are relative to the folder the program is started in.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    pub fn make_folder(&self, name: &str) {
        fs::create_dir_all(self.path(name)).unwrap();
    }

    /// Puts a folder where a file was.
    pub fn make_folder_of_file(&self, name: &str) {
        self.remove(name);
        self.make_folder(name);
    }

    /// Puts a pipe, which nobody writes to, where a file was.
    pub fn make_pipe_of_file(&self, name: &str) {
        self.remove(name);
        let made = std::process::Command::new("mkfifo").arg(self.path(name)).status().unwrap();
        assert!(made.success());
    }

    /// Moves a file out of its folder and leaves a link behind.
    pub fn make_link_out_of_file(&self, name: &str) {
        let outside = self.path("outside");
        fs::rename(self.path(name), &outside).unwrap();
        std::os::unix::fs::symlink(outside, self.path(name)).unwrap();
    }

    pub fn truncate(&self, name: &str, new_length: impl Fn(u64) -> u64) {
        let file = fs::OpenOptions::new().write(true).open(self.path(name)).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(new_length(length)).unwrap();
    }

    pub fn append(&self, name: &str, content: impl AsRef<[u8]>) {
        let mut file = fs::OpenOptions::new().append(true).open(self.path(name)).unwrap();
        file.write_all(content.as_ref()).unwrap();
    }

    /// Replaces text that must be there, once.
    pub fn replace(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from:?}");
        self.write(name, text.replacen(from, to, 1));
    }

    pub fn edit_json(&self, name: &str, edit: impl Fn(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        edit(&mut value);
        self.write(name, serde_json::to_string_pretty(&value).unwrap());
    }

    /// Sets one key of an object in a JSON file.
    pub fn set_json(&self, name: &str, key: &str, to: impl Into<Value>) {
        let to = to.into();
        self.edit_json(name, |value| value[key] = to.clone());
    }

    pub fn remove_json(&self, name: &str, key: &str) {
        self.edit_json(name, |value| drop(value.as_object_mut().unwrap().shift_remove(key).expect("the key is there")));
    }

    /// Writes a key of `run.yaml`, in its old line where it has one.
    pub fn set(&self, key: &str, value: &str) {
        let text = fs::read_to_string(self.path("run.yaml")).unwrap();
        let start = format!("{key}: ");
        let (kept, _): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| !line.starts_with(&start));
        self.write("run.yaml", format!("{}\n{start}{value}\n", kept.join("\n")));
    }

    /// Trains on `content`, under a name that tells its kind.
    pub fn data(&self, name: &str, content: impl AsRef<[u8]>) {
        self.write(name, content);
        self.set("dataset", name);
    }
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
