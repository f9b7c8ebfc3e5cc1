//! NVIDIA GPUs. Three levels: `tables.rs` is raw, every answer is checked where a call is made, and what leaves this
//! module is safe but for launching kernels, whose author promises what they do.
//!
//! Floors, from the ground up: libraries and their functions (`foreign`, `nccl_config`, `tables`, `libraries`); the
//! driver's objects (`context`, `stream`, `arena`, `pinned`) and NCCL's (`communicator`, `nccl_window`); what works on
//! addresses (`kernels`, `blas`, `dnn`) and what is kept between uses (`uploads`, `envelopes`, `profile`); `device`, which
//! owns one of each; `region` and the crate's tensors, which lie on a device; on top of them what a device does with
//! tensors (`memory`, `transfers`, `numbers`, `tensor_map`, `launch`, `multiply`, `attention`); and what several devices do
//! together (`peers`, `nccl`).
//!
//! Everything compiles on machines without CUDA; libraries are looked for when a device is opened.

mod arena;
pub mod attention;
mod blas;
mod communicator;
mod context;
pub(crate) mod device;
pub mod dnn;
mod envelopes;
mod foreign;
mod free_list;
mod kernels;
mod launch;
mod libraries;
mod memory;
mod multiply;
pub mod nccl;
mod nccl_config;
mod nccl_window;
mod numbers;
mod nvml;
mod nvrtc;
mod peers;
mod pinned;
mod product;
mod profile;
pub(crate) mod region;
mod source;
mod stream;
mod tables;
mod tensor_map;
mod transfers;
mod uploads;

pub use arena::{Arena, Block};
pub use blas::{Choice, Trial};
pub use context::{Context, Properties, SteadyStep};
pub use device::{CudaDevice, CudaOptions};
pub use free_list::FreeList;
pub use kernels::{Grid, Kernel};
pub use launch::Argument;
pub use libraries::{Found, Search};
pub use memory::DeviceBuffer;
pub use multiply::{Factor, Scale, Window};
pub use nccl::{Nccl, NcclId, Settings};
pub use numbers::Numbers;
pub use nvml::{Gauge, Reading};
pub use peers::{ArenaHandle, Flags, PeerArena};
pub use pinned::{Copying, Pinned};
pub use product::{FactorForm, Problem};
pub use profile::{Product, Share, Timed};
pub use source::{Image, KernelSource};
pub use stream::{Event, MOST_QUEUES, Priority, QUEUES, Stream};
pub use tensor_map::TensorMap;
