//! Folders that belong to one user alone: one for each job on this host, all of them in one for the user. What ranks
//! leave in them is named here; what they mean by it is not known here.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, geteuid, test_kill_process};
use scout_core::private::expect_private_folder;
use scout_core::random::random;
use scout_core::{NoRandomness, NotPrivate, Place, Rank};

/// A socket's path has room for 108 bytes. The names that we append take less than 56.
const MAX_BASE_BYTES: usize = 44;

/// Where the folders of this user lie: in `TMPDIR`, or in `/tmp` where a socket below `TMPDIR` would have too long a path.
/// Not in `XDG_RUNTIME_DIR`, which is emptied when the user logs out, under the feet of a job that goes on.
pub fn user_folder() -> PathBuf {
    user_folder_in(&std::env::temp_dir())
}

fn user_folder_in(base: &Path) -> PathBuf {
    let base = if base.as_os_str().as_bytes().len() <= MAX_BASE_BYTES { base } else { Path::new("/tmp") };
    base.join(format!("scout-dist-{}", geteuid().as_raw()))
}

/// Makes `folder` unless it is there, and refuses one into which anybody else could have put something.
fn make_private(folder: &Path) -> Result<(), FolderError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => Err(FolderError::create(folder, cause)),
        _ => Ok(expect_private_folder(folder)?),
    }
}

/// File in which a rank keeps its whereabouts.
pub fn place_file(job_folder: &Path, rank: Rank) -> PathBuf {
    job_folder.join(format!("rank-{rank}.place"))
}

/// Socket at which the ranks of a job meet.
pub fn meeting_socket(job_folder: &Path) -> PathBuf {
    job_folder.join("meet.sock")
}

/// File in which rank 0 publishes its address where ranks meet over TCP.
pub fn address_file(job_folder: &Path) -> PathBuf {
    job_folder.join("address")
}

/// The folder of one job; dropping it removes it with everything in it.
#[derive(Debug)]
pub(crate) struct JobFolder {
    path: PathBuf,
    /// Locked as long as the job lives. A process number says less: it may be used again, or be one of another container
    /// that shares the temporary folder.
    _lock: File,
}

impl JobFolder {
    /// Makes one, and first removes those of launchers that were killed.
    pub fn make() -> Result<JobFolder, FolderError> {
        JobFolder::make_in(&user_folder())
    }

    fn make_in(user_folder: &Path) -> Result<JobFolder, FolderError> {
        make_private(user_folder)?;
        remove_abandoned(user_folder);
        let random = u32::from_ne_bytes(random()?);
        let path = user_folder.join(format!("job-{}-{random:08x}", std::process::id()));
        let create = |cause| FolderError::create(&path, cause);
        DirBuilder::new().mode(0o700).create(&path).map_err(create)?;
        let lock = File::open(&path).map_err(create)?;
        lock.lock().map_err(create)?;
        Ok(JobFolder { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where `rank` was when it last said so, if it ever did.
    pub(crate) fn place(&self, rank: Rank) -> Option<Place> {
        Place::from_line(&fs::read_to_string(place_file(&self.path, rank)).ok()?)
    }
}

impl Drop for JobFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next job of this user.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A folder that cannot be read or removed does not keep a job from starting, so failures end nothing here.
fn remove_abandoned(user_folder: &Path) {
    for entry in fs::read_dir(user_folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("job-")?.split('-').next()?.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            // Asked first, so that a folder is left alone in the moment between its making and its locking.
            && test_kill_process(pid).is_err()
            && File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok())
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("could not create the folder `{}`", folder.display())]
    Create {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    NotPrivate(#[from] NotPrivate),
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

impl FolderError {
    fn create(folder: &Path, cause: io::Error) -> FolderError {
        FolderError::Create { folder: folder.to_path_buf(), cause }
    }

    pub fn exit_code(&self) -> scout_core::ExitCode {
        use scout_core::ExitCode;
        match self {
            FolderError::Create { cause, .. } => ExitCode::of_io(cause, ExitCode::CannotCreate),
            FolderError::NotPrivate(cause) => cause.exit_code(),
            FolderError::Random(_) => ExitCode::InputOutput,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            FolderError::Create { .. } => Some("set TMPDIR to a folder in which you may write".to_string()),
            FolderError::NotPrivate(NotPrivate::Open { path, .. }) => {
                Some(format!("remove `{}`, or set TMPDIR to a folder of your own", path.display()))
            }
            FolderError::NotPrivate(NotPrivate::Unseen { .. }) | FolderError::Random(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_job_folder_is_open_to_its_user_alone_and_goes_away_with_its_job() {
        let base = tempfile::tempdir().unwrap();
        let user = base.path().join("user");
        let (one, other) = (JobFolder::make_in(&user).unwrap(), JobFolder::make_in(&user).unwrap());
        assert_ne!(one.path(), other.path());
        for folder in [&user, one.path(), other.path()] {
            assert_eq!(fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        }
        fs::write(one.path().join("address"), "127.0.0.1:1\n").unwrap();
        let path = one.path().to_path_buf();
        drop(one);
        assert!(!path.exists() && other.path().is_dir());
    }

    #[test]
    fn a_folder_open_to_others_is_refused_and_one_that_is_there_is_not() {
        let base = tempfile::tempdir().unwrap();
        let user = base.path().join("user");
        fs::create_dir(&user).unwrap();
        fs::set_permissions(&user, fs::Permissions::from_mode(0o755)).unwrap();
        let error = make_private(&user).unwrap_err();
        assert!(error.to_string().ends_with("is open to other users (mode 755), expected 700"), "{error}");
        assert_eq!(error.exit_code(), scout_core::ExitCode::PermissionDenied);
        let expected = format!("remove `{}`, or set TMPDIR to a folder of your own", user.display());
        assert_eq!(error.hint(), Some(expected));
        fs::set_permissions(&user, fs::Permissions::from_mode(0o700)).unwrap();
        make_private(&user).unwrap();
    }

    #[test]
    fn folders_of_dead_launchers_are_removed_and_those_of_the_living_are_not() {
        let base = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let names = [
            (format!("job-{dead}-1"), false),
            (format!("job-{}-2", std::process::id()), true),
            // Its number is nobody's here, and yet somebody holds it: a launcher in another container.
            (format!("job-{dead}-3"), true),
            ("job-x".to_string(), true),
            ("0a1b2c.sock".to_string(), true),
        ];
        for (name, _) in &names {
            fs::create_dir(base.path().join(name)).unwrap();
            fs::write(base.path().join(name).join("rank-0.place"), "start 0").unwrap();
        }
        let held = File::open(base.path().join(&names[2].0)).unwrap();
        held.lock().unwrap();
        remove_abandoned(base.path());
        for (name, stays) in names {
            assert_eq!(base.path().join(&name).exists(), stays, "{name}");
        }
    }

    #[test]
    fn a_socket_in_a_job_folder_has_a_short_path_wherever_the_temporary_folder_is() {
        for (base, expected) in
            [("/scratch/local", "/scratch/local/scout-dist-"), (&"/long".repeat(9), "/tmp/scout-dist-")]
        {
            let folder = user_folder_in(Path::new(base));
            assert!(folder.to_str().unwrap().starts_with(expected), "{}", folder.display());
        }
        let longest = Path::new(&"/".repeat(MAX_BASE_BYTES)).join("scout-dist-4294967294").join("job-4194304-89abcdef");
        assert!(meeting_socket(&longest).as_os_str().len() < 100);
    }
}
