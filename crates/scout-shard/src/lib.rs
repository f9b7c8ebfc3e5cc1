//! ZeRO-3 as values: which bytes each rank keeps (`plan`), the bytes themselves (`store`), and the walk through the
//! units in the order of use, which makes each one whole just before it is needed (`walk`). Nothing here knows what a
//! unit computes.

#![forbid(unsafe_code)]

pub mod error;
pub mod plan;
pub mod store;
pub mod walk;

pub use error::{Result, ShardError};
pub use plan::{Placement, Schedule, ShardPlan, UnitShard, WeightsMode};
pub use store::{ReadRange, ShardStore};
pub use walk::{Guard, Walk};
