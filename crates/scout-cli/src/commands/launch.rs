//! `launch`: starts the ranks of another command on this host. How they find each other, and what they compute, is
//! theirs.

use std::ffi::OsString;
use std::process::ExitCode as ProcessExitCode;

use scout_core::causes::with_causes;
use scout_core::{ExitCode, env};
use scout_launch::{Launch, Lines};

use crate::failure::Mistake;
use crate::ranks::{self, Launcher};
use crate::surroundings;

#[derive(clap::Args)]
pub struct Arguments {
    /// Number of ranks to start
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    ranks: u16,
    /// Let the ranks meet over TCP on the loopback interface instead of at a Unix socket
    #[arg(long)]
    tcp: bool,
    /// What every rank does, as after `scout-dist`: train run.yaml learning_rate=1e-4
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Arguments {
    /// The command line of each rank.
    pub fn of_a_rank(&self) -> impl Iterator<Item = OsString> {
        std::iter::once(OsString::from("scout-dist")).chain(self.command.iter().cloned())
    }

    /// Ranks of ranks would each be rank 0 of a job of their own, and write into one folder.
    pub fn refuse_to_nest(&self) -> Result<(), Mistake> {
        let refuse = |message: String| Err(Mistake { message, code: ExitCode::Usage, hint: None });
        if self.command.first().is_some_and(|word| word == "launch") {
            return refuse("`launch` cannot start `launch`".to_string());
        }
        let seat = ranks::seat(&surroundings::variable)?;
        if seat.launcher == Launcher::Own || seat.world_size > 1 {
            let ranks::Seat { launcher, rank, world_size, .. } = seat;
            return refuse(format!(
                "`launch` is itself rank {rank} of {world_size}, started by {launcher}: start ranks once"
            ));
        }
        Ok(())
    }
}

/// Returns when no rank is left, with the code of the rank that failed first.
pub fn run(arguments: Arguments) -> anyhow::Result<ProcessExitCode> {
    let variables = if arguments.tcp { vec![(env::TRANSPORT, "tcp".to_string())] } else { Vec::new() };
    Ok(exit_code(start(arguments.ranks.into(), arguments.command, variables)?))
}

/// Starts ranks of this program and returns the code of the first that failed, or 0.
pub fn start(
    num_ranks: usize,
    arguments: Vec<OsString>,
    variables: Vec<(&'static str, String)>,
) -> anyhow::Result<i32> {
    let lines = Lines::Labelled;
    wait_for(&Launch { program: std::env::current_exe()?, arguments, num_ranks, variables, lines })
}

/// Starts what `launch` says and returns the code of the first rank that failed, or 0.
pub fn wait_for(launch: &Launch) -> anyhow::Result<i32> {
    let code = scout_launch::launch(launch).map_err(|error| Mistake {
        message: with_causes(&error),
        code: error.exit_code(),
        hint: error.hint(),
    })?;
    Ok(code)
}

pub fn exit_code(code: i32) -> ProcessExitCode {
    ProcessExitCode::from(u8::try_from(code).expect("a process ends with a byte"))
}
