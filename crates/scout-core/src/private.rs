//! Whether a folder or a file belongs to this user alone. One into which anybody else could have put something, or from
//! which anybody else could have read, is refused.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::exit::ExitCode;

#[derive(Debug, thiserror::Error)]
pub enum NotPrivate {
    #[error("could not look at `{}`", path.display())]
    Unseen {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("`{}` {problem}", path.display())]
    Open {
        path: PathBuf,
        problem: String,
        /// What `chmod` is told to mend it; none where it is of another kind, which no mode mends.
        mode: Option<u32>,
    },
}

/// Refuses a folder that others can use.
pub fn expect_private_folder(folder: &Path) -> Result<(), NotPrivate> {
    // Not the target of a link: whoever made the link could make it point elsewhere afterwards.
    let about = fs::symlink_metadata(folder).map_err(|cause| NotPrivate::unseen(folder, cause))?;
    expect(folder, &about, ("folder", about.is_dir()), 0o700)
}

/// Refuses the open `file` if others can use it. `path` is its name for the message: the file itself is asked, so that
/// nobody can exchange it in between.
pub fn expect_private_file(file: &File, path: &Path) -> Result<(), NotPrivate> {
    let about = file.metadata().map_err(|cause| NotPrivate::unseen(path, cause))?;
    expect(path, &about, ("plain file", about.is_file()), 0o600)
}

fn expect(path: &Path, about: &Metadata, (kind, is_kind): (&str, bool), mode: u32) -> Result<(), NotPrivate> {
    let (uid, found) = (geteuid().as_raw(), about.mode() & 0o7777);
    if !is_kind {
        return Err(NotPrivate::Open { path: path.to_path_buf(), problem: format!("is no {kind}"), mode: None });
    }
    let problem = if about.uid() != uid {
        format!("belongs to user {}, expected {uid}", about.uid())
    } else if found & 0o077 != 0 {
        format!("is open to other users (mode {found:03o}), expected {mode:o}")
    } else {
        return Ok(());
    };
    Err(NotPrivate::Open { path: path.to_path_buf(), problem, mode: Some(mode) })
}

impl NotPrivate {
    fn unseen(path: &Path, cause: io::Error) -> NotPrivate {
        NotPrivate::Unseen { path: path.to_path_buf(), cause }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            NotPrivate::Unseen { cause, .. } => ExitCode::of_io(cause, ExitCode::InputOutput),
            NotPrivate::Open { .. } => ExitCode::PermissionDenied,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            NotPrivate::Unseen { .. } => None,
            NotPrivate::Open { mode: None, .. } => Some("choose another".to_string()),
            NotPrivate::Open { path, mode: Some(mode), .. } => {
                Some(format!("own it and run `chmod {mode:o} {}`, or choose another", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// Gives `path` one mode after the other and compares what is said about it.
    fn check(path: &Path, modes: &[(u32, Option<&str>)], look: impl Fn() -> Result<(), NotPrivate>) {
        for (mode, problem) in modes {
            fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
            let found = look().map_err(|error| (error.to_string(), error.exit_code()));
            let expected = problem
                .map_or(Ok(()), |problem| Err((format!("`{}` {problem}", path.display()), ExitCode::PermissionDenied)));
            assert_eq!(found, expected, "{mode:o}");
        }
    }

    #[test]
    fn a_folder_that_others_can_use_is_refused_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let look = || expect_private_folder(&folder);
        let modes = [
            (0o755, Some("is open to other users (mode 755), expected 700")),
            (0o770, Some("is open to other users (mode 770), expected 700")),
            (0o701, Some("is open to other users (mode 701), expected 700")),
            (0o1777, Some("is open to other users (mode 1777), expected 700")),
        ];
        check(&folder, &modes, look);
        let expected = format!("own it and run `chmod 700 {}`, or choose another", folder.display());
        assert_eq!(look().unwrap_err().hint(), Some(expected));
        check(&folder, &[(0o700, None), (0o500, None)], look);
        if geteuid().is_root() {
            chown(&folder, Some(65534), None).unwrap();
            check(&folder, &[(0o700, Some("belongs to user 65534, expected 0"))], look);
            chown(&folder, Some(0), None).unwrap();
        }
        let (link, file, none) = (root.path().join("link"), root.path().join("file"), root.path().join("none"));
        symlink(&folder, &link).unwrap();
        fs::write(&file, "").unwrap();
        for path in [link, file] {
            let error = expect_private_folder(&path).unwrap_err();
            assert_eq!(error.to_string(), format!("`{}` is no folder", path.display()));
        }
        let missing = expect_private_folder(&none).unwrap_err();
        assert_eq!(missing.to_string(), format!("could not look at `{}`", none.display()));
        assert_eq!((missing.exit_code(), missing.hint()), (ExitCode::InputOutput, None));
    }

    #[test]
    fn a_file_that_others_can_use_is_refused_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "").unwrap();
        let file = File::open(&path).unwrap();
        let look = || expect_private_file(&file, &path);
        let modes = [
            (0o600, None),
            (0o400, None),
            (0o640, Some("is open to other users (mode 640), expected 600")),
            (0o604, Some("is open to other users (mode 604), expected 600")),
        ];
        check(&path, &modes, look);
        let expected = format!("own it and run `chmod 600 {}`, or choose another", path.display());
        assert_eq!(look().unwrap_err().hint(), Some(expected));
        let folder = File::open(root.path()).unwrap();
        let error = expect_private_file(&folder, root.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("`{}` is no plain file", root.path().display()));
    }
}
