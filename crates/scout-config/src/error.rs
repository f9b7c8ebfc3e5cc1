//! What can be wrong with a configuration. Every message is one line and begins with the place the user can change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use scout_core::ExitCode;

use crate::yaml::YamlError;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration `{path}`")]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Not one YAML document with a map of keys.
    #[error("{place}: {problem}")]
    Syntax { place: Origin, problem: String },
    #[error("{place}: unknown key {key}{}", suggestion.map_or(String::new(), |known| format!(", did you mean {known}?")))]
    UnknownKey { place: Origin, key: String, suggestion: Option<&'static str> },
    #[error("{place}: duplicate key {key}{}", first.as_ref().map_or(String::new(), |first| format!(", first at {first}")))]
    DuplicateKey { place: Origin, key: String, first: Option<Origin> },
    /// A value of the wrong kind, out of range, refused, or at odds with another key.
    #[error("{place}: {key}: found {found}, expected {expected}")]
    Value { place: Origin, key: &'static str, found: String, expected: String },
    /// A value that is good in itself and at odds with the model, the data or the machine.
    #[error("{place}: {key}: {problem}")]
    AtOdds { place: Origin, key: &'static str, problem: String },
    #[error("{name}:1:1: missing key {key}, expected {expected}")]
    MissingKey { name: String, key: &'static str, expected: &'static str },
}

impl ConfigError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            ConfigError::Unreadable { cause, .. } => ExitCode::of_io(cause, ExitCode::MissingInput),
            _ => ExitCode::BadConfig,
        }
    }

    /// What to do, where the message itself does not say it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ConfigError::Unreadable { cause, .. } if cause.kind() == io::ErrorKind::IsADirectory => {
                Some("name the YAML file inside the folder".to_string())
            }
            _ => None,
        }
    }

    pub(crate) fn unreadable(path: &Path, cause: io::Error) -> ConfigError {
        ConfigError::Unreadable { path: path.to_path_buf(), cause }
    }

    /// `place_of` turns a line and a column of the parsed text into a place.
    pub(crate) fn of_yaml(error: YamlError, place_of: impl Fn(u64, u64) -> Origin) -> ConfigError {
        match error {
            YamlError::Syntax { line, column, problem } => {
                ConfigError::Syntax { place: place_of(line, column), problem }
            }
            YamlError::Duplicate { line, column, key, first } => ConfigError::DuplicateKey {
                place: place_of(line, column),
                key: one_line(&key),
                first: first.map(|(line, column)| place_of(line, column)),
            },
        }
    }
}

/// Where the value of a key was written. A later kind wins over an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the table of keys says it.
    Default,
    File {
        name: String,
        line: u64,
        column: u64,
    },
    Environment {
        variable: String,
    },
    /// The whole `key=value` of the command line.
    Override {
        text: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line, column } => write!(f, "{}:{line}:{column}", one_line(name)),
            Origin::Environment { variable } => write!(f, "environment {}", one_line(variable)),
            Origin::Override { text } => write!(f, "override {}", one_line(text)),
        }
    }
}

/// Line breaks and other control characters become escapes, so that no input can break a message in two.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// `a`, `a or b`, `a, b or c`.
pub(crate) fn or_list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_string(),
        [init @ .., last] => format!("{} or {last}", init.join(", ")),
    }
}
