//! What can be wrong with data sets, tokenizers and templates, where it stands, and what to do. Reads nothing itself.

use std::io;
use std::path::PathBuf;

use scout_core::ExitCode;

use crate::bad_rows::BadRows;
use crate::row_problem::{Place, RowProblem};

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
