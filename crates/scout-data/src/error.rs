//! What can be wrong with data sets, tokenizers and templates, where it stands, and what to do. Reads nothing itself.

use std::fmt;
use std::io;
use std::path::PathBuf;

use scout_core::ExitCode;

use crate::bad_rows::BadRows;
use crate::json::JsonError;

pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Any failure between the disk and a batch.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("no data set `{name}`: it is neither a path nor {catalogue}")]
    MissingDataset { name: String, catalogue: String, near: Vec<String> },
    #[error("`{}` {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("{place}")]
    Row {
        place: Box<Place>,
        #[source]
        problem: RowProblem,
    },
    /// More than one row of a file.
    #[error(transparent)]
    Rows(BadRows),
    #[error("entry `{name}` of `{}` {problem}", path.display())]
    Entry { path: PathBuf, name: String, problem: String },
    #[error("cannot load the tokenizer `{}`", path.display())]
    Tokenizer {
        path: PathBuf,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the tokenizer has no token `{token}`, which Llama 4 text needs")]
    MissingToken { token: String },
    #[error("the tokenizer failed")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the conversation cannot be encoded")]
    Conversation(#[source] RowProblem),
    #[error("the chat template {doing} failed")]
    ChatTemplate {
        doing: &'static str,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("`{key}` {problem}")]
    Setting { key: &'static str, problem: String },
}

impl DataError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            DataError::Read { cause, .. } => ExitCode::of_io(cause, ExitCode::MissingInput),
            DataError::MissingDataset { .. } => ExitCode::MissingInput,
            DataError::Setting { .. } => ExitCode::BadConfig,
            DataError::File { .. }
            | DataError::Row { .. }
            | DataError::Rows(_)
            | DataError::Entry { .. }
            | DataError::Tokenizer { .. }
            | DataError::MissingToken { .. }
            | DataError::Encode(_)
            | DataError::Conversation(_)
            | DataError::ChatTemplate { .. } => ExitCode::BadData,
        }
    }

    /// What the reader can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            DataError::MissingDataset { near, .. } if !near.is_empty() => {
                Some(format!("did you mean {}?", join_names(near)))
            }
            DataError::MissingDataset { .. } => {
                Some("`dataset` takes names from `dataset_info.json` and paths of .json or .jsonl files".to_string())
            }
            DataError::Conversation(problem) | DataError::Row { problem, .. } => problem.hint(),
            DataError::Rows(bad_rows) => bad_rows.problems().find_map(RowProblem::hint),
            _ => None,
        }
    }
}

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

    fn hint(&self) -> Option<String> {
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

/// `a`, `b` or `c`, each in backticks.
pub(crate) fn join_names<T: AsRef<str>>(names: &[T]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, head)) => format!("{} or {last}", head.join(", ")),
        None => "nothing".to_string(),
    }
}

/// The candidates closest to `name`, best first, at most three, by the number of edits.
pub(crate) fn near_names<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let limit = (name.chars().count() / 3).max(2);
    let mut scored: Vec<(usize, &str)> = candidates
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, candidate)| candidate.to_string()).collect()
}

fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_come_best_first() {
        let known = ["identity", "alpaca_en_demo", "alpaca_zh_demo"];
        assert_eq!(near_names("alpaca_en_dem", known), ["alpaca_en_demo", "alpaca_zh_demo"]);
        assert_eq!(near_names("Identty", known), ["identity"]);
        assert!(near_names("sharegpt4", known).is_empty());
    }
}
