//! Words every crate shares: ranks, shapes, parameters, units, byte counts, exit codes, names of environment
//! variables. Nothing here computes, allocates or speaks to anybody.

#![forbid(unsafe_code)]

pub mod adapter;
pub mod bytes;
pub mod causes;
pub mod env;
pub mod exit;
pub mod mesh;
pub mod param;
pub mod whereabouts;

pub use adapter::{LoraModule, Projection};
pub use bytes::ByteCount;
pub use exit::ExitCode;
pub use mesh::{Mesh, Rank};
pub use param::{DType, ParamSpec, Shape, UnitId, UnitSpec};
pub use whereabouts::{Phase, Place, Whereabouts};
