//! Meeting on one host: a socket in a folder of this user alone, and the system's word on who is at the other end.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use scout_core::Rank;

use super::door::Listener;
use crate::stream::PeerStream;
use crate::{CommError, Result};

/// Makes the socket's folder if it is missing, and refuses one that others could put a socket into.
pub(crate) fn secure_folder(socket: &Path) -> Result<()> {
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |act| {
        let place = folder.display().to_string();
        move |cause| CommError::Place { act, place, cause }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("create"))?;
    // Not followed: a link's target could be exchanged.
    let about = fs::symlink_metadata(folder).map_err(failed("look at"))?;
    let refused = |problem: String| Err(CommError::OpenToOthers { path: folder.to_path_buf(), problem });
    if !about.is_dir() {
        return refused("is not a folder".to_string());
    }
    if about.uid() != rustix::process::geteuid().as_raw() {
        return refused(format!("belongs to user {}", about.uid()));
    }
    if about.mode() & 0o077 != 0 {
        return refused(format!("is open to others (mode {:04o})", about.mode() & 0o7777));
    }
    Ok(())
}

/// Listens at `socket`, and takes the place of a dead job's socket there.
pub(crate) fn listen(socket: &Path) -> Result<Listener> {
    secure_folder(socket)?;
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

/// Whether a process of this user is at the other end; over TCP that is proved otherwise.
pub(crate) fn is_ours(stream: &PeerStream) -> bool {
    match stream {
        PeerStream::Tcp(_) => true,
        PeerStream::Unix(stream) => {
            let peer = rustix::net::sockopt::socket_peercred(stream);
            peer.is_ok_and(|peer| peer.uid == rustix::process::geteuid())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use scout_core::ExitCode;

    use super::*;

    #[test]
    fn a_folder_that_others_can_use_is_refused_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        for (mode, is_good) in [(0o700, true), (0o755, false), (0o770, false), (0o701, false), (0o1777, false)] {
            let folder = root.path().join(format!("{mode:o}"));
            fs::create_dir(&folder).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
            match secure_folder(&folder.join("meet.sock")) {
                Ok(()) => assert!(is_good, "{mode:o}"),
                Err(error) => {
                    assert!(!is_good, "{mode:o}: {error}");
                    assert_eq!(error.exit_code(), ExitCode::PermissionDenied);
                    assert!(error.to_string().ends_with(&format!("is open to others (mode {mode:04o})")), "{error}");
                    let expected = format!("run `chmod 700 {}`", folder.display());
                    assert!(error.hint().unwrap().contains(&expected), "{:?}", error.hint());
                }
            }
        }
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path().join("700"), &link).unwrap();
        assert!(secure_folder(&link.join("meet.sock")).unwrap_err().to_string().contains("is not a folder"));
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
