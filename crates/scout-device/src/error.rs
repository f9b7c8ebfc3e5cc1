//! What can go wrong with memory and devices.

use scout_core::{ByteCount, DType, ExitCode, Shape};

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("{what}: found shape {found}, expected {expected}")]
    Shape { what: &'static str, found: Shape, expected: String },
    #[error("{what}: found element type {found}, expected {expected}")]
    DType { what: &'static str, found: DType, expected: DType },
    #[error("{what}: {problem}")]
    Value { what: &'static str, problem: String },
    #[error("host arithmetic failed in {what}")]
    Host {
        what: &'static str,
        #[source]
        cause: candle_core::Error,
    },
    #[error("`device: {wanted}` cannot be used: {reason}")]
    Unavailable { wanted: String, reason: String },
    /// Weights did not arrive: the failure of whoever gathers them, carried through the model that asked.
    #[error("the weights did not arrive")]
    Gather(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{wanted} more for {purpose} do not fit: {in_use} of {budget} are in use")]
    OutOfMemory { purpose: String, wanted: ByteCount, in_use: ByteCount, budget: ByteCount },
}

impl DeviceError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            DeviceError::Shape { .. }
            | DeviceError::DType { .. }
            | DeviceError::Value { .. }
            | DeviceError::Host { .. } => ExitCode::Internal,
            // The chain below knows better: the program looks for the innermost code it understands.
            DeviceError::Gather(_) => ExitCode::PeerLost,
            DeviceError::Unavailable { .. } | DeviceError::OutOfMemory { .. } => ExitCode::DeviceUnavailable,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            DeviceError::OutOfMemory { .. } => Some(
                "lower `per_device_train_batch_size`, lower `cutoff_len`, or raise `device_memory`; `scout-dist plan` shows what each saves"
                    .to_string(),
            ),
            DeviceError::Unavailable { .. } => Some("set `device: cpu` to train on the host".to_string()),
            _ => None,
        }
    }
}

/// Names the operation in which host arithmetic failed.
pub trait InOperation<T> {
    fn during(self, what: &'static str) -> Result<T, DeviceError>;
}

impl<T> InOperation<T> for Result<T, candle_core::Error> {
    fn during(self, what: &'static str) -> Result<T, DeviceError> {
        self.map_err(|cause| DeviceError::Host { what, cause })
    }
}
