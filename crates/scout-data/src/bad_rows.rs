//! The rows of one file that cannot be used, so that people who mend them meet all at once. Judges no row itself.

use std::fmt;
use std::path::{Path, PathBuf};

use scout_core::causes::with_causes;

use crate::row_problem::{Place, RowProblem};

/// How many bad rows are told; a file may have any number of them.
const MOST_TOLD: usize = 10;

/// All bad rows of a file are counted, the first of them are kept with what is wrong.
#[derive(Debug)]
pub struct BadRows {
    path: PathBuf,
    told: Vec<(Place, RowProblem)>,
    count: u64,
    rows_read: RowsRead,
}

/// How many rows of the file were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowsRead {
    All(u64),
    /// No more were wanted, or no more could be found.
    First(u64),
}

impl BadRows {
    pub(crate) fn new(path: &Path) -> BadRows {
        BadRows { path: path.to_path_buf(), told: Vec::new(), count: 0, rows_read: RowsRead::All(0) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn add(&mut self, place: Place, problem: RowProblem) {
        self.count += 1;
        if self.told.len() < MOST_TOLD {
            self.told.push((place, problem));
        }
    }

    pub(crate) fn among(self, rows_read: RowsRead) -> BadRows {
        BadRows { rows_read, ..self }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn into_first(self) -> Option<(Place, RowProblem)> {
        self.told.into_iter().next()
    }

    pub(crate) fn problems(&self) -> impl Iterator<Item = &RowProblem> {
        self.told.iter().map(|(_, problem)| problem)
    }
}

impl std::error::Error for BadRows {}

/// One sentence. Rows with the same mistake, of which there are often many, are told together.
impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows_read = match self.rows_read {
            RowsRead::All(rows) => rows.to_string(),
            RowsRead::First(rows) => format!("the first {rows}"),
        };
        write!(f, "{} of {rows_read} rows of `{}` cannot be used", self.count, self.path.display())?;
        if self.count > MOST_TOLD as u64 {
            write!(f, ", the first {MOST_TOLD}")?;
        }
        let mut mistakes: Vec<(String, Vec<String>)> = Vec::new();
        for (place, problem) in &self.told {
            let field = place.field.as_ref().map(|field| format!(", field `{field}`")).unwrap_or_default();
            let mistake = format!("{field}: {}", with_causes(problem));
            let row = format!("row {} (line {})", place.row, place.line);
            match mistakes.iter_mut().find(|(known, _)| *known == mistake) {
                Some((_, rows)) => rows.push(row),
                None => mistakes.push((mistake, vec![row])),
            }
        }
        for (index, (mistake, rows)) in mistakes.iter().enumerate() {
            let separator = if index == 0 { ":" } else { ";" };
            match rows.split_last().expect("a mistake is kept with its row") {
                (row, []) => write!(f, "{separator} {row}{mistake}")?,
                (last, head) => write!(f, "{separator} {} and {last}{mistake}", head.join(", "))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad_rows(problems: Vec<(Option<&str>, RowProblem)>) -> BadRows {
        let path = Path::new("rows.json");
        let mut bad_rows = BadRows::new(path);
        for (index, (field, problem)) in problems.into_iter().enumerate() {
            let row = index as u64 + 1;
            let place = Place { path: path.to_path_buf(), row, line: 10 * row, field: field.map(str::to_string) };
            bad_rows.add(place, problem);
        }
        bad_rows
    }

    #[test]
    fn bad_rows_are_one_sentence_that_stays_short() {
        let output = || (Some("output"), RowProblem::Answerless);
        for (problems, rows_read, expected) in [
            (
                vec![output(), (None, RowProblem::Nul), output()],
                RowsRead::All(29),
                "3 of 29 rows of `rows.json` cannot be used: row 1 (line 10) and row 3 (line 30), field `output`: the \
                 row has no answer to learn; row 2 (line 20): a NUL character in the text",
            ),
            (
                (0..12).map(|_| output()).collect(),
                RowsRead::First(20),
                "12 of the first 20 rows of `rows.json` cannot be used, the first 10: row 1 (line 10), row 2 (line \
                 20), row 3 (line 30), row 4 (line 40), row 5 (line 50), row 6 (line 60), row 7 (line 70), row 8 (line \
                 80), row 9 (line 90) and row 10 (line 100), field `output`: the row has no answer to learn",
            ),
        ] {
            assert_eq!(bad_rows(problems).among(rows_read).to_string(), expected);
        }
        assert!(bad_rows(Vec::new()).is_empty());
    }
}
