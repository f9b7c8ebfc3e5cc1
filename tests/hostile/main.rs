//! Whether every way of handing the program something bad ends in one clear sentence and the right exit code, with no
//! panic and no half result. What the program does with good input is tested elsewhere.

mod adapter;
mod case;
mod command_line;
mod config_json;
mod data;
mod index;
mod place;
mod sound;
mod surgery;
mod tokenizer;
mod weights;
mod yaml;
