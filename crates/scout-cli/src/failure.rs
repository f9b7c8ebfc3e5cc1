//! How an error leaves the program: one sentence with everything that caused it, a hint where there is something to do,
//! and the exit code of the cause.

use std::io::Write;

use scout_comm::{CommError, Verdict};
use scout_config::ConfigError;
use scout_core::ExitCode;
use scout_core::causes::with_causes;
use scout_train::TrainError;

/// A mistake on the command line that clap cannot see.
#[derive(Debug)]
pub struct Mistake {
    pub message: String,
    pub code: ExitCode,
    pub hint: Option<String>,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

/// The end of a job on one of its ranks.
#[derive(Debug)]
pub struct JobEnded {
    pub verdict: Verdict,
    pub hint: Option<String>,
}

impl std::fmt::Display for JobEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.verdict.sentence)
    }
}

impl std::error::Error for JobEnded {}

/// Prints `error` to stderr and leaves with its code. Why a job ended was said by one of its ranks already.
pub fn leave(error: &anyhow::Error) -> ! {
    if error.downcast_ref::<JobEnded>().is_none() {
        say(error);
    }
    leave_at_once(exit_code(error).code().into())
}

/// Prints `error`, and its hint, to stderr.
pub fn say(error: &anyhow::Error) {
    // A mistake in the YAML is one line that begins with its place, as compilers do; an unreadable file has none.
    let mut text = match error.downcast_ref::<ConfigError>() {
        Some(mistake) if !matches!(mistake, ConfigError::Unreadable { .. }) => format!("{mistake}\n"),
        _ => format!("error: {}\n", with_causes(error.as_ref())),
    };
    if let Some(hint) = hint(error) {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // Where stderr is gone, the exit code still tells.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Turns a panic into one sentence; the process then leaves with the code for a bug of ours.
pub fn speak_plainly_of_bugs() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no message");
        let text = format!("error: a bug in scout-dist{place}: {what}\n");
        let _ = std::io::stderr().write_all(text.as_bytes());
    }));
}

pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if let Some(ended) = error.downcast_ref::<JobEnded>() {
        return ended.verdict.code;
    }
    if let Some(between_ranks) = error.downcast_ref::<CommError>() {
        return between_ranks.exit_code();
    }
    if let Some(train) = error.downcast_ref::<TrainError>() {
        return train.exit_code();
    }
    if let Some(config) = error.downcast_ref::<ConfigError>() {
        return config.exit_code();
    }
    if let Some(mistake) = error.downcast_ref::<Mistake>() {
        return mistake.code;
    }
    ExitCode::Internal
}

pub fn hint(error: &anyhow::Error) -> Option<String> {
    let of_train = error.downcast_ref::<TrainError>().and_then(TrainError::hint);
    let of_config = error.downcast_ref::<ConfigError>().and_then(ConfigError::hint);
    let of_mistake = error.downcast_ref::<Mistake>().and_then(|mistake| mistake.hint.clone());
    let of_job = error.downcast_ref::<JobEnded>().and_then(|ended| ended.hint.clone());
    let of_meeting = error.downcast_ref::<CommError>().and_then(CommError::hint);
    of_train.or(of_config).or(of_mistake).or(of_job).or(of_meeting)
}

/// Ends the process without the last acts of its libraries: those of CUDA and NCCL wait for work that a lost rank will
/// never finish, and another thread may be in the middle of a call.
pub fn leave_at_once(code: i32) -> ! {
    let _ = std::io::Write::flush(&mut std::io::stdout());
    signal_hook::low_level::exit(code)
}
