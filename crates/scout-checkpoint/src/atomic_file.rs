//! Files that appear whole or not at all, also after a power loss: written beside their place, synced, then renamed.
//! Says nothing about what is in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use scout_core::ByteCount;

use crate::error::{CheckpointError, Result};

/// Makes one name unused by this process from the next; the process id keeps processes apart.
static NEXT_NAME: AtomicU64 = AtomicU64::new(0);

/// A file under a temporary name in the folder of its target. `commit` puts it in place; dropping it removes it.
pub(crate) struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    // Empty once the file stands under its target name, so that dropping leaves it alone.
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    pub(crate) fn create(target: &Path) -> Result<AtomicFile> {
        let failed = |cause: io::Error| CheckpointError::Create { path: target.to_path_buf(), cause };
        let name = target.file_name().ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        loop {
            let number = NEXT_NAME.fetch_add(1, Ordering::Relaxed);
            let hidden = format!(".{}.{}-{number}.tmp", name.to_string_lossy(), std::process::id());
            let temporary = folder_of(target).join(hidden);
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    let writer = Some(BufWriter::with_capacity(1 << 20, file));
                    return Ok(AtomicFile { target: target.to_path_buf(), temporary, writer });
                }
                // A crashed process with our id left one behind; it is not ours to touch, and the next name is free.
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(cause) => return Err(failed(cause)),
            }
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let writer = self.writer.as_mut().expect("the writer is only taken by `commit`, which consumes the file");
        writer.write_all(bytes).map_err(|cause| CheckpointError::Write { path: self.target.clone(), cause })
    }

    /// Puts the file in place of whatever stood there. When this returns, the bytes and the name are on the disk.
    pub(crate) fn commit(mut self) -> Result<()> {
        let mut writer = self.writer.take().expect("the writer is only taken here, and `commit` consumes the file");
        // The order is the point: a rename that reaches the disk before the bytes leaves an empty file after a crash.
        let done = writer
            .flush()
            .and_then(|()| writer.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .and_then(|()| sync_folder(folder_of(&self.target)));
        done.map_err(|cause| {
            // After a successful rename this name is gone and removing it does nothing.
            let _ = fs::remove_file(&self.temporary);
            CheckpointError::Write { path: self.target.clone(), cause }
        })
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.writer.is_some() {
            // Nothing useful can be done here when this fails: the cause that brought us here is being reported.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a small file in one go.
pub(crate) fn write_whole(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(target)?;
    file.write(bytes)?;
    file.commit()
}

/// Whatever `to` was, a link included, it becomes a file of its own: nothing is written through it.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).map_err(|cause| CheckpointError::Read { path: from.to_path_buf(), cause })?;
    write_whole(to, &bytes)
}

/// How much may still be written into `folder`; `None` where the file system does not say.
pub fn free_space(folder: &Path) -> Option<ByteCount> {
    let found = rustix::fs::statvfs(folder).ok().filter(|found| found.f_blocks > 0)?;
    Some(ByteCount(found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Makes `path` and what is missing above it, and puts its name on the disk.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| sync_folder(folder_of(path)))
        .map_err(|cause| CheckpointError::Create { path: path.to_path_buf(), cause })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_is_not_committed_leaves_the_old_one_and_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("config.json");
        write_whole(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write(b"new").unwrap();
        assert_eq!(names_in(folder.path()).len(), 2);
        drop(file);
        assert_eq!(names_in(folder.path()), ["config.json"]);
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }

    #[test]
    fn a_link_at_the_target_is_replaced_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, target) = (folder.path().join("victim"), folder.path().join("target"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &target).unwrap();
        write_whole(&target, b"new").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(!fs::symlink_metadata(&target).unwrap().is_symlink());
    }

    #[test]
    fn what_cannot_be_put_in_place_is_an_error_with_its_code() {
        let folder = tempfile::tempdir().unwrap();
        let check = |target: PathBuf, expected: u8| {
            let error = write_whole(&target, b"x").unwrap_err();
            assert_eq!(error.exit_code().code(), expected, "{error}");
        };
        check(folder.path().join("absent/file"), 73);
        check(folder.path().join(".."), 73);
        // A folder in the way is found by the rename.
        fs::create_dir_all(folder.path().join("taken/inside")).unwrap();
        check(folder.path().join("taken"), 74);
        assert_eq!(names_in(folder.path()), ["taken"]);
    }
}
