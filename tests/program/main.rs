//! Whether the program does what it promises, started as users start it: from its command line, on folders, with the
//! files it leaves behind as the only witnesses. What it does with bad input is tested beside this.

mod bench;
mod bench_load;
mod configs;
mod demo;
mod folder;
mod help;
mod launch_command;
mod plan;
mod preprocess;
mod run_folder;
mod sources;
mod synth;
mod trained;
mod variants;
mod verify;
