//! `cargo xtask`: the checks that every change passes, the same on every machine. It builds and checks; it is no part
//! of the program.

#![forbid(unsafe_code)]

mod gate;
mod kernels;
mod layers;
mod needs;
mod process;
mod release;
mod score;
mod tidy;
mod toolkit;
mod tree;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::gate::Extent;
use crate::workspace::Workspace;

const HELP: &str = "\
usage: cargo xtask COMMAND

  ci                 the whole gate: format, clippy, layers, tidy, kernels, every test; installs nothing
  test --all         the same, after installing what the tests need; also checks the release binary
  test [NAME …]      only the tests, or only those whose names contain NAME
  layers             only the edges between the crates
  tidy               only the promises that a machine can hold
  kernels            only the CUDA sources, compiled for every GPU that the program has machine code for
  bench [NAME …]     the benchmarks
  help               this list";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was asked for passed.
fn run(arguments: Vec<String>) -> Result<bool> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [] | ["help" | "--help" | "-h"] = words[..] {
        println!("{HELP}");
        return Ok(true);
    }
    process::end_children_on_interrupt()?;
    let workspace = Workspace::load()?;
    match words[..] {
        ["ci"] => gate::run(&workspace, Extent::Gate),
        ["test", "--all"] => gate::run(&workspace, Extent::GateAndMachine),
        ["test", ref names @ ..] if !names.iter().any(|name| name.starts_with('-')) => {
            gate::tests_only(&workspace, names)
        }
        ["layers"] => layers::check(&workspace),
        ["tidy"] => tidy::check(&workspace),
        ["kernels"] => kernels::check(&workspace),
        ["bench", ref names @ ..] => gate::bench(&workspace, names),
        _ => bail!("`cargo xtask {}` is no command\n{HELP}", words.join(" ")),
    }
}
