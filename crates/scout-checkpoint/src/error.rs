//! What can be wrong with a model or adapter on disk, where it stands, and what to do. Reads nothing itself.

use std::io;
use std::path::PathBuf;

use scout_core::ExitCode;

use crate::disagreement::Disagreement;

pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// Any failure while a model or adapter is read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("there is no {what} folder `{}`", path.display())]
    MissingFolder { what: &'static str, path: PathBuf },
    #[error("`{}` holds no {what}: `{expected}` is not there", path.display())]
    Empty { what: &'static str, path: PathBuf, expected: &'static str },
    #[error("`{}` holds its weights as `{file}`, a kind that can run code, and not as safetensors", path.display())]
    Pickle { path: PathBuf, file: String },
    #[error("`{}` is a link to `{}`, outside of the folder", link.display(), target.display())]
    LinkOutside { link: PathBuf, target: PathBuf },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot create `{}`", path.display())]
    Create {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("`{}` already holds a model (`{file}`)", path.display())]
    AlreadyThere { path: PathBuf, file: &'static str },
    #[error("`{}` {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("`{}` is not the JSON it should be", path.display())]
    Json {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error(
        "`{}` is cut short: it has {found} bytes where its header asks for {expected} ({} missing)",
        path.display(),
        expected.saturating_sub(*found)
    )]
    Truncated { path: PathBuf, found: u64, expected: u64 },
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    NoTensor { path: PathBuf, tensor: String },
    #[error("tensor `{tensor}` of `{}` is {found}, expected {expected}", path.display())]
    ElementType { path: PathBuf, tensor: String, found: String, expected: &'static str },
    #[error("tensor `{tensor}` of `{}` holds {value} at index {index}", path.display())]
    NotFinite { path: PathBuf, tensor: String, index: usize, value: f32 },
    #[error("the tensors of `{}` are not the expected ones: {found}", path.display())]
    Tensors { path: PathBuf, found: Box<Disagreement> },
    #[error("`{key}` of `{}` is {found}, and {reason}", path.display())]
    Setting { path: PathBuf, key: String, found: String, reason: String },
    #[error("`{tensor}` for `{}` has no finite value in its element type: {value} at index {index}", path.display())]
    NotFiniteToWrite { path: PathBuf, tensor: String, index: usize, value: f32 },
    #[error("the caller made a mistake with `{}`: {mistake}", path.display())]
    Misuse { path: PathBuf, mistake: String },
}

impl CheckpointError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CheckpointError::MissingFolder { .. } | CheckpointError::Empty { .. } => ExitCode::MissingInput,
            CheckpointError::Read { cause, .. } => ExitCode::of_io(cause, ExitCode::MissingInput),
            CheckpointError::Create { cause, .. } => match ExitCode::of_io(cause, ExitCode::CannotCreate) {
                ExitCode::PermissionDenied => ExitCode::PermissionDenied,
                _ => ExitCode::CannotCreate,
            },
            CheckpointError::Write { cause, .. } => ExitCode::of_io(cause, ExitCode::InputOutput),
            CheckpointError::AlreadyThere { .. } => ExitCode::CannotCreate,
            CheckpointError::NotFiniteToWrite { .. } => ExitCode::NotANumber,
            CheckpointError::Misuse { .. } => ExitCode::Internal,
            CheckpointError::Pickle { .. }
            | CheckpointError::LinkOutside { .. }
            | CheckpointError::File { .. }
            | CheckpointError::Json { .. }
            | CheckpointError::Truncated { .. }
            | CheckpointError::NoTensor { .. }
            | CheckpointError::ElementType { .. }
            | CheckpointError::NotFinite { .. }
            | CheckpointError::Tensors { .. }
            | CheckpointError::Setting { .. } => ExitCode::BadData,
        }
    }

    /// What the reader can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            CheckpointError::Pickle { .. } => {
                "such files are never opened here: convert the weights to safetensors first (`save_pretrained` does)"
            }
            CheckpointError::LinkOutside { .. } => {
                "copy the folder with its links resolved (`cp -rL`), or download it with `hf download --local-dir`"
            }
            CheckpointError::Truncated { .. } => "the copy or download did not finish: fetch the file again",
            CheckpointError::AlreadyThere { .. } => "name another folder, or remove the old model first",
            CheckpointError::NotFinite { .. } => {
                "the file is damaged or the run that wrote it had diverged: fetch it again or use an earlier one"
            }
            CheckpointError::Write { cause, .. } if cause.kind() == io::ErrorKind::StorageFull => {
                "the disk is full: free some space or name another folder"
            }
            _ => return None,
        };
        Some(hint.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_read_or_write_leaves_with_the_code_of_its_cause() {
        type Build = fn(PathBuf, io::Error) -> CheckpointError;
        let check = |build: Build, kind: io::ErrorKind, expected: u8| {
            let error = build("x".into(), io::Error::from(kind));
            assert_eq!(error.exit_code().code(), expected, "{error:?}");
        };
        let read: Build = |path, cause| CheckpointError::Read { path, cause };
        let create: Build = |path, cause| CheckpointError::Create { path, cause };
        let write: Build = |path, cause| CheckpointError::Write { path, cause };
        check(read, io::ErrorKind::NotFound, 66);
        check(read, io::ErrorKind::PermissionDenied, 77);
        check(read, io::ErrorKind::UnexpectedEof, 74);
        check(create, io::ErrorKind::NotFound, 73);
        check(create, io::ErrorKind::ReadOnlyFilesystem, 73);
        check(create, io::ErrorKind::PermissionDenied, 77);
        check(write, io::ErrorKind::StorageFull, 74);
        check(write, io::ErrorKind::PermissionDenied, 77);
        let full = write("x".into(), io::Error::from(io::ErrorKind::StorageFull));
        assert!(full.hint().unwrap().contains("disk is full"));
    }
}
