//! NVIDIA GPUs. Three levels: `tables.rs` is raw, every answer is checked where a call is made, and what leaves this
//! module is safe but for launching kernels, whose author promises what they do.
//!
//! Everything compiles on machines without CUDA; libraries are looked for when a device is opened.

mod arena;
mod blas;
mod context;
mod device;
pub mod dnn;
mod foreign;
mod free_list;
mod launch;
mod libraries;
pub(crate) mod memory;
mod numbers;
mod nvml;
mod nvrtc;
mod pinned;
mod product;
mod profile;
mod stream;
mod tables;
mod uploads;

pub use arena::{Arena, Block};
pub use blas::{Choice, Factor, Scale, Trial, Window};
pub use context::{Context, Properties, SteadyStep};
pub use device::{CudaDevice, CudaOptions};
pub use launch::{Argument, Grid, Image, Kernel, KernelSource};
pub use libraries::{Found, Search};
pub use memory::DeviceBuffer;
pub use numbers::Numbers;
pub use nvml::{Gauge, Reading};
pub use pinned::{Copying, Pinned};
pub use product::{FactorForm, Problem};
pub use profile::Share;
pub use stream::{Event, Priority, Stream};
