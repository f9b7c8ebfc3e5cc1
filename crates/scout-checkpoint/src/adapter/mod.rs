//! A LoRA adapter as PEFT stores it: file names, tensor names, and the two layouts of stacked experts. The arithmetic
//! of adapters and their training live elsewhere.

mod config;
mod experts;
mod layout;
mod read;
mod settings;
#[cfg(test)]
mod tests;
mod write;

pub use layout::AdapterLayout;
pub use read::{LoadedAdapter, read_adapter};
pub use settings::AdapterSettings;
pub use write::{file_tensors, write_adapter};
