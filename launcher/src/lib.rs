//! Starts the ranks of one host as children of one process, passes on what they say and the signals it gets, and ends
//! them together. It does not decide whether a run is started again, and knows nothing of other hosts.

#![forbid(unsafe_code)]

mod output;
mod ranks;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use scout_core::{ExitCode, Rank, env};

use crate::output::Output;
use crate::ranks::Ranks;

/// Starts `num_ranks` times `program arguments…` with rank, world size and local rank in the environment, and waits for
/// all of them.
///
/// With more than one rank every line of a child is passed on with `[rank N]` in front. When a rank fails the others
/// get a moment to leave by themselves, are asked to end, and are killed. Returns 0 when all ranks succeeded; otherwise
/// the code of the rank that failed first (76 when a signal killed it), where a rank that only reports a lost peer does
/// not count as the first. SIGINT, SIGTERM and SIGHUP are passed on to the ranks; a rank that they kill counts 128 + the
/// signal.
pub fn launch(program: &Path, arguments: &[OsString], num_ranks: usize) -> Result<i32, LaunchError> {
    launch_into(program, arguments, num_ranks, &Output::of_this_process())
}

fn launch_into(program: &Path, arguments: &[OsString], num_ranks: usize, output: &Output) -> Result<i32, LaunchError> {
    if num_ranks == 0 {
        return Err(LaunchError::NoRanks);
    }
    let mut ranks = Ranks::listening().map_err(LaunchError::Signals)?;
    let mut readers = Vec::new();
    for index in 0..num_ranks {
        let mut child = spawn(program, arguments, Rank(index), num_ranks).map_err(|cause| LaunchError::Spawn {
            program: program.to_path_buf(),
            rank: Rank(index),
            cause,
        })?;
        if num_ranks > 1 {
            readers.extend(output.follow(Rank(index), &mut child));
        }
        ranks.push(child);
    }
    let code = ranks.wait_for_all(output);
    // A grandchild may keep a pipe open after its rank is gone, so the last lines are waited for only so long.
    output::finish(readers);
    Ok(code)
}

fn spawn(program: &Path, arguments: &[OsString], rank: Rank, num_ranks: usize) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env(env::RANK, rank.to_string())
        .env(env::LOCAL_RANK, rank.to_string())
        .env(env::WORLD_SIZE, num_ranks.to_string())
        .stdin(Stdio::null())
        // A group of its own: Ctrl-C reaches a rank once, through the launcher, and a rank is killed with its children.
        .process_group(0);
    if num_ranks > 1 {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    command.spawn()
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the number of ranks is 0, expected at least 1")]
    NoRanks,
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
            LaunchError::Spawn { cause, .. } => ExitCode::of_io(cause, ExitCode::MissingInput),
            LaunchError::Signals(_) => ExitCode::InputOutput,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            LaunchError::Spawn { cause, .. } if cause.kind() == io::ErrorKind::WouldBlock => {
                Some("raise the limit of processes (`ulimit -u`) or start fewer ranks".to_string())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
