//! Memory and devices: tensors, owned buffers, the account of where the bytes are, and GPUs. All foreign calls of the
//! program live in this crate; everything above it names devices only through [`Device`].

pub mod account;
pub mod buffer;
pub mod cuda;
pub mod device;
pub mod error;
pub mod host;
pub mod matrices;
pub mod row_exchange;
pub mod tensor;
pub mod weights;

pub use account::{Account, Lease, Purpose};
pub use buffer::Buffer;
pub use device::Device;
pub use error::{DeviceError, Result};
pub use matrices::Matrices;
pub use row_exchange::{Counts, Dealt, Evenness, Piece, Round, RowExchange};
pub use tensor::Tensor;
pub use weights::{UnitSource, UnitWeights};
