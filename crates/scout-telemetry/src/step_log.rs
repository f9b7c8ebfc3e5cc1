//! `trainer_log.jsonl`: one line per logged step, for people's scripts and for comparing two runs with `diff`. It does
//! not average anything; the caller says what a step was.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scout_core::ByteCount;
use serde::Serialize;

use crate::error::TelemetryError;
use crate::spelling::clock;

/// What is known when a line is written. `None` is a number without meaning on this line, and becomes `null`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepRecord {
    /// Updates made so far.
    pub current_steps: u64,
    pub total_steps: u64,
    /// Mean since the last line over all ranks; `None` on evaluation and final lines, which then carry no `loss` at all.
    pub loss: Option<f32>,
    /// Before clipping.
    pub grad_norm: Option<f32>,
    pub lr: Option<f64>,
    pub epoch: Option<f64>,
    /// Since training began in this process.
    pub elapsed: Duration,
    /// Tokens of all ranks since the last line.
    pub tokens: Option<u64>,
    /// Seconds per update.
    pub step_time: Option<f64>,
    pub tok_s_gpu: Option<f64>,
    /// Share of the device's peak arithmetic spent on useful work.
    pub mfu: Option<f64>,
    /// Share of the step time in which the rank that writes the log stood still: its GPU for units that were still on their
    /// way, its host for what other ranks had to say. Collectives that the GPU runs among its arithmetic, and its waits for
    /// sums, are not in it; `bench step` counts them too, on all ranks.
    pub exposed_comm: Option<f64>,
    /// How many times an even share of rows came to the busiest rank's experts, on average over layers; `None` where experts are
    /// gathered.
    pub busiest_experts: Option<f64>,
    pub mem_peak: Option<ByteCount>,
    /// Tokens of all ranks since training began.
    pub total_tokens: Option<u64>,
    pub eval_loss: Option<f32>,
}

impl StepRecord {
    /// Time left if the remaining steps take as long as those made so far; `None` before the first step.
    pub fn remaining(&self) -> Option<Duration> {
        let steps_left = self.total_steps.saturating_sub(self.current_steps) as f64;
        let per_step = self.elapsed.as_secs_f64() / self.current_steps as f64;
        // The division is not finite before the first step; a time past the clock's range has no meaning either.
        Duration::try_from_secs_f64(per_step * steps_left).ok()
    }

    /// Progress in percent with two decimals; a run of no steps is complete.
    pub fn percentage(&self) -> f64 {
        match self.total_steps {
            0 => 100.0,
            total => (self.current_steps as f64 / total as f64 * 10_000.0).round() / 100.0,
        }
    }

    /// Tokens of all ranks per second since training began.
    pub fn throughput(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        let total = self.total_tokens?;
        (seconds > 0.0).then(|| (total as f64 / seconds * 100.0).round() / 100.0)
    }
}

/// The open log. Lines reach the operating system one by one, so a killed run keeps every line it has written.
#[derive(Debug)]
pub struct StepLog {
    file: File,
    path: PathBuf,
}

impl StepLog {
    /// Opens the log of a fresh run: a file that is there is emptied.
    pub fn create(path: &Path) -> Result<StepLog, TelemetryError> {
        let file = File::create(path).map_err(|cause| TelemetryError::create(path, cause))?;
        Ok(StepLog { file, path: path.to_path_buf() })
    }

    pub fn write(&mut self, record: &StepRecord) -> Result<(), TelemetryError> {
        let mut line = serde_json::to_vec(&Line::of(record)).expect("numbers and text always become JSON");
        line.push(b'\n');
        // One call for the whole line: a reader that follows the file never sees half of one.
        self.file.write_all(&line).map_err(|cause| TelemetryError::write(&self.path, cause))
    }
}

/// A line as written. The first eleven keys are LLaMA-Factory's, so that its readers work unchanged.
#[derive(Serialize)]
struct Line {
    current_steps: u64,
    total_steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_bits: Option<String>,
    eval_loss: Option<f64>,
    lr: Option<f64>,
    epoch: Option<f64>,
    percentage: f64,
    elapsed_time: String,
    remaining_time: Option<String>,
    throughput: Option<f64>,
    total_tokens: Option<u64>,
    grad_norm: Option<f64>,
    grad_norm_bits: Option<String>,
    tokens: Option<u64>,
    step_time: Option<f64>,
    tok_s_gpu: Option<f64>,
    mfu: Option<f64>,
    exposed_comm: Option<f64>,
    busiest_experts: Option<f64>,
    mem_peak: Option<u64>,
}

