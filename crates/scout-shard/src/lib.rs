//! ZeRO-3 as values: which bytes each rank keeps (`plan`), the bytes themselves (`store`), where they become whole on a GPU
//! (`ring`) and in which place (`layout`), and the walk through the units in the order of use, which makes each one whole just before it is needed
//! (`walk`). Nothing here knows what a unit computes.

#![forbid(unsafe_code)]

pub mod error;
mod layout;
mod plan;
pub mod ring;
pub mod store;
pub mod walk;

pub use error::{Result, ShardError};
pub use layout::{ring_bytes, with_whole_units};
pub use plan::{Placement, Schedule, ShardPlan, UnitShard, all_resident, none_resident};
pub use ring::Ring;
pub use store::{ReadRange, ShardStore};
pub use walk::{Ahead, Guard, Walk};
