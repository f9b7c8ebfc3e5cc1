//! What the process tells its caller when it ends. Scripts and schedulers act on these numbers; they never change.

/// Exit codes, after `sysexits.h` where that has a word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    Success = 0,
    /// `verify` or `doctor` found something wrong.
    CheckFailed = 1,
    /// The command line itself is wrong.
    Usage = 2,
    /// Something inside a model, data or checkpoint file is wrong.
    BadData = 65,
    /// The configuration file, model folder or data set does not exist.
    MissingInput = 66,
    /// Out of device memory, or a device or library that was asked for is missing.
    DeviceUnavailable = 69,
    /// A bug of ours.
    Internal = 70,
    /// An output could not be created.
    CannotCreate = 73,
    /// Reading or writing failed, disk full included.
    InputOutput = 74,
    /// Preempted; the state is saved. Requeue.
    Preempted = 75,
    /// Another rank was lost. Requeue.
    PeerLost = 76,
    PermissionDenied = 77,
    /// Anything wrong in the YAML or in a `key=value`.
    BadConfig = 78,
    /// The loss or a gradient is not a number.
    NotANumber = 79,
    /// The hardware reported an error.
    Hardware = 80,
    /// Several restarts without progress. Do not requeue.
    NoProgress = 93,
}

const ALL: [ExitCode; 16] = [
    ExitCode::Success,
    ExitCode::CheckFailed,
    ExitCode::Usage,
    ExitCode::BadData,
    ExitCode::MissingInput,
    ExitCode::DeviceUnavailable,
    ExitCode::Internal,
    ExitCode::CannotCreate,
    ExitCode::InputOutput,
    ExitCode::Preempted,
    ExitCode::PeerLost,
    ExitCode::PermissionDenied,
    ExitCode::BadConfig,
    ExitCode::NotANumber,
    ExitCode::Hardware,
    ExitCode::NoProgress,
];

impl ExitCode {
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a number that another process of ours left with.
    pub fn from_code(code: u8) -> Option<ExitCode> {
        ALL.into_iter().find(|known| known.code() == code)
    }

    /// The code for a failed read or write; `missing` says what a file that is not there means to the caller.
    pub fn of_io(error: &std::io::Error, missing: ExitCode) -> ExitCode {
        match error.kind() {
            std::io::ErrorKind::NotFound => missing,
            std::io::ErrorKind::PermissionDenied => ExitCode::PermissionDenied,
            _ => ExitCode::InputOutput,
        }
    }
}
