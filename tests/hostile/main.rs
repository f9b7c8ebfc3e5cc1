//! Whether every way of handing the program something bad ends in one clear sentence and the right exit code, with no
//! panic and no half result. What the program does with good input is tested elsewhere.
//!
//! Permissions are not tested here: the superuser, as whom tests often run, may read and write everything, and a case
//! that passes by not running is worse than none. The codes of such failures have unit tests in their crates.

mod adapter;
mod case;
mod command_line;
mod config_json;
mod data;
mod flips;
mod index;
mod place;
mod sound;
mod surgery;
mod tokenizer;
mod weights;
mod yaml;
