//! What can go wrong with memory and devices.

use scout_core::{ByteCount, DType, ExitCode, Shape};

pub type Result<T, E = DeviceError> = std::result::Result<T, E>;

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
    #[error("what other ranks keep or send did not arrive")]
    Gather(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// `table` says where the bytes are, a line for each purpose.
    #[error("{wanted} more for {purpose} do not fit: {in_use} of {budget} are in use")]
    OutOfMemory { purpose: String, wanted: ByteCount, in_use: ByteCount, budget: ByteCount, table: String },
    #[error("{what}: found memory of {found}, expected that of {expected}")]
    Place { what: &'static str, found: String, expected: String },
    #[error("`{library}` cannot be used: {problem}")]
    Library { library: &'static str, problem: String, install: &'static str },
    #[error("{call} failed: {name} (code {code})")]
    Foreign { call: &'static str, code: i32, name: String },
    /// Other ranks did not do their part of what all do together.
    #[error("{what}: {problem}")]
    Peers { what: &'static str, problem: String },
    #[error("work on the GPU was not done after {waited:?}")]
    Late { waited: std::time::Duration },
}

/// Answers of the driver that blame the hardware: memory and link errors that it could not correct, and a multiprocessor
/// whose stack broke.
const HARDWARE_CODES: [i32; 4] = [214, 220, 226, 714];
/// Answers of the driver that say that there is no GPU to use, or none that is free or fits the driver.
const UNAVAILABLE_CODES: [i32; 7] = [2, 46, 100, 101, 222, 802, 803];

impl DeviceError {
    /// Whether another rank's end can be all that is behind it.
    pub fn may_be_an_echo(&self) -> bool {
        matches!(self, DeviceError::Peers { .. } | DeviceError::Late { .. })
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            DeviceError::Foreign { code, .. } if HARDWARE_CODES.contains(code) => ExitCode::Hardware,
            DeviceError::Foreign { call, code, .. } if call.starts_with("cu") && UNAVAILABLE_CODES.contains(code) => {
                ExitCode::DeviceUnavailable
            }
            DeviceError::Shape { .. }
            | DeviceError::DType { .. }
            | DeviceError::Value { .. }
            | DeviceError::Place { .. }
            | DeviceError::Foreign { .. }
            | DeviceError::Late { .. }
            | DeviceError::Host { .. } => ExitCode::Internal,
            // The chain below knows better: the program looks for the innermost code it understands.
            DeviceError::Gather(_) | DeviceError::Peers { .. } => ExitCode::PeerLost,
            DeviceError::Unavailable { .. } | DeviceError::Library { .. } | DeviceError::OutOfMemory { .. } => {
                ExitCode::DeviceUnavailable
            }
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            DeviceError::OutOfMemory { table, .. } => Some(format!(
                "lower `per_device_train_batch_size`, lower `cutoff_len`, or raise `device_memory`; \
                 `scout-dist plan` shows what each saves\n{table}"
            )),
            DeviceError::Library { install, .. } => {
                Some(format!("{install}, or set `device: cpu` to train on the host"))
            }
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
