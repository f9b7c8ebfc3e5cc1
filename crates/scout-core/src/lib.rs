//! Words every crate shares: ranks, shapes, parameters, units, byte counts, exit codes, names of environment
//! variables, and what keeps a job to its user: the private folder or file, the token. Nothing here computes or speaks
//! to another process.

#![forbid(unsafe_code)]

pub mod adapter;
pub mod bytes;
pub mod causes;
pub mod env;
pub mod exit;
pub mod mesh;
pub mod param;
pub mod private;
pub mod random;
pub mod token;
pub mod whereabouts;

pub use adapter::{LoraModule, Projection};
pub use bytes::ByteCount;
pub use exit::ExitCode;
pub use mesh::{Mesh, Rank};
pub use param::{DType, ParamSpec, Shape, UnitId, UnitSpec};
pub use private::NotPrivate;
pub use random::NoRandomness;
pub use token::{Token, TokenError};
pub use whereabouts::{Diary, Phase, Place, Whereabouts};
