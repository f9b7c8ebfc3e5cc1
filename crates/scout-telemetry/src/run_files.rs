//! The small files of a run folder that other people's scripts read: trainer state, results, and what was said. Their
//! names and keys are those of transformers and LLaMA-Factory; weights and checkpoints are written elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::TelemetryError;
use crate::step_log::StepRecord;

/// The content of `trainer_state.json`, as `TrainerState.load_from_json` of transformers reads it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainerState {
    pub best_global_step: Option<u64>,
    pub best_metric: Option<f64>,
    pub best_model_checkpoint: Option<String>,
    pub epoch: f64,
    pub eval_steps: u64,
    pub global_step: u64,
    pub is_hyper_param_search: bool,
    pub is_local_process_zero: bool,
    pub is_world_process_zero: bool,
    pub log_history: Vec<LogEntry>,
    pub logging_steps: u64,
    pub max_steps: u64,
    pub num_input_tokens_seen: u64,
    pub num_train_epochs: u64,
    pub save_steps: u64,
    pub stateful_callbacks: BTreeMap<String, Value>,
    pub total_flos: f64,
    pub train_batch_size: Option<u64>,
    pub trial_name: Option<String>,
    pub trial_params: Option<Value>,
}

impl Default for TrainerState {
    fn default() -> TrainerState {
        TrainerState {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: 500,
            global_step: 0,
            is_hyper_param_search: false,
            // Only the first rank writes the file, so both are true in every file there is.
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: Vec::new(),
            logging_steps: 500,
            max_steps: 0,
            num_input_tokens_seen: 0,
            num_train_epochs: 0,
            save_steps: 500,
            stateful_callbacks: BTreeMap::new(),
            total_flos: 0.0,
            train_batch_size: None,
            trial_name: None,
            trial_params: None,
        }
    }
}

/// One line of the trainer state's `log_history`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum LogEntry {
    Step {
        epoch: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        grad_norm: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        learning_rate: Option<f64>,
        loss: f64,
        step: u64,
    },
    Eval {
        #[serde(flatten)]
        results: EvalResults,
        step: u64,
    },
    Final {
        #[serde(flatten)]
        results: TrainResults,
        step: u64,
    },
}

impl LogEntry {
    /// The entry of a logged step; `None` for a record without loss.
    pub fn of(record: &StepRecord) -> Option<LogEntry> {
        Some(LogEntry::Step {
            epoch: record.epoch.unwrap_or(0.0),
            grad_norm: record.grad_norm.map(f64::from),
            learning_rate: record.lr,
            loss: f64::from(record.loss?),
            step: record.current_steps,
        })
    }
}

/// The content of `train_results.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainResults {
    pub epoch: f64,
    pub num_input_tokens_seen: u64,
    pub total_flos: f64,
    /// Mean over all steps.
    pub train_loss: f64,
    /// Seconds.
    pub train_runtime: f64,
    pub train_samples_per_second: f64,
    pub train_steps_per_second: f64,
}

/// The content of `eval_results.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EvalResults {
    pub epoch: f64,
    pub eval_loss: f64,
    /// Seconds.
    pub eval_runtime: f64,
    pub eval_samples_per_second: f64,
    pub eval_steps_per_second: f64,
}

pub fn write_trainer_state(folder: &Path, state: &TrainerState) -> Result<(), TelemetryError> {
    write_json(&folder.join("trainer_state.json"), state, "  ")
}

/// Writes `train_results.json`, `eval_results.json` where there was an evaluation, and `all_results.json` with the keys
/// of both.
pub fn write_results(folder: &Path, train: &TrainResults, eval: Option<&EvalResults>) -> Result<(), TelemetryError> {
    let mut all = object(train);
    write_json(&folder.join("train_results.json"), train, "    ")?;
    if let Some(eval) = eval {
        all.extend(object(eval));
        write_json(&folder.join("eval_results.json"), eval, "    ")?;
    }
    all.sort_keys();
    write_json(&folder.join("all_results.json"), &all, "    ")
}

fn object(results: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(results) {
        Ok(Value::Object(map)) => map,
        _ => unreachable!("a struct of numbers becomes an object"),
    }
}

/// Writes beside the file and renames, so that a reader finds the old content or the new and never half of one.
fn write_json(path: &Path, content: &impl Serialize, indent: &str) -> Result<(), TelemetryError> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    content
        .serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        .expect("numbers and text always become JSON");
    text.push(b'\n');
    let partial = path.with_extension("json.partial");
    let mut file = File::create(&partial).map_err(|cause| TelemetryError::create(&partial, cause))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(|cause| TelemetryError::write(&partial, cause))?;
    fs::rename(&partial, path).map_err(|cause| TelemetryError::create(path, cause))
}

/// `running_log.txt`: every line that was said, without colours.
#[derive(Debug)]
pub struct RunningLog {
    file: File,
    path: PathBuf,
}

