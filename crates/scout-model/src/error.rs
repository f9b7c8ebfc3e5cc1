//! What can go wrong in reading a model's configuration and in running its blocks.

use std::path::PathBuf;

use scout_core::ExitCode;
use scout_device::DeviceError;

pub type Result<T> = std::result::Result<T, ModelError>;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("could not read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("`{path}` is not valid JSON")]
    Json {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("`{path}`: `{key}` {problem}")]
    Config { path: PathBuf, key: String, problem: String },
    #[error("{0}")]
    Batch(String),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl ModelError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            ModelError::Read { cause, .. } => ExitCode::of_io(cause, ExitCode::MissingInput),
            ModelError::Json { .. } | ModelError::Config { .. } => ExitCode::BadData,
            ModelError::Batch(_) => ExitCode::Internal,
            ModelError::Device(cause) => cause.exit_code(),
        }
    }
}
