//! What can go wrong while weights are kept and gathered.

use scout_comm::CommError;
use scout_core::{ExitCode, UnitId};
use scout_device::DeviceError;

pub type Result<T> = std::result::Result<T, ShardError>;

#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("units {found:?} were asked for where the schedule says {expected:?}")]
    OutOfSchedule { found: Vec<UnitId>, expected: Vec<UnitId> },
    #[error("gather of {unit}")]
    Gather {
        unit: String,
        #[source]
        cause: Box<CommError>,
    },
    #[error("gather between GPUs")]
    Queue {
        #[source]
        cause: Box<CommError>,
    },
    #[error("a unit is sharded among GPUs, and no memory was set aside in which a walk like this makes it whole")]
    NoRing,
    #[error("reduce of {unit}")]
    Reduce {
        unit: String,
        #[source]
        cause: Box<CommError>,
    },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl ShardError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            ShardError::OutOfSchedule { .. } | ShardError::NoRing => ExitCode::Internal,
            ShardError::Gather { cause, .. } | ShardError::Reduce { cause, .. } => cause.exit_code(),
            ShardError::Queue { cause } => cause.exit_code(),
            ShardError::Device(cause) => cause.exit_code(),
        }
    }
}
