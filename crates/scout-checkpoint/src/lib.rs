//! Model folders and adapters on disk: safetensors in, PEFT adapters in and out, model folders out. Nothing here runs
//! code from a file: there is no pickle reader, no archive reader and no memory map, only JSON and plain bytes.

#![forbid(unsafe_code)]

pub mod adapter;
pub mod error;
pub mod model_folder;
pub mod model_writer;
pub mod raw_file;
pub mod safetensors;

mod atomic_file;
mod disagreement;
mod folder;
mod unique_json;

pub use adapter::{AdapterLayout, AdapterSettings, LoadedAdapter, read_adapter, write_adapter};
pub use atomic_file::{copy_file, free_space};
pub use disagreement::Disagreement;
pub use error::{CheckpointError, Result};
pub use folder::{check_model_file, read_model_json};
pub use model_folder::ModelFolder;
pub use model_writer::{remove_model, write_model, write_typed_model, written_order};
pub use raw_file::{AlignedBuffer, RawFile};
pub use safetensors::{ElementType, TensorEntry, TensorFile, TensorWriter};
