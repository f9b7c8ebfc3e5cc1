//! The run folder while a run goes on and when it ends: log, events, picture, result files. Only the first rank has one.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use scout_checkpoint::free_space;
use scout_config::RunConfig;
use scout_core::causes::with_causes;
use scout_core::{ByteCount, ExitCode};
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

/// What a run writes before its end. A folder that holds nothing else is that of one that came to none.
const FROM_THE_START: [&str; 4] = [LOG, "trainer_log.jsonl", ARGUMENTS, EVENTS];
const LOG: &str = "running_log.txt";
const ARGUMENTS: &str = "training_args.yaml";
const EVENTS: &str = "runs";
/// What it writes at its end, beside the model card. Of an earlier run they would be taken for this one's.
const AT_THE_END: [&str; 7] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "all_results.json",
    "eval_results.json",
    "train_results.json",
    "trainer_state.json",
    "training_loss.png",
];

pub struct Recorder {
    folder: PathBuf,
    /// Locked, so that no other run writes there.
    _folder: File,
    /// None when it could not be written.
    lines: Option<Lines>,
    history: Vec<LogEntry>,
    /// Step and loss of every line.
    points: Vec<(u64, f64)>,
}

/// What grows with every line of the log.
struct Lines {
    log: StepLog,
    events: EventFile,
}

/// Where a run writes to.
pub fn folder_of(config: &RunConfig) -> Result<&Path> {
    let missing = || TrainError::Config { key: "output_dir", problem: "is not given".to_string() };
    config.output.output_dir.as_deref().ok_or_else(missing)
}

/// Refuses a run folder that holds more than a run which came to no end leaves, unless it may be overwritten: a job that is put
/// into the queue again finds that. Changes nothing.
pub fn must_be_free(config: &RunConfig) -> Result<()> {
    let folder = folder_of(config)?;
    let path = || folder.display().to_string();
    let cannot_read = |cause| TrainError::Io { act: "read", path: path(), cause };
    if !folder.is_dir() || config.output.overwrite_output_dir {
        return Ok(());
    }
    let entries = fs::read_dir(folder).map_err(cannot_read)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<std::io::Result<Vec<String>>>().map_err(cannot_read)?;
    let is_of_a_run = |name: &String| FROM_THE_START.contains(&name.as_str()) || is_temporary(name);
    let came_to_no_end = names.iter().any(|name| name == LOG) && names.iter().all(is_of_a_run);
    match names.is_empty() || came_to_no_end {
        true => Ok(()),
        false => Err(TrainError::OutputExists { path: path() }),
    }
}

/// As files are called that appear whole at their end.
fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Fails where another run holds it.
fn lock(folder: &Path) -> Result<File> {
    let path = || folder.display().to_string();
    let opened = File::open(folder).map_err(|cause| TrainError::Io { act: "read", path: path(), cause })?;
    match opened.try_lock() {
        Err(TryLockError::WouldBlock) => Err(TrainError::OutputInUse { path: path() }),
        // Some file systems of clusters know no locks for folders: there nobody is kept out.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(opened),
    }
}

fn events_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder.join(EVENTS)).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("events.out."));
    ours.map(|entry| entry.path())
}

fn remove_all(paths: impl Iterator<Item = PathBuf>) -> Result<()> {
    for path in paths {
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => {
                return Err(TrainError::Io { act: "replace", path: path.display().to_string(), cause });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Rather now than after the last step. Weights that lie there make room when they are replaced.
fn must_have_room(folder: &Path, result: ByteCount) -> Result<()> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let weights = entries.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "safetensors"));
    let replaced: u64 = weights.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
    let Some(free) = free_space(folder) else { return Ok(()) };
    let room = ByteCount(free.0.saturating_add(replaced));
    if room >= result {
        return Ok(());
    }
    let problem =
        format!("has {room} left, and the result takes {result}: free some space, or choose another `output_dir`");
    Err(TrainError::Input { path: folder.display().to_string(), problem, code: ExitCode::InputOutput })
}

impl Recorder {
    /// In the run folder, which must be free and have room for `result`. Logs of an earlier run go.
    pub fn create(config: &RunConfig, result: ByteCount, progress: &mut Progress) -> Result<Recorder> {
        let folder = folder_of(config)?;
        let io = |act, cause| TrainError::Io { act, path: folder.display().to_string(), cause };
        fs::create_dir_all(folder).map_err(|cause| io("create", cause))?;
        let locked = lock(folder)?;
        must_be_free(config)?;
        must_have_room(folder, result)?;
        progress.tee(RunningLog::create(&folder.join(LOG))?)?;
        remove_all(events_in(folder))?;
        Ok(Recorder {
            folder: folder.to_path_buf(),
            _folder: locked,
            lines: Some(Lines {
                log: StepLog::create(&folder.join("trainer_log.jsonl"))?,
                events: EventFile::create(&folder.join(EVENTS), &scout_device::host::name())?,
            }),
            history: Vec::new(),
            points: Vec::new(),
        })
    }

    /// Training begins: from here on the folder is this run's, and no result of an earlier one stays beside its arguments.
    pub fn begin(&self, config: &RunConfig) -> Result<()> {
        let folder = &self.folder;
        // A run that goes on from the adapter there replaces it at its end, and not before.
        let real = |path: &Path| fs::canonicalize(path).ok();
        let start = config.model.adapter_name_or_path.as_deref().and_then(real);
        let goes_on = start.is_some() && start == real(folder);
        let results = AT_THE_END.iter().filter(|name| !(goes_on && name.starts_with("adapter_")));
        remove_all(results.map(|name| folder.join(name)))?;
        let path = folder.join(ARGUMENTS);
        fs::write(&path, config.to_yaml_text()).map_err(|cause| TrainError::Io {
            act: "write",
            path: path.display().to_string(),
            cause,
        })
    }

    /// A disk that is full ends the log and not the run: there may be room again for the result.
    pub fn logged(&mut self, record: &StepRecord, progress: &mut Progress) {
        let write = |lines: &mut Lines| lines.log.write(record).and_then(|()| lines.events.record(record));
        if let Some(Err(error)) = self.lines.as_mut().map(write) {
            self.lines = None;
            progress.say(&format!("warning: {}; the run goes on without it", with_causes(&error)));
        }
        self.history.extend(LogEntry::of(record));
        self.points.extend(record.loss.map(|loss| (record.current_steps, f64::from(loss))));
        progress.logged(record);
    }

    pub fn evaluated(&mut self, record: &StepRecord, results: EvalResults, progress: &mut Progress) {
        self.logged(record, progress);
        self.history.push(LogEntry::Eval { results, step: record.current_steps });
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
