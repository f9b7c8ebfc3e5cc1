//! What ranks do together that each have a GPU of one host. Floors, from the ground up: `exchange`, whether all ranks can go
//! on; `gather`, what bringing the parts of a unit together means; `mapped`, memory that ranks show each other; `pull`, `push`
//! and `nccl`, which gather; `group`, by which trained numbers are summed; `ways`, with the memory that each way needs;
//! `open_way`, a way at work, and how all ranks end it; `trial`, which finds the fastest one, by what was `measured` of them; and
//! beside them `rows`, which go to experts in place of units that come; `waits`, how long arithmetic stood still.

mod exchange;
mod gather;
mod group;
mod mapped;
mod measured;
mod nccl;
mod open_way;
mod own_part;
mod pull;
mod push;
mod rows;
mod trial;
mod waits;
mod ways;

pub use gather::Part;
pub use group::{GpuGroup, SUM};
pub use mapped::see_each_other;
pub use measured::Measured;
pub use nccl::connect;
pub use open_way::{Arriving, OpenWay};
pub use rows::{RowsOnGpus, RowsSize};
pub use trial::{Chosen, Sample, Wish, choose};
pub use waits::Waits;
pub use ways::{GatherMemory, GatherWay, Ranks};
