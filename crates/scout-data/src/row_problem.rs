//! What can be wrong with one row, and where a row stands.

use std::fmt;
use std::path::PathBuf;

use crate::json::JsonError;

/// Where in a data set something stands. Rows and lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    pub row: u64,
    pub line: u64,
    pub field: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` row {} (line {})", self.path.display(), self.row, self.line)?;
        match &self.field {
            Some(field) => write!(f, ", field `{field}`"),
            None => Ok(()),
        }
    }
}

/// What is wrong with one row. The place is said by the error around it.
#[derive(Debug, thiserror::Error)]
pub enum RowProblem {
    #[error("the row is longer than `max_row_bytes`, {limit} bytes")]
    TooLong { limit: u64 },
    #[error("the row is not UTF-8 (byte {offset} of the row)")]
    NotUtf8 { offset: usize },
    #[error("a NUL character in the text")]
    Nul,
    #[error("the file ends inside the row")]
    CutOff,
    #[error("the row is not usable JSON")]
    Json(#[source] JsonError),
    #[error("found {found}, expected {expected}")]
    WrongType { found: &'static str, expected: &'static str },
    /// `found` tells the fields that are there, as [`RowProblem::AnswerMissing`] does.
    #[error("the {what} has no field `{field}`, {found}")]
    Missing { what: &'static str, field: String, found: String },
    #[error("the row has no answer to learn: it has no field `{field}`, {found}")]
    AnswerMissing { field: String, found: String },
    #[error(
        "the row looks like no known format: found {found}, expected `instruction` and `output` (Alpaca), \
         `conversations` (ShareGPT) or `messages` (OpenAI)"
    )]
    UnknownFormat { found: String },
    #[error("the row has no answer to learn")]
    Answerless,
    #[error("the text is empty")]
    EmptyTurn,
    #[error("unknown role `{found}`, expected {expected}")]
    UnknownRole { found: String, expected: String },
    #[error("turn {turn} is of role `{found}`, expected {expected}: questions and answers take turns")]
    WrongOrder { turn: usize, found: String, expected: String },
    #[error("{kind} are not built yet")]
    Media { kind: &'static str },
    #[error("preference data (`{0}`) cannot be used for supervised fine-tuning")]
    Preference(&'static str),
    #[error("the {what} is not usable JSON")]
    ToolJson {
        what: &'static str,
        #[source]
        cause: JsonError,
    },
    #[error("the {what} {problem}")]
    Tool { what: &'static str, problem: String },
    #[error("no token of the row is learned ({tokens} tokens, `cutoff_len` {cutoff_len})")]
    NothingToLearn { tokens: usize, cutoff_len: usize },
    #[error("the tokenizer failed")]
    Tokenizer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RowProblem {
    /// Whether the end of the row is not known, so that no row after it can be read.
    pub(crate) fn ends_reading(&self) -> bool {
        matches!(self, RowProblem::TooLong { .. } | RowProblem::CutOff)
    }

    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            RowProblem::TooLong { .. } => Some("split the row, or raise `max_row_bytes`".to_string()),
            RowProblem::NothingToLearn { .. } => Some("raise `cutoff_len`, or remove the row".to_string()),
            RowProblem::Json(JsonError::Syntax { .. }) => {
                Some("a file holds one JSON list of rows, or one whole row on every line".to_string())
            }
            RowProblem::Media { .. } => {
                Some("remove the rows with pictures, videos or sounds (and their `<image>` marks)".to_string())
            }
            _ => None,
        }
    }
}
