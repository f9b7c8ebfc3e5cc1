//! Starts the ranks of one host as children of one process, passes on what they say and the signals it gets, and ends
//! them together. It does not decide whether a run is started again, and knows nothing of other hosts.

#![forbid(unsafe_code)]

mod folder;
mod output;
mod ranks;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use scout_core::{ExitCode, NoRandomness, Rank, Token, env};

use crate::folder::JobFolder;
pub use crate::folder::{FolderError, address_file, meeting_socket, place_file, user_folder};
use crate::output::Output;
use crate::ranks::Ranks;

/// What is started, and how often.
pub struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub num_ranks: usize,
    /// Set for every rank, besides those that say which rank it is.
    pub variables: Vec<(&'static str, String)>,
    pub lines: Lines,
}

/// What becomes of the lines of more than one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// Each is passed on with `[rank N]` in front.
    Labelled,
    /// The ranks write where this process writes: for commands of which one rank alone speaks.
    Plain,
}

impl Launch {
    fn is_labelled(&self) -> bool {
        self.num_ranks > 1 && self.lines == Lines::Labelled
    }
}

/// Starts all ranks and waits for all of them.
///
/// Each finds its rank, world size and local rank in its environment, a folder of the job (removed in the end, however
/// the job ends), a secret made for this job, and the number of this process: a rank whose parent is another process
/// has been left alone.
///
/// With more than one rank the lines of the children are passed on as `lines` says. When a rank fails the others
/// get a moment to leave by themselves, are asked to end, and are killed, all within two seconds. Returns 0 when all
/// ranks succeeded; otherwise the code of the rank that failed first (76 when a signal killed it), where a rank that
/// only reports a lost peer, or that the job was preempted, does not count as the first. SIGINT, SIGTERM and SIGHUP are
/// passed on to the ranks and begin the end; a rank that they kill counts 128 + the signal. SIGUSR1 and SIGUSR2 are
/// passed on and mean what the ranks make of them.
///
/// The calling thread starts the ranks and stays until the last is gone. It must be the main thread, or one that lives
/// as long: a rank asks the kernel to be killed with its parent, and the kernel takes the thread for the parent.
pub fn launch(launch: &Launch) -> Result<i32, LaunchError> {
    launch_into(launch, &Output::of_this_process())
}

fn launch_into(launch: &Launch, output: &Output) -> Result<i32, LaunchError> {
    if launch.num_ranks == 0 {
        return Err(LaunchError::NoRanks);
    }
    let token = Token::generate()?;
    let mut ranks = Ranks::listening(JobFolder::make()?).map_err(LaunchError::Signals)?;
    let mut readers = Vec::new();
    for rank in (0..launch.num_ranks).map(Rank) {
        let mut child = spawn(launch, rank, ranks.folder(), &token).map_err(|cause| LaunchError::Spawn {
            program: launch.program.clone(),
            rank,
            cause,
        })?;
        if launch.is_labelled() {
            readers.extend(output.follow(rank, &mut child));
        }
        ranks.push(child);
    }
    let code = ranks.wait_for_all(output);
    // A grandchild may keep a pipe open after its rank is gone, so the last lines are waited for only so long.
    output::finish(readers);
    Ok(code)
}

fn spawn(launch: &Launch, rank: Rank, job_folder: &Path, token: &Token) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .envs(launch.variables.iter().map(|(name, value)| (name, value)))
        .env(env::RANK, rank.to_string())
        .env(env::LOCAL_RANK, rank.to_string())
        .env(env::WORLD_SIZE, launch.num_ranks.to_string())
        .env(env::JOB_FOLDER, job_folder)
        .env(env::LAUNCHER_PID, std::process::id().to_string())
        // In the environment, which only this user can read, and not among the arguments, which everybody can.
        .env(env::TOKEN, token.to_hex())
        // One job, one secret: that of another job may lie in a file.
        .env_remove(env::TOKEN_FILE)
        .stdin(Stdio::null())
        // A group of its own: Ctrl-C reaches a rank once, through the launcher, and a rank is killed with its children.
        .process_group(0);
    if launch.is_labelled() {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    command.spawn()
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the number of ranks is 0, expected at least 1")]
    NoRanks,
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    NoToken(#[from] NoRandomness),
    #[error("could not start rank {rank} of `{}`", program.display())]
    Spawn {
        program: PathBuf,
        rank: Rank,
        #[source]
        cause: io::Error,
    },
    #[error("could not listen for signals")]
    Signals(#[source] io::Error),
}

impl LaunchError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            LaunchError::NoRanks => ExitCode::Usage,
            LaunchError::Folder(error) => error.exit_code(),
            LaunchError::Spawn { cause, .. } => ExitCode::of_io(cause, ExitCode::MissingInput),
            LaunchError::NoToken(_) | LaunchError::Signals(_) => ExitCode::InputOutput,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            LaunchError::Folder(error) => error.hint(),
            LaunchError::Spawn { cause, .. } if cause.kind() == io::ErrorKind::WouldBlock => {
                Some("raise the limit of processes (`ulimit -u`) or start fewer ranks".to_string())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
