//! Reads data sets by name or by path into conversations, row by row, and remembers where each row stands. Knows no
//! tokens. A bad row is an error with its file, row and field, told together with the other bad rows of the file:
//! training on less than was asked for is no choice to make silently.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use scout_core::ByteCount;

use crate::bad_rows::{BadRows, RowsRead};
use crate::catalogue::Catalogue;
use crate::conversation::Conversation;
use crate::convert::{FieldProblem, convert};
use crate::error::{DataError, Result, near_names};
use crate::json::Json;
use crate::order::permutation;
use crate::row_problem::{Place, RowProblem};
use crate::row_shape::RowShape;
use crate::rows::{Row, RowReader};

/// Which data sets to read, and how much of them.
#[derive(Debug, Clone)]
pub struct DatasetRequest {
    /// Names in the catalogue, or paths (absolute, or relative to the working folder) of files or folders.
    pub names: Vec<String>,
    /// The folder of `dataset_info.json`.
    pub dataset_dir: Option<PathBuf>,
    /// The first rows of each data set; all of them when `None`.
    pub max_samples: Option<usize>,
    pub max_row_bytes: ByteCount,
    /// Draws the rows of a data set with `num_samples`.
    pub seed: u64,
}

/// The conversations of all data sets asked for, one after another.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    conversations: Vec<Conversation>,
    /// File, row and line of each conversation.
    origins: Vec<(u32, u64, u64)>,
    files: Vec<PathBuf>,
    passed_over: BTreeSet<&'static str>,
    notes: Vec<String>,
}

impl Dataset {
    /// Reads every data set of the request; an empty one is an error.
    pub fn load(request: &DatasetRequest) -> Result<Dataset> {
        let catalogue = match &request.dataset_dir {
            Some(folder) => Catalogue::open(folder)?,
            None => None,
        };
        let mut whole = Dataset::default();
        for name in &request.names {
            let entry = match &catalogue {
                Some(catalogue) => catalogue.find(name)?,
                None => None,
            };
            let (path, shape, num_samples) = match entry {
                Some(entry) => (entry.path, Some(entry.shape), entry.num_samples),
                None => (PathBuf::from(name), None, None),
            };
            let exists = path.try_exists().map_err(|cause| DataError::Read { path: path.clone(), cause })?;
            if shape.is_none() && !exists {
                return Err(missing(name, request.dataset_dir.as_deref(), catalogue.as_ref()));
            }
            let mut part = Dataset::default();
            // With a draw all rows must be seen first; without one, reading stops after the rows that are wanted.
            let limit = if num_samples.is_some() { None } else { request.max_samples };
            for file in data_files(&path)? {
                part.read_file(&file, shape.as_ref(), limit, request.max_row_bytes)?;
            }
            if part.is_empty() {
                return Err(DataError::File { path, problem: "has no rows".to_string() });
            }
            whole.notes.extend(part.passed_over.iter().map(|field| {
                format!(
                    "rows of `{name}` have `{field}`, which is not used: `columns` in `dataset_info.json` would name it"
                )
            }));
            if let Some(count) = num_samples {
                part.draw(count, request.seed);
                part.truncate(request.max_samples.unwrap_or(count));
            }
            whole.append(part);
        }
        Ok(whole)
    }

    /// A data set that does not come from a file, for synthetic data; rows count from 1.
    pub fn from_conversations(name: &str, conversations: Vec<Conversation>) -> Dataset {
        let origins = (1..=conversations.len() as u64).map(|row| (0, row, row)).collect();
        Dataset { conversations, origins, files: vec![PathBuf::from(name)], ..Dataset::default() }
    }

    pub fn len(&self) -> usize {
        self.conversations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.conversations.is_empty()
    }

    /// What people may want to know of the rows.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub fn conversations(&self) -> &[Conversation] {
        &self.conversations
    }

    /// Where conversation `index` stands.
    pub fn place(&self, index: usize) -> Place {
        let (file, row, line) = self.origins[index];
        Place { path: self.files[file as usize].clone(), row, line, field: None }
    }

    fn read_file(
        &mut self,
        path: &Path,
        shape: Option<&RowShape>,
        limit: Option<usize>,
        max_row_bytes: ByteCount,
    ) -> Result<()> {
        let mut reader = RowReader::open(path, max_row_bytes)?;
        let file = self.files.len() as u32;
        self.files.push(path.to_path_buf());
        let mut shape = shape.cloned();
        let mut bad_rows = BadRows::new(path);
        let most = limit.map(|limit| limit.saturating_sub(self.len()) as u64);
        let mut rows = 0;
        let rows_read = loop {
            if most.is_some_and(|most| rows == most) {
                break RowsRead::First(rows);
            }
            match read_next(&mut reader, &mut shape, &mut self.passed_over) {
                Ok(None) => break RowsRead::All(rows),
                // Beside a bad row the others are only read for what is wrong with them.
                Ok(Some((conversation, row, line))) if bad_rows.is_empty() => {
                    self.conversations.push(conversation);
                    self.origins.push((file, row, line));
                }
                Ok(Some(_)) => {}
                Err(DataError::Row { place, problem }) => {
                    let ends_reading = problem.ends_reading();
                    bad_rows.add(*place, problem);
                    if ends_reading {
                        break RowsRead::First(rows + 1);
                    }
                }
                Err(other) => return Err(other),
            }
            rows += 1;
        };
        refuse(bad_rows.among(rows_read))
    }

    /// Keeps `count` rows in an order drawn from the seed; more than there are repeats rows, each round anew.
    fn draw(&mut self, count: usize, seed: u64) {
        let rounds = (0..).flat_map(|round| permutation(seed, round, self.len()));
        let chosen: Vec<usize> = rounds.take(count).collect();
        self.conversations = chosen.iter().map(|&index| self.conversations[index].clone()).collect();
        self.origins = chosen.iter().map(|&index| self.origins[index]).collect();
    }

    fn truncate(&mut self, count: usize) {
        self.conversations.truncate(count);
        self.origins.truncate(count);
    }

    fn append(&mut self, part: Dataset) {
        let first_file = self.files.len() as u32;
        self.files.extend(part.files);
        self.conversations.extend(part.conversations);
        self.origins.extend(part.origins.into_iter().map(|(file, row, line)| (first_file + file, row, line)));
    }
}

