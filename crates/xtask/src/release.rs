//! What users notice before the first step: the size of the binary, and how fast it answers.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

const MAX_BYTES: u64 = 40_000_000;
const MAX_HELP_TIME: Duration = Duration::from_millis(50);
const HELP_RUNS: usize = 5;

pub fn check(workspace: &Workspace) -> Result<bool> {
    let mut build = workspace.cargo(&["build", "--release", "-p", "scout-cli"]);
    if !process::run(&mut build, process::KILL_TIME, &mut |_| {})? {
        return Ok(false);
    }
    let program = workspace.target.join("release").join("scout-dist");
    Ok(is_small(&program, MAX_BYTES)? & answers_at_once(&program, &["--help"])?)
}

fn is_small(program: &Path, limit: u64) -> Result<bool> {
    let bytes = program.metadata().with_context(|| format!("could not find `{}`", program.display()))?.len();
    println!("the release binary has {:.1} MB, expected less than {:.0} MB", bytes as f64 / 1e6, limit as f64 / 1e6);
    Ok(bytes < limit)
}

/// The best of several runs, because the first one reads the file from disk and others may use the machine.
fn answers_at_once(program: &Path, arguments: &[&str]) -> Result<bool> {
    let mut best = Duration::MAX;
    for _ in 0..HELP_RUNS {
        let started = Instant::now();
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().with_context(|| format!("could not start `{}`", program.display()))?;
        if !status.success() {
            println!("`{}` ended with {status}, expected success", arguments.join(" "));
            return Ok(false);
        }
        best = best.min(started.elapsed());
    }
    println!("`{}` takes {best:.1?} (best of {HELP_RUNS}), expected less than {MAX_HELP_TIME:?}", arguments.join(" "));
    Ok(best < MAX_HELP_TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_past_the_limit_is_refused_and_a_missing_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, [0; 100]).unwrap();
        assert!(is_small(&program, 101).unwrap());
        assert!(!is_small(&program, 100).unwrap());
        assert!(is_small(&folder.path().join("none"), 100).is_err());
    }

    #[test]
    fn a_slow_or_failing_help_is_refused() {
        for (program, arguments, expected) in
            [("/bin/true", &[][..], true), ("/bin/false", &[], false), ("/bin/sleep", &["0.2"], false)]
        {
            assert_eq!(answers_at_once(Path::new(program), arguments).unwrap(), expected, "{program}");
        }
        assert!(answers_at_once(Path::new("/no/such/program"), &[]).is_err());
    }
}
