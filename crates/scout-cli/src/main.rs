//! The program `scout-dist`: reads the command line and the environment, calls one command, and turns what went wrong
//! into a sentence and an exit code. What a command does lives below.

#![forbid(unsafe_code)]

mod build_info;
mod commands;
mod failure;
mod joined;
mod ranks;
mod surroundings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::configuration::ConfigArguments;
use commands::{bench, demo, launch, plan, preprocess, selftest, synth, train, verify};

/// Fine-tunes Llama 4 Scout with LoRA: one worker per GPU, every worker holding its shard.
#[derive(Parser)]
#[command(name = "scout-dist", version = build_info::VERSION, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a tiny Scout and toy conversations, train on them, prove the adapter
    Demo(demo::Arguments),
    /// Train as a YAML file says
    Train(ConfigArguments),
    /// Start several ranks of a command on this host, one process each, and end them together
    Launch(launch::Arguments),
    /// Print what a run would do and need, without weights and without a GPU
    Plan(plan::Arguments),
    /// Compare a folder of recorded reference numbers with what this program computes
    Verify(verify::Arguments),
    /// Write a model folder with random weights, a tokenizer and toy data
    Synth(synth::Arguments),
    /// Show rows as the model sees them, tokens marked by whether they are learned
    Preprocess(preprocess::Arguments),
    /// Measure parts of the program on this machine
    Bench(bench::Arguments),
    /// Compare what a GPU computes with what the host computes
    #[command(hide = true)]
    Selftest(selftest::Arguments),
}

fn main() -> ExitCode {
    failure::speak_plainly_of_bugs();
    if let Err(error) = surroundings::begin_as_one_of_several() {
        failure::leave(&error.into());
    }
    if let Err(alone) = ranks::tie_to_parent(&surroundings::variable) {
        failure::leave(&alone.into());
    }
    let arguments = Arguments::parse();
    match std::panic::catch_unwind(|| run(arguments.command)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => failure::leave(&error),
        Err(_) => failure::leave_at_once(scout_core::ExitCode::Internal.code().into()),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let code = match command {
        Command::Launch(arguments) => {
            arguments.refuse_to_nest()?;
            // A command line that no rank would understand is refused once and not once for each rank.
            Arguments::parse_from(arguments.of_a_rank());
            // Its ranks may leave with codes that are none of ours.
            return launch::run(arguments);
        }
        Command::Demo(arguments) => return demo::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Verify(arguments) => return verify::run(&arguments),
        Command::Synth(arguments) => synth::run(&arguments),
        Command::Preprocess(arguments) => preprocess::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Selftest(arguments) => selftest::run(&arguments),
    }?;
    Ok(ExitCode::from(code.code()))
}