/// One bad row is told where it stands, several together.
fn refuse(bad_rows: BadRows) -> Result<()> {
    if bad_rows.count() > 1 {
        return Err(DataError::Rows(bad_rows));
    }
    match bad_rows.into_first() {
        Some((place, problem)) => Err(DataError::Row { place: Box::new(place), problem }),
        None => Ok(()),
    }
}

/// The conversation of the next row, and the row's number and line.
fn read_next<R: BufRead>(
    reader: &mut RowReader<R>,
    shape: &mut Option<RowShape>,
    passed_over: &mut BTreeSet<&'static str>,
) -> Result<Option<(Conversation, u64, u64)>> {
    let Some(row) = reader.next_row()? else { return Ok(None) };
    let (number, line) = (row.number, row.line);
    match read_row(&row, shape, passed_over) {
        Ok(conversation) => Ok(Some((conversation, number, line))),
        Err(FieldProblem { field, problem }) => Err(reader.error_at(number, line, field, problem)),
    }
}

fn read_row(
    row: &Row<'_>,
    shape: &mut Option<RowShape>,
    passed_over: &mut BTreeSet<&'static str>,
) -> Result<Conversation, FieldProblem> {
    let whole = |problem| FieldProblem { field: None, problem };
    let value = Json::parse(row.text).map_err(|cause| whole(RowProblem::Json(cause.in_row(row.line))))?;
    let shape = match shape {
        Some(shape) => shape,
        None => shape.insert(RowShape::detect(&value).map_err(whole)?),
    };
    let conversation = convert(&value, shape)?;
    passed_over.extend(shape.passed_over(&value));
    Ok(conversation)
}

/// A file itself, or all .json and .jsonl files of a folder in the order of their names.
fn data_files(path: &Path) -> Result<Vec<PathBuf>> {
    let read = |cause| DataError::Read { path: path.to_path_buf(), cause };
    if !std::fs::metadata(path).map_err(read)?.is_dir() {
        if is_data_file(path) {
            return Ok(vec![path.to_path_buf()]);
        }
        let problem = "is of an unknown kind, expected a .json or .jsonl file".to_string();
        return Err(DataError::File { path: path.to_path_buf(), problem });
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let file = entry.map_err(read)?.path();
        if is_data_file(&file) && file.file_name().is_none_or(|name| name != "dataset_info.json") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        let problem = "holds no .json or .jsonl files".to_string();
        return Err(DataError::File { path: path.to_path_buf(), problem });
    }
    Ok(files)
}

fn is_data_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json" || extension == "jsonl")
}

/// The error for a name that means nothing, with the names it may have meant.
fn missing(name: &str, dataset_dir: Option<&Path>, catalogue: Option<&Catalogue>) -> DataError {
    let mut near = near_names(name, catalogue.into_iter().flat_map(Catalogue::names));
    let path = Path::new(name);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let (Some(file), Ok(siblings)) = (path.file_name(), std::fs::read_dir(folder)) {
        let siblings: Vec<PathBuf> = siblings.flatten().map(|entry| entry.path()).collect();
        let data = siblings.iter().filter(|sibling| is_data_file(sibling));
        let names: Vec<String> =
            data.filter_map(|sibling| Some(sibling.file_name()?.to_string_lossy().into_owned())).collect();
        let found = near_names(&file.to_string_lossy(), names.iter().map(String::as_str));
        near.extend(found.iter().map(|name| path.with_file_name(name).display().to_string()));
    }
    let catalogue = match (catalogue, dataset_dir) {
        (Some(catalogue), _) => format!("a name in `{}`", catalogue.path().display()),
        (None, Some(folder)) => format!("a name, for `{}` has no `dataset_info.json`", folder.display()),
        (None, None) => "a name, for there is no `dataset_dir`".to_string(),
    };
    DataError::MissingDataset { name: name.to_string(), catalogue, near }
}
