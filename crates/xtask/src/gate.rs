//! The gate: every check in order, all of them even when one fails, and one line with the sum at the end.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::process;
use crate::score::{Score, TestTally};
use crate::workspace::Workspace;
use crate::{kernels, layers, needs, release, tidy};

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Gate,
    /// Also installs what is missing, and checks the release binary.
    GateAndMachine,
}

/// The variable by which tests find the program, as in `scout_core::env::TEST_BINARY`.
const TEST_BINARY: &str = "SCOUT_DIST_BIN";
/// The same for the program with MPI in it, as in `scout_core::env::TEST_MPI_BINARY`.
const TEST_MPI_BINARY: &str = "SCOUT_DIST_MPI_BIN";

/// The packages that can be built with MPI in them, built so.
const WITH_MPI: &[&str] = &[
    "-p",
    "scout-comm",
    "-p",
    "scout-cli",
    "-p",
    "scout-tests",
    "--features",
    "scout-comm/mpi,scout-cli/mpi,scout-tests/mpi",
];

/// Runs the whole gate. The last line printed is `N passed, N failed`; whether none failed is returned.
pub fn run(workspace: &Workspace, extent: Extent) -> Result<bool> {
    let mut report = Report::default();
    if extent == Extent::GateAndMachine {
        report.step("what the tests need", || needs::provide(workspace))?;
    }
    report.step("format", || cargo(workspace, &["fmt", "--all", "--check"]))?;
    report.step("clippy", || cargo(workspace, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    report.step("clippy with MPI", || {
        cargo(workspace, &[&["clippy"], WITH_MPI, &["--all-targets", "--", "-D", "warnings"]].concat())
    })?;
    report.step("layers", || layers::check(workspace))?;
    report.step("tidy", || tidy::check(workspace))?;
    report.step(&format!("CUDA sources compile for {}", kernels::architectures()), || kernels::check(workspace))?;
    build_and_test(workspace, &[], &mut report)?;
    if extent == Extent::GateAndMachine {
        report.step("release binary", || release::check(workspace))?;
    }
    Ok(report.end())
}

/// Only the tests, or those whose names contain one of `names`.
pub fn tests_only(workspace: &Workspace, names: &[&str]) -> Result<bool> {
    let mut report = Report::default();
    build_and_test(workspace, names, &mut report)?;
    Ok(report.end())
}

pub fn bench(workspace: &Workspace, names: &[&str]) -> Result<bool> {
    cargo(workspace, &[&["bench", "-p", "scout-benches", "--"], names].concat())
}

fn build_and_test(workspace: &Workspace, names: &[&str], report: &mut Report) -> Result<()> {
    // Built once here: a test that built it itself would wait for cargo's lock, or test an old one. The one with MPI in
    // it comes first and is put aside, because both have one name and the last one built keeps it.
    report.step("build the program with MPI in it", || {
        Ok(cargo(workspace, &["build", "-p", "scout-cli", "--features", "mpi"])? && put_aside(workspace)?)
    })?;
    let is_built = report.step("build the program", || cargo(workspace, &["build", "-p", "scout-cli"]))?;
    if !is_built {
        println!("the tests are not run, because the program they start could not be built");
        return Ok(());
    }
    // Every crate's unit, integration and documentation tests; one that fails does not stop the others.
    test(workspace, "tests", &[&["--workspace", "--no-fail-fast", "--"], names].concat(), report)?;
    if names.is_empty() {
        let of_mpi = &["--no-fail-fast", "--test", "collectives", "--", "mpi::"];
        test(workspace, "collectives over MPI", &[WITH_MPI, of_mpi].concat(), report)?;
    }
    Ok(())
}

fn test(workspace: &Workspace, name: &str, arguments: &[&str], report: &mut Report) -> Result<()> {
    report.open(name);
    let mut command = workspace.cargo(&[&["test"], arguments].concat());
    command.env(TEST_BINARY, program(workspace)).env(TEST_MPI_BINARY, mpi_program(workspace));
    let mut tally = TestTally::default();
    let succeeded = process::run(&mut command, process::KILL_TIME, &mut |line| tally.hear(line))?;
    report.close(name, tally.end(succeeded));
    Ok(())
}

fn program(workspace: &Workspace) -> PathBuf {
    workspace.target.join("debug").join("scout-dist")
}

fn mpi_program(workspace: &Workspace) -> PathBuf {
    program(workspace).with_file_name("scout-dist-mpi")
}

fn put_aside(workspace: &Workspace) -> Result<bool> {
    let (built, kept) = (program(workspace), mpi_program(workspace));
    std::fs::copy(&built, &kept).with_context(|| format!("could not copy `{}`", built.display()))?;
    Ok(true)
}

fn cargo(workspace: &Workspace, arguments: &[&str]) -> Result<bool> {
    process::run(&mut workspace.cargo(arguments), process::KILL_TIME, &mut |_| {})
}

/// What was checked so far.
#[derive(Default)]
struct Report {
    score: Score,
    failed_steps: Vec<String>,
    opened: Option<Instant>,
}

impl Report {
    /// One check that passes or fails as a whole. An error that keeps it from running ends the gate.
    fn step(&mut self, name: &str, check: impl FnOnce() -> Result<bool>) -> Result<bool> {
        self.open(name);
        let passed = check()?;
        self.close(name, Score::of(passed));
        Ok(passed)
    }

    fn open(&mut self, name: &str) {
        println!("== {name}");
        self.opened = Some(Instant::now());
    }

    fn close(&mut self, name: &str, score: Score) {
        let seconds = self.opened.take().map_or(0.0, |opened| opened.elapsed().as_secs_f64());
        let word = if score.failed == 0 { "ok" } else { "FAILED" };
        println!("== {name}: {word} ({seconds:.1} s)\n");
        if score.failed > 0 {
            self.failed_steps.push(name.to_string());
        }
        self.score += score;
    }

    /// Prints the sum as the last line and says whether nothing failed.
    fn end(self) -> bool {
        if !self.failed_steps.is_empty() {
            println!("failed: {}", self.failed_steps.join(", "));
        }
        println!("{}", self.score);
        self.score.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_counts_and_one_failure_fails_the_gate() {
        let mut report = Report::default();
        assert!(report.step("format", || Ok(true)).unwrap());
        assert!(!report.step("tidy", || Ok(false)).unwrap());
        report.open("tests");
        report.close("tests", Score { passed: 10, failed: 0, skipped: 2 });
        assert_eq!(report.failed_steps, ["tidy"]);
        assert_eq!(report.score.to_string(), "11 passed, 1 failed, 2 skipped");
        assert!(!report.end());
    }

    #[test]
    fn a_gate_without_failures_passes() {
        let mut report = Report::default();
        report.step("format", || Ok(true)).unwrap();
        assert!(report.end());
    }

    #[test]
    fn an_error_that_keeps_a_check_from_running_is_no_pass() {
        let mut report = Report::default();
        assert!(report.step("format", || anyhow::bail!("could not start cargo")).is_err());
        assert_eq!(report.score, Score::default());
    }
}
