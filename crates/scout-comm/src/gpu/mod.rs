//! What ranks do together that each have a GPU of one host. Floors, from the ground up: `exchange`, few bytes of all ranks;
//! `gather`, what bringing the parts of a unit together means; `copy` and `nccl`, which do it; `group`, by which trained
//! numbers are summed; `ways`, with the memory that each way needs; `trial`, which finds the fastest one.

mod copy;
mod exchange;
mod gather;
mod group;
mod nccl;
mod trial;
mod ways;

pub use gather::Gather;
pub use group::GpuGroup;
pub use trial::{Chosen, Wish, choose};
pub use ways::{GatherMemory, Ranks, Way};