impl Line {
    fn of(record: &StepRecord) -> Line {
        Line {
            current_steps: record.current_steps,
            total_steps: record.total_steps,
            // Widened, not printed as the shortest f32: read back as a double it equals the bits beside it exactly.
            loss: record.loss.map(f64::from),
            loss_bits: record.loss.map(bits),
            eval_loss: record.eval_loss.map(f64::from),
            lr: record.lr,
            epoch: record.epoch,
            percentage: record.percentage(),
            elapsed_time: clock(record.elapsed),
            remaining_time: record.remaining().map(clock),
            throughput: record.throughput(),
            total_tokens: record.total_tokens,
            grad_norm: record.grad_norm.map(f64::from),
            grad_norm_bits: record.grad_norm.map(bits),
            tokens: record.tokens,
            step_time: record.step_time,
            tok_s_gpu: record.tok_s_gpu,
            mfu: record.mfu,
            exposed_comm: record.exposed_comm,
            busiest_experts: record.busiest_experts,
            mem_peak: record.mem_peak.map(|bytes| bytes.0),
        }
    }
}

fn bits(value: f32) -> String {
    format!("{:08x}", value.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn lines_of(records: &[StepRecord]) -> Vec<Value> {
        text_of(records).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn text_of(records: &[StepRecord]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trainer_log.jsonl");
        let mut log = StepLog::create(&path).unwrap();
        for record in records {
            log.write(record).unwrap();
        }
        // Read while the log is still open: every line must already be there.
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text
    }

    fn third_step() -> StepRecord {
        StepRecord {
            current_steps: 3,
            total_steps: 8,
            loss: Some(6.238_412_4),
            grad_norm: Some(0.1),
            lr: Some(1e-4),
            epoch: Some(0.375),
            elapsed: Duration::from_secs(30),
            tokens: Some(1_000),
            total_tokens: Some(3_000),
            ..StepRecord::default()
        }
    }

    #[test]
    fn a_line_has_every_promised_key_and_null_where_there_is_no_meaning() {
        let line = &lines_of(&[third_step()])[0];
        for key in [
            "current_steps",
            "total_steps",
            "loss",
            "loss_bits",
            "grad_norm",
            "grad_norm_bits",
            "lr",
            "epoch",
            "percentage",
            "elapsed_time",
            "remaining_time",
            "tokens",
            "step_time",
            "tok_s_gpu",
            "mfu",
            "exposed_comm",
            "busiest_experts",
            "mem_peak",
            "throughput",
            "total_tokens",
            "eval_loss",
        ] {
            assert!(line.get(key).is_some(), "{key}");
        }
        assert_eq!(line["mfu"], Value::Null);
        assert_eq!(line["percentage"], 37.5);
        assert_eq!(line["elapsed_time"], "0:00:30");
        assert_eq!(line["remaining_time"], "0:00:50");
        assert_eq!(line["throughput"], 100.0);
    }

    #[test]
    fn the_printed_loss_read_as_a_double_equals_its_bits() {
        for loss in [6.238_412_4_f32, 0.1, 1e-30, f32::MAX, 0.0] {
            let text = text_of(&[StepRecord { loss: Some(loss), grad_norm: Some(loss), ..third_step() }]);
            // Cut out by hand: this crate's JSON reader may miss a double by its last bit, Python's does not.
            let field = |key: &str| {
                let rest = &text[text.find(&format!("\"{key}\":")).unwrap() + key.len() + 3..];
                rest[..rest.find([',', '}']).unwrap()].trim_matches('"').to_string()
            };
            for key in ["loss", "grad_norm"] {
                let bits = field(&format!("{key}_bits"));
                assert_eq!(bits.len(), 8, "{bits}");
                let stored = f32::from_bits(u32::from_str_radix(&bits, 16).unwrap());
                assert_eq!(field(key).parse::<f64>().unwrap(), f64::from(stored));
            }
        }
    }

    #[test]
    fn evaluation_and_final_lines_carry_no_loss() {
        let line = &lines_of(&[StepRecord { loss: None, eval_loss: Some(2.5), ..third_step() }])[0];
        assert_eq!(line["eval_loss"], 2.5);
        assert!(line.get("loss").is_none() && line.get("loss_bits").is_none());
    }

    #[test]
    fn a_fresh_run_empties_the_log_of_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trainer_log.jsonl");
        StepLog::create(&path).unwrap().write(&third_step()).unwrap();
        drop(StepLog::create(&path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_run_of_no_steps_divides_by_nothing() {
        let record = StepRecord::default();
        assert_eq!((record.remaining(), record.percentage(), record.throughput()), (None, 100.0, None));
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let error = StepLog::create(Path::new("no-such-folder/trainer_log.jsonl")).unwrap_err();
        assert_eq!(error.exit_code(), scout_core::ExitCode::CannotCreate);
        assert!(error.to_string().contains("no-such-folder/trainer_log.jsonl"));
    }
}
