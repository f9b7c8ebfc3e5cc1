//! The run folder while a run goes on and when it ends: log, events, picture, result files. Only the first rank has one.

use std::path::{Path, PathBuf};

use scout_config::RunConfig;
use scout_telemetry::{
    EvalResults, EventFile, LogEntry, Progress, RunningLog, StepLog, StepRecord, TrainResults, TrainerState,
    write_loss_picture, write_results, write_trainer_state,
};

use crate::error::{Result, TrainError};

/// The numbers a run ends with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub train: TrainResults,
    pub eval: Option<EvalResults>,
    pub total_steps: u64,
}

pub struct Recorder {
    folder: PathBuf,
    log: StepLog,
    events: EventFile,
    history: Vec<LogEntry>,
    /// Step and loss of every line.
    points: Vec<(u64, f64)>,
}

/// Where a run writes to.
pub fn folder_of(config: &RunConfig) -> Result<&Path> {
    let missing = || TrainError::Config { key: "output_dir", problem: "is not given".to_string() };
    config.output.output_dir.as_deref().ok_or_else(missing)
}

/// Refuses a run folder that holds something, unless it may be overwritten. Changes nothing.
pub fn must_be_free(config: &RunConfig) -> Result<()> {
    let folder = folder_of(config)?;
    let path = || folder.display().to_string();
    let cannot_read = |cause| TrainError::Io { act: "read", path: path(), cause };
    let is_used = folder.is_dir() && std::fs::read_dir(folder).map_err(cannot_read)?.next().is_some();
    match is_used && !config.output.overwrite_output_dir {
        true => Err(TrainError::OutputExists { path: path() }),
        false => Ok(()),
    }
}

impl Recorder {
    /// In the run folder, which must be free.
    pub fn create(config: &RunConfig, progress: &mut Progress) -> Result<Recorder> {
        must_be_free(config)?;
        let folder = folder_of(config)?;
        let io = |act, cause| TrainError::Io { act, path: folder.display().to_string(), cause };
        std::fs::create_dir_all(folder).map_err(|cause| io("create", cause))?;
        progress.tee(RunningLog::create(&folder.join("running_log.txt"))?)?;
        let arguments = folder.join("training_args.yaml");
        std::fs::write(&arguments, config.to_yaml_text()).map_err(|cause| io("write", cause))?;
        Ok(Recorder {
            folder: folder.to_path_buf(),
            log: StepLog::create(&folder.join("trainer_log.jsonl"))?,
            events: EventFile::create(&folder.join("runs"), &scout_device::host::name())?,
            history: Vec::new(),
            points: Vec::new(),
        })
    }

    pub fn logged(&mut self, record: &StepRecord, progress: &mut Progress) -> Result<()> {
        self.log.write(record)?;
        self.events.record(record)?;
        self.history.extend(LogEntry::of(record));
        self.points.extend(record.loss.map(|loss| (record.current_steps, f64::from(loss))));
        progress.logged(record)?;
        Ok(())
    }

    pub fn evaluated(&mut self, record: &StepRecord, results: EvalResults, progress: &mut Progress) -> Result<()> {
        self.logged(record, progress)?;
        self.history.push(LogEntry::Eval { results, step: record.current_steps });
        Ok(())
    }

    /// Writes what scripts look for after a run.
    pub fn finish(mut self, config: &RunConfig, summary: &Summary) -> Result<()> {
        let Summary { train, eval, total_steps } = *summary;
        self.history.push(LogEntry::Final { results: train, step: total_steps });
        write_results(&self.folder, &train, eval.as_ref())?;
        let defaults = TrainerState::default();
        let state = TrainerState {
            epoch: train.epoch,
            eval_steps: config.train.eval_steps.map_or(defaults.eval_steps, |steps| steps as u64),
            global_step: total_steps,
            log_history: self.history,
            logging_steps: config.train.logging_steps as u64,
            max_steps: total_steps,
            num_input_tokens_seen: train.num_input_tokens_seen,
            num_train_epochs: config.train.num_train_epochs.ceil() as u64,
            total_flos: train.total_flos,
            train_batch_size: Some(config.train.per_device_train_batch_size as u64),
            ..defaults
        };
        write_trainer_state(&self.folder, &state)?;
        if config.output.plot_loss {
            let title = format!("training loss of {}", self.folder.display());
            write_loss_picture(&self.folder.join("training_loss.png"), &self.points, &title)?;
        }
        Ok(())
    }
}
