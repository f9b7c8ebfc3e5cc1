//! One module for each command, and what several of them share.

pub mod bench;
pub mod configuration;
pub mod demo;
pub mod launch;
mod machine;
mod output;
pub mod plan;
pub mod preprocess;
mod results;
pub mod selftest;
pub mod synth;
pub mod train;
pub mod verify;