impl RunningLog {
    /// Opens the log of a fresh run: a file that is there is emptied.
    pub fn create(path: &Path) -> Result<RunningLog, TelemetryError> {
        let file = File::create(path).map_err(|cause| TelemetryError::create(path, cause))?;
        Ok(RunningLog { file, path: path.to_path_buf() })
    }

    pub fn line(&mut self, text: &str) -> Result<(), TelemetryError> {
        let line = format!("{}\n", without_colour(text));
        self.file.write_all(line.as_bytes()).map_err(|cause| TelemetryError::write(&self.path, cause))
    }
}

/// Drops the escape sequences `ESC [ … letter`, the only ones this program writes.
fn without_colour(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut parts = text.split("\x1b[");
    plain.extend(parts.next());
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |index| index + 1);
        plain.push_str(&part[end..]);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> (TrainResults, EvalResults) {
        let train = TrainResults {
            epoch: 3.0,
            num_input_tokens_seen: 4_096,
            total_flos: 1.5e15,
            train_loss: 1.25,
            train_runtime: 12.5,
            train_samples_per_second: 8.0,
            train_steps_per_second: 0.5,
        };
        let eval = EvalResults {
            epoch: 3.0,
            eval_loss: 1.5,
            eval_runtime: 1.0,
            eval_samples_per_second: 10.0,
            eval_steps_per_second: 5.0,
        };
        (train, eval)
    }

    fn read(folder: &Path, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    }

    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn all_results_hold_the_keys_of_training_and_evaluation_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (train, eval) = results();
        write_results(folder.path(), &train, Some(&eval)).unwrap();
        let all = read(folder.path(), "all_results.json");
        let mut expected =
            [keys(&read(folder.path(), "train_results.json")), keys(&read(folder.path(), "eval_results.json"))]
                .concat()
                .iter()
                .map(|key| key.to_string())
                .collect::<Vec<_>>();
        expected.sort();
        expected.dedup();
        assert_eq!(keys(&all), expected);
        assert_eq!((all["train_loss"].as_f64(), all["eval_loss"].as_f64()), (Some(1.25), Some(1.5)));
    }

    #[test]
    fn a_run_without_evaluation_writes_no_evaluation_file() {
        let folder = tempfile::tempdir().unwrap();
        write_results(folder.path(), &results().0, None).unwrap();
        assert!(!folder.path().join("eval_results.json").exists());
        assert_eq!(read(folder.path(), "all_results.json"), read(folder.path(), "train_results.json"));
    }

    #[test]
    fn the_trainer_state_has_the_fields_of_transformers_in_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let record = StepRecord { current_steps: 2, loss: Some(0.5), epoch: Some(1.0), ..StepRecord::default() };
        let (train, eval) = results();
        let state = TrainerState {
            log_history: vec![
                LogEntry::of(&record).unwrap(),
                LogEntry::Eval { results: eval, step: 2 },
                LogEntry::Final { results: train, step: 2 },
            ],
            ..TrainerState::default()
        };
        write_trainer_state(folder.path(), &state).unwrap();
        let written = read(folder.path(), "trainer_state.json");
        assert_eq!(
            keys(&written),
            [
                "best_global_step",
                "best_metric",
                "best_model_checkpoint",
                "epoch",
                "eval_steps",
                "global_step",
                "is_hyper_param_search",
                "is_local_process_zero",
                "is_world_process_zero",
                "log_history",
                "logging_steps",
                "max_steps",
                "num_input_tokens_seen",
                "num_train_epochs",
                "save_steps",
                "stateful_callbacks",
                "total_flos",
                "train_batch_size",
                "trial_name",
                "trial_params",
            ]
        );
        let history = written["log_history"].as_array().unwrap();
        assert_eq!(history[0], serde_json::json!({"epoch": 1.0, "loss": 0.5, "step": 2}));
        assert_eq!(history[1]["eval_loss"], 1.5);
        assert_eq!((history[2]["step"].as_u64(), history[2]["train_runtime"].as_f64()), (Some(2), Some(12.5)));
    }

    #[test]
    fn a_record_without_loss_is_no_step_of_the_history() {
        assert_eq!(LogEntry::of(&StepRecord { eval_loss: Some(1.0), ..StepRecord::default() }), None);
    }

    #[test]
    fn the_running_log_keeps_the_words_and_drops_the_colours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("running_log.txt");
        let mut log = RunningLog::create(&path).unwrap();
        for line in ["\x1b[1;32mdone\x1b[0m in 3 s", "plain", "cut \x1b[3"] {
            log.line(line).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "done in 3 s\nplain\ncut \n");
    }

    #[test]
    fn a_results_folder_that_is_missing_is_named() {
        let error = write_results(Path::new("no-such-folder"), &results().0, None).unwrap_err();
        assert_eq!(error.exit_code(), scout_core::ExitCode::CannotCreate);
        assert!(error.to_string().contains("no-such-folder/train_results.json"), "{error}");
    }
}
