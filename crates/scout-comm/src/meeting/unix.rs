//! Meeting on one host: a socket in a folder of this user alone, and the system's word on who is at the other end.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use scout_core::Rank;
use scout_core::private::expect_private_folder;

use crate::door::listener::Listener;
use crate::error::{CommError, Result};

/// Makes the socket's folder if it is missing, and refuses one that others could put a socket into.
pub(crate) fn secure_folder(socket: &Path) -> Result<()> {
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |cause| CommError::Place { act: "create", place: folder.display().to_string(), cause };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    Ok(expect_private_folder(folder)?)
}

/// Listens at `socket`, and takes the place of a dead job's socket there.
pub(crate) fn listen(socket: &Path) -> Result<Listener> {
    secure_folder(socket)?;
    remove_abandoned(socket);
    let place = || socket.display().to_string();
    match UnixStream::connect(socket) {
        Ok(_) => return Err(CommError::InUse { address: place() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(socket).map_err(|cause| CommError::Place { act: "replace", place: place(), cause })?;
        }
        // Nothing there, or something that is no socket: then binding fails and says so.
        Err(_) => {}
    }
    match UnixListener::bind(socket) {
        Ok(listener) => Ok(Listener::Unix { listener, path: socket.to_path_buf() }),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(CommError::InUse { address: place() }),
        Err(cause) => Err(CommError::Place { act: "listen at", place: place(), cause }),
    }
}

/// Removes the sockets beside `socket` that killed jobs have left: nobody listens there, and nobody has lately begun to.
/// What cannot be removed is left for the next job.
fn remove_abandoned(socket: &Path) {
    let folder = socket.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
    for entry in folder {
        let is_old = entry.metadata().is_ok_and(|about| {
            about.file_type().is_socket()
                && about.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > SURELY_BOUND))
        });
        let is_dead =
            || UnixStream::connect(entry.path()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        if is_old && is_dead() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Between making a socket and listening at it nobody can tell it from an abandoned one.
const SURELY_BOUND: Duration = Duration::from_secs(60);

/// Where `rank` takes the streams of the ranks above it.
pub(crate) fn socket_of(socket: &Path, rank: Rank) -> PathBuf {
    match rank {
        Rank(0) => socket.to_path_buf(),
        Rank(rank) => {
            let mut name = socket.as_os_str().to_os_string();
            name.push(format!(".{rank}"));
            name.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn old_sockets_at_which_nobody_listens_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("user");
        secure_folder(&folder.join("meet.sock")).unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * SURELY_BOUND;
        let made = |name: &str| UnixListener::bind(folder.join(name)).unwrap();
        let age = |name: &str| {
            let path = folder.join(name);
            let since_1970 = long_ago.duration_since(std::time::UNIX_EPOCH).unwrap();
            let time = rustix::fs::Timespec { tv_sec: since_1970.as_secs() as i64, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
        };
        let living = made("living.sock");
        drop(made("dead.sock"));
        drop(made("fresh.sock"));
        fs::write(folder.join("notes.txt"), "mine").unwrap();
        ["living.sock", "dead.sock", "notes.txt"].iter().for_each(|name| age(name));
        let listening = listen(&folder.join("meet.sock")).unwrap();
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["fresh.sock", "living.sock", "meet.sock", "notes.txt"]);
        drop((living, listening));
    }

    #[test]
    fn a_missing_folder_is_made_for_this_user_alone() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("jobs/17/meet.sock");
        secure_folder(&socket).unwrap();
        for folder in ["jobs", "jobs/17"] {
            assert_eq!(fs::metadata(root.path().join(folder)).unwrap().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn a_dead_jobs_socket_is_replaced_and_a_living_ones_is_not() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("job/meet.sock");
        secure_folder(&socket).unwrap();
        // A listener that ends without removing its file, as a killed process does.
        drop(UnixListener::bind(&socket).unwrap());
        assert!(socket.exists());
        let living = listen(&socket).unwrap();
        let Err(error) = listen(&socket) else { panic!("somebody listens there") };
        assert_eq!(error.to_string(), format!("`{}` is in use by another process", socket.display()));
        drop(living);
        assert!(!socket.exists());
        drop(listen(&socket).unwrap());
    }
}
