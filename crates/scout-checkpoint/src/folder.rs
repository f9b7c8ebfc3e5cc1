//! A folder that a user points at, and the rule that its files are its own: no name may lead out of it. Does not look
//! into the files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{CheckpointError, Result};
use crate::unique_json;

/// Far above any real index (Scout's has 1,133 entries in 130 kB), and small enough to parse without thought.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Files of these kinds can run code when they are unpickled.
const PICKLE_ENDINGS: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];

#[derive(Debug)]
pub(crate) struct Folder {
    /// As the user wrote it, for messages.
    given: PathBuf,
    /// With every link resolved, for the comparison that keeps files inside.
    real: PathBuf,
}

impl Folder {
    /// `what` is the word for messages: `model`, `adapter`.
    pub(crate) fn open(path: &Path, what: &'static str) -> Result<Folder> {
        let real = fs::canonicalize(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                CheckpointError::MissingFolder { what, path: path.to_path_buf() }
            }
            _ => CheckpointError::Read { path: path.to_path_buf(), cause },
        })?;
        if !real.is_dir() {
            return Err(CheckpointError::MissingFolder { what, path: path.to_path_buf() });
        }
        Ok(Folder { given: path.to_path_buf(), real })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.given
    }

    /// The real path of the file `name`, `None` where there is no such file.
    ///
    /// Fails when the name or a link leads out of the folder, and when it is not a plain file: opening a pipe would
    /// wait for ever.
    pub(crate) fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        let link = self.given.join(name);
        if !is_plain_name(name) {
            let problem = format!("is asked for the file `{}`, which is no plain file name", name.escape_debug());
            return Err(CheckpointError::File { path: self.given.clone(), problem });
        }
        let target = match fs::canonicalize(self.real.join(name)) {
            Ok(target) => target,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(CheckpointError::Read { path: link, cause }),
        };
        if !target.starts_with(&self.real) {
            return Err(CheckpointError::LinkOutside { link, target });
        }
        if !target.is_file() {
            return Err(CheckpointError::File { path: link, problem: "is not a regular file".to_string() });
        }
        Ok(Some(target))
    }

    /// The first file that only a pickle reader could read, for the message when there is nothing else.
    pub(crate) fn pickle_file(&self) -> Result<Option<String>> {
        let failed = |cause| CheckpointError::Read { path: self.given.clone(), cause };
        let mut found: Option<String> = None;
        for entry in fs::read_dir(&self.real).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if is_pickle_name(&name) && found.as_ref().is_none_or(|best| name < *best) {
                found = Some(name);
            }
        }
        Ok(found)
    }

    /// `Pickle` when there are weights of that kind, else `Empty`.
    pub(crate) fn without(&self, what: &'static str, expected: &'static str) -> CheckpointError {
        match self.pickle_file() {
            Ok(Some(file)) => CheckpointError::Pickle { path: self.given.clone(), file },
            Ok(None) => CheckpointError::Empty { what, path: self.given.clone(), expected },
            Err(error) => error,
        }
    }
}

/// Fails unless the file `name` of a model folder is a regular file of its own, or is not there at all.
pub fn check_model_file(folder: &Path, name: &str) -> Result<()> {
    Folder::open(folder, "model")?.file(name).map(drop)
}

/// The text of the file `name` of a model folder: one JSON object in which no key stands twice.
///
/// Fails where [`check_model_file`] does, and on a file that is missing, too long or no such text.
pub fn read_model_json(folder: &Path, name: &'static str) -> Result<String> {
    let folder = Folder::open(folder, "model")?;
    let Some(real) = folder.file(name)? else {
        return Err(CheckpointError::Empty { what: "model", path: folder.given, expected: name });
    };
    let bad = |problem: &str| CheckpointError::File { path: folder.given.join(name), problem: problem.to_string() };
    if !read_json(&real)?.is_object() {
        return Err(bad("is not a JSON object"));
    }
    let bytes = fs::read(&real).map_err(|cause| CheckpointError::Read { path: folder.given.join(name), cause })?;
    String::from_utf8(bytes).map_err(|_| bad("is not UTF-8"))
}

/// Reads a small JSON file whose objects may not name a key twice.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let failed = |cause| CheckpointError::Read { path: path.to_path_buf(), cause };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_JSON_BYTES {
        let problem = format!("has {length} bytes, more than the {MAX_JSON_BYTES} such a file may have");
        return Err(CheckpointError::File { path: path.to_path_buf(), problem });
    }
    let bytes = fs::read(path).map_err(failed)?;
    unique_json::parse(&bytes).map_err(|cause| CheckpointError::Json { path: path.to_path_buf(), cause })
}

/// A name that stays in its folder and can be shown on a terminal.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.contains("..")
        && name != "."
        && !name.chars().any(|c| c == '/' || c == '\\' || c.is_control())
}

pub(crate) fn is_pickle_name(name: &str) -> bool {
    PICKLE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}
