//! What can be wrong with a configuration. Every mistake is one line that begins with the place the user can change.

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
    /// At least two mistakes that have nothing to do with each other, one on each line, in the order of their places.
    #[error("{}", lines(.0))]
    Several(Vec<ConfigError>),
}

/// What is no file of a run at all has as many mistakes as lines.
const MOST_LINES: usize = 20;

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
            ConfigError::Several(mistakes) if mistakes.len() > MOST_LINES => {
                Some(format!("{} more mistakes are not shown", mistakes.len() - MOST_LINES))
            }
            _ => None,
        }
    }

    /// Fails with all of them, where there are any.
    pub(crate) fn none_of(mut mistakes: Vec<ConfigError>) -> Result<(), ConfigError> {
        mistakes.sort_by_key(|mistake| mistake.place().map(Origin::order));
        match mistakes.len() {
            0 => Ok(()),
            1 => Err(mistakes.remove(0)),
            _ => Err(ConfigError::Several(mistakes)),
        }
    }

    fn place(&self) -> Option<&Origin> {
        match self {
            ConfigError::Syntax { place, .. }
            | ConfigError::UnknownKey { place, .. }
            | ConfigError::DuplicateKey { place, .. }
            | ConfigError::Value { place, .. }
            | ConfigError::AtOdds { place, .. } => Some(place),
            ConfigError::Unreadable { .. } | ConfigError::MissingKey { .. } | ConfigError::Several(_) => None,
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

impl Origin {
    /// By kind, within a file from its beginning to its end.
    fn order(&self) -> (u8, u64, u64) {
        match self {
            Origin::Default => (0, 0, 0),
            Origin::File { line, column, .. } => (1, *line, *column),
            Origin::Environment { .. } => (2, 0, 0),
            Origin::Override { .. } => (3, 0, 0),
        }
    }
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

fn lines(mistakes: &[ConfigError]) -> String {
    let lines: Vec<String> = mistakes.iter().take(MOST_LINES).map(ToString::to_string).collect();
    lines.join("\n")
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
