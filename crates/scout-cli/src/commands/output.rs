//! Files for results: opened before anything is measured, for a path that nobody can write to must not cost an hour's work.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use scout_comm::Job;
use scout_core::ExitCode;
use serde_json::Value;

use crate::failure::Mistake;

/// A file that can be written. What it held stays until something is; a new one that nothing is written to is taken away.
pub struct Output {
    path: PathBuf,
    file: File,
    is_new: bool,
}

impl Output {
    pub fn open(path: &Path) -> anyhow::Result<Output> {
        let opened = match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok((file, true)),
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {
                // It may be a link to what is not there yet.
                OpenOptions::new().write(true).create(true).truncate(false).open(path).map(|file| (file, false))
            }
            Err(cause) => Err(cause),
        };
        let (file, is_new) = opened.map_err(|cause| {
            let code = match cause.kind() {
                ErrorKind::PermissionDenied => ExitCode::PermissionDenied,
                _ => ExitCode::CannotCreate,
            };
            cannot_be_written(path, &cause, code)
        })?;
        Ok(Output { path: path.to_path_buf(), file, is_new })
    }

    /// On the first rank, which is the one that tells, and where a path is given.
    pub fn of_first_rank(path: Option<&PathBuf>, job: &Job) -> anyhow::Result<Option<Output>> {
        path.filter(|_| job.mesh().is_first()).map(|path| Output::open(path)).transpose()
    }

    /// For people too: indented, with a newline at its end.
    pub fn write_json(self, value: &Value) -> anyhow::Result<()> {
        self.write(&format!("{value:#}\n"))
    }

    pub fn write(mut self, text: &str) -> anyhow::Result<()> {
        self.replace(text)
            .map_err(|cause| cannot_be_written(&self.path, &cause, ExitCode::of_io(&cause, ExitCode::CannotCreate)))?;
        self.is_new = false;
        Ok(())
    }

    fn replace(&mut self, text: &str) -> io::Result<()> {
        // A pipe has no length.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_new {
            // Whoever drops it has an error of his own to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn cannot_be_written(path: &Path, cause: &io::Error, code: ExitCode) -> anyhow::Error {
    Mistake { message: format!("`{}` cannot be written: {cause}", path.display()), code, hint: None }.into()
}
