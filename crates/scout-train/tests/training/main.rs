//! Training as its caller sees it: updates, ranks, plans, evaluation and the folder a run leaves behind, on a tiny model
//! of random weights. What single operations compute is tested where they are.

#![forbid(unsafe_code)]

mod accumulation;
mod bench;
mod evaluation;
mod full_oracle;
mod full_ranks;
mod full_runs;
mod not_a_number;
mod plans;
mod ranks;
mod reproducible;
mod run_folder;
mod step_bench;
mod ways;
