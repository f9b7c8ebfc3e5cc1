//! The arithmetic of the model, one folder per op: `mod.rs` is the contract, `host.rs` computes it on the CPU and
//! `reference.rs` says the same in plain loops for tests. Nothing here knows of layers, ranks or files.
//!
//! On the host no sum depends on how many threads there are: every op returns the same bits on one core and on many.
//! Every op takes batches without tokens.
//!
//! # The GPU path of an op
//!
//! - `kernel.cu` opens with a sentence, includes `prelude.cuh` or `squares.cuh` and nothing else, so that it compiles where
//!   CUDA's headers are missing, and has one `extern "C"` function for each element type, made by a macro from a template.
//!   The build script finds it by its place and builds it in as `cuda::sources::NAME_OF_THE_FOLDER`, another `other.cu` beside it as
//!   `NAME_OF_THE_FOLDER_OTHER`: as machine code for 9.0a and 8.x where it finds CUDA's compiler (`NVCC`, `CUDA_HOME`,
//!   pip's packages, `PATH`; `NVCC=` for none), always as text.
//! - `cuda.rs` takes memory (`device.buffer`), chooses the grid, launches on the compute stream and returns tensors. The
//!   driver knows how many parameters of which sizes a function has, and a launch that differs is refused. What it
//!   cannot know stands in the `SAFETY` comment: which elements a block touches, and who checked that they are there.
//!   Grids are chosen by pure functions, tested without a GPU.
//! - `mod.rs` checks shapes as ever, then asks `check::place`: none is the host, some is the GPU on which all tensors lie,
//!   and tensors that are apart are an error. Nothing moves by itself, and nothing falls back.
//! - Matrix products go to `device.multiply`, which takes windows of larger matrices and can add to what is there.
//! - A case in `selftest/ops.rs` compares it with the host version on fresh inputs, at sizes that fill no vector, no warp
//!   and no block; one in `selftest/large.rs` goes past 2³¹ elements. `selftest/rates.rs` holds its share of the bandwidth.
//!
//! A kernel reads what was queued before it on the compute stream. Work on another stream waits for an event first; memory
//! that it used is given to nobody before it is done, which the arenas see to.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod grouped_matmul;
pub mod lora;
pub mod matmul;
pub mod noise;
pub mod norms;
pub mod qk_position;
pub mod rms_norm;
pub mod router;
pub mod rows;
pub mod selftest;
pub mod swiglu;

mod check;
mod cuda;
mod exp;
mod host;
#[cfg(test)]
mod test_inputs;
#[cfg(test)]
mod thread_tests;

pub type Result<T> = std::result::Result<T, scout_device::DeviceError>;
