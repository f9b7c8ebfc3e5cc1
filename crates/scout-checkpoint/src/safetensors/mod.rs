//! The safetensors format with every check its text asks for: a length, a JSON header, then plain bytes without holes.
//! No memory map (a file cut by somebody else would kill the process) and no dependence on what the tensors mean.

mod element_type;
mod header;
mod numbers;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use element_type::ElementType;
pub use header::TensorEntry;
pub use reader::TensorFile;
pub use writer::TensorWriter;
