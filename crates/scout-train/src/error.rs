//! What can end a run, with the exit code that tells the caller what to do next.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use scout_comm::CommError;
use scout_core::{ByteCount, ExitCode};
use scout_model::{Keep, ModelError};
use scout_shard::ShardError;

pub type Result<T> = std::result::Result<T, TrainError>;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("the {what} of step {step} is not a number")]
    NotANumber { what: &'static str, step: usize },
    #[error("`{key}`: {problem}")]
    Config { key: &'static str, problem: String },
    #[error("`{path}` {problem}")]
    Input { path: String, problem: String, code: ExitCode },
    #[error("could not {act} `{path}`")]
    Io {
        act: &'static str,
        path: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("`{}` is not a folder with a model (`model_name_or_path`)", path.display())]
    NoModel { path: PathBuf },
    /// `hint` names what would make it fit.
    #[error("{needed} a rank do not fit into {budget}, and no way needs less: {least}")]
    DoesNotFit { needed: ByteCount, budget: ByteCount, least: Least, hint: String },
    #[error("`{path}` is not empty")]
    OutputExists { path: String },
    #[error("another run writes to `{path}`")]
    OutputInUse { path: String },
    #[error(transparent)]
    Device(#[from] scout_device::DeviceError),
    #[error(transparent)]
    Comm(#[from] CommError),
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error(transparent)]
    Model(#[from] scout_model::ModelError),
    #[error(transparent)]
    Data(#[from] scout_data::DataError),
    #[error(transparent)]
    Checkpoint(#[from] scout_checkpoint::CheckpointError),
    #[error(transparent)]
    Telemetry(#[from] scout_telemetry::TelemetryError),
}

/// The way that needs the least memory of all that a configuration leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Least {
    pub keep: Keep,
    pub runs: usize,
    /// Of the largest run.
    pub tokens: usize,
    /// Whole on every rank.
    pub resident_layers: usize,
    pub num_layers: usize,
    /// With their ranks, however many layers are whole on all.
    pub experts_stay: bool,
}

impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Least { keep, runs, tokens, resident_layers, num_layers, experts_stay } = *self;
        let but_experts = if experts_stay { " but for their experts" } else { "" };
        let again = match keep {
            Keep::Everything => "nothing computed again",
            Keep::AllButGateUp => "gate and up computed again",
            Keep::InputOnly => "every block computed again",
        };
        let runs = if runs == 1 { "one run".to_string() } else { format!("{runs} runs") };
        write!(
            f,
            "{resident_layers} of {num_layers} layers whole on every rank{but_experts}, {again}, an update in {runs} of at most {tokens} \
             tokens"
        )
    }
}

impl TrainError {
    pub fn exit_code(&self) -> ExitCode {
        // Weights that do not arrive come up through the model, which knows nothing of ranks: ask whoever failed.
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(gather) = error.downcast_ref::<ShardError>() {
                return gather.exit_code();
            }
            if let Some(rows) = error.downcast_ref::<CommError>() {
                return rows.exit_code();
            }
            cause = error.source();
        }
        match self {
            TrainError::NotANumber { .. } => ExitCode::NotANumber,
            TrainError::Config { .. } | TrainError::OutputExists { .. } => ExitCode::BadConfig,
            TrainError::OutputInUse { .. } => ExitCode::CannotCreate,
            TrainError::DoesNotFit { .. } => ExitCode::DeviceUnavailable,
            TrainError::NoModel { .. } => ExitCode::MissingInput,
            TrainError::Input { code, .. } => *code,
            TrainError::Io { act: "create", cause, .. } => match ExitCode::of_io(cause, ExitCode::CannotCreate) {
                ExitCode::PermissionDenied => ExitCode::PermissionDenied,
                _ => ExitCode::CannotCreate,
            },
            TrainError::Io { cause, .. } => ExitCode::of_io(cause, ExitCode::InputOutput),
            TrainError::Device(cause) => cause.exit_code(),
            TrainError::Comm(cause) => cause.exit_code(),
            TrainError::Shard(cause) => cause.exit_code(),
            TrainError::Model(cause) => cause.exit_code(),
            TrainError::Data(cause) => cause.exit_code(),
            TrainError::Checkpoint(cause) => cause.exit_code(),
            TrainError::Telemetry(cause) => cause.exit_code(),
        }
    }

    /// Whether this rank failed only because another one did, which knows more.
    pub fn tells_of_another_rank(&self) -> bool {
        let of_shard = |error: &'_ ShardError| match error {
            ShardError::Gather { cause, .. } | ShardError::Reduce { cause, .. } => cause.is_an_echo(),
            ShardError::Queue { cause } => cause.is_an_echo(),
            ShardError::Device(cause) => cause.may_be_an_echo(),
            _ => false,
        };
        match self {
            TrainError::Comm(cause) => cause.is_an_echo(),
            TrainError::Device(cause) | TrainError::Model(ModelError::Device(cause)) if cause.may_be_an_echo() => true,
            TrainError::Shard(cause) => of_shard(cause),
            // Weights and rows that do not arrive come up through the model.
            _ => {
                let is_echo = |error: &(dyn std::error::Error + 'static)| {
                    error.downcast_ref::<ShardError>().is_some_and(of_shard)
                        || error.downcast_ref::<CommError>().is_some_and(CommError::is_an_echo)
                };
                std::iter::successors(std::error::Error::source(self), |error| error.source()).any(is_echo)
            }
        }
    }

    /// The error with everything that caused it, in one line.
    pub fn with_causes(&self) -> String {
        scout_core::causes::with_causes(self)
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            TrainError::NotANumber { .. } => {
                Some("lower `learning_rate`, or look at the rows of this step".to_string())
            }
            TrainError::NoModel { path } => Some(how_to_get(path)),
            TrainError::DoesNotFit { hint, .. } => Some(hint.clone()),
            TrainError::OutputExists { .. } => {
                Some("set `overwrite_output_dir: true`, or choose another `output_dir`".to_string())
            }
            TrainError::OutputInUse { .. } => Some("let it end, or choose another `output_dir`".to_string()),
            TrainError::Device(cause) => cause.hint(),
            TrainError::Comm(cause) => cause.hint(),
            TrainError::Shard(ShardError::Queue { cause }) => cause.hint(),
            TrainError::Data(cause) => cause.hint(),
            TrainError::Checkpoint(cause) => cause.hint(),
            _ => None,
        }
    }
}

