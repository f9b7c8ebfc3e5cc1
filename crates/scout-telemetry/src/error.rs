//! What can go wrong while speaking: every case is a file that could not be created or written.

use std::io;
use std::path::{Path, PathBuf};

use scout_core::ExitCode;

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("could not create `{}`", path.display())]
    Create {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("could not write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl TelemetryError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // A parent folder that is missing means that the file cannot be created, whoever removed it.
            TelemetryError::Create { cause, .. } => match cause.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ExitCode::InputOutput,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ExitCode::PermissionDenied,
                _ => ExitCode::CannotCreate,
            },
            TelemetryError::Write { cause, .. } => ExitCode::of_io(cause, ExitCode::InputOutput),
        }
    }

    pub fn hint(&self) -> Option<String> {
        let (TelemetryError::Create { path, cause } | TelemetryError::Write { path, cause }) = self;
        let folder = path.parent().unwrap_or(Path::new("."));
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some(format!("free some space below `{}` or choose another `output_dir`", folder.display()))
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Some(format!("make `{}` writable or choose another `output_dir`", folder.display()))
            }
            io::ErrorKind::NotFound => Some(format!("the folder `{}` must exist", folder.display())),
            _ => None,
        }
    }

    pub(crate) fn create(path: &Path, cause: io::Error) -> TelemetryError {
        TelemetryError::Create { path: path.to_path_buf(), cause }
    }

    pub(crate) fn write(path: &Path, cause: io::Error) -> TelemetryError {
        TelemetryError::Write { path: path.to_path_buf(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_the_exit_code_a_script_expects() {
        let path = Path::new("run/trainer_log.jsonl");
        for (error, expected, has_hint) in [
            (TelemetryError::create(path, io::ErrorKind::NotFound.into()), 73, true),
            (TelemetryError::create(path, io::ErrorKind::NotADirectory.into()), 73, false),
            (TelemetryError::create(path, io::ErrorKind::PermissionDenied.into()), 77, true),
            (TelemetryError::create(path, io::ErrorKind::StorageFull.into()), 74, true),
            (TelemetryError::write(path, io::ErrorKind::StorageFull.into()), 74, true),
            (TelemetryError::write(path, io::ErrorKind::BrokenPipe.into()), 74, false),
            (TelemetryError::write(path, io::ErrorKind::PermissionDenied.into()), 77, true),
        ] {
            assert_eq!(error.exit_code().code(), expected, "{error:?}");
            assert_eq!(error.hint().is_some(), has_hint, "{error:?}");
        }
    }

    #[test]
    fn the_message_names_the_file_and_leaves_the_cause_to_the_source() {
        let error = TelemetryError::create(Path::new("run/a.json"), io::ErrorKind::NotFound.into());
        assert_eq!(error.to_string(), "could not create `run/a.json`");
        assert!(std::error::Error::source(&error).is_some());
    }
}