/// A name such as `organisation/model` is also where its files may lie, and then the configuration stays as it is.
fn how_to_get(path: &Path) -> String {
    let parts: Vec<Component> = path.components().collect();
    let is_name = matches!(parts[..], [Component::Normal(_), Component::Normal(_)]);
    match is_name {
        true => {
            let name = path.display();
            format!(
                "nothing is fetched from the network here; download it into a folder of that name: \
                 hf download {name} --local-dir {name}"
            )
        }
        false => "give the folder of a model that was downloaded before, such as by \
                  hf download ORGANISATION/MODEL --local-dir FOLDER"
            .to_string(),
    }
}

#[cfg(test)]
mod tests {
    use scout_device::DeviceError;

    use super::*;

    #[test]
    fn what_did_not_arrive_because_another_rank_failed_is_told_as_its_failure() {
        let through_the_model =
            |cause: CommError| TrainError::from(ModelError::from(DeviceError::Gather(Box::new(cause))));
        let echo = through_the_model(CommError::Aborted { reason: "rank 1 failed".to_string() });
        assert!(echo.tells_of_another_rank());
        assert_eq!(echo.exit_code(), ExitCode::PeerLost);
        let own = through_the_model(CommError::NoWay { way: "copy engines", reason: "none".to_string() });
        assert!(!own.tells_of_another_rank());
        assert_eq!(own.exit_code(), ExitCode::DeviceUnavailable);
        let late = TrainError::from(ModelError::from(DeviceError::Late { waited: std::time::Duration::ZERO }));
        assert!(late.tells_of_another_rank());
    }
}
