//! `dataset_info.json`, LLaMA-Factory's catalogue of data sets: turns a name into files and the shape of their rows.
//! Reads no data and downloads nothing.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result, join_names, near_names};
use crate::json::Json;
use crate::row_shape::{Columns, Formatting, RowShape, Tags};

const FILE_NAME: &str = "dataset_info.json";

/// What an entry may say in LLaMA-Factory. `file_sha1` stands in old catalogues and changes nothing there either.
const KEYS: [&str; 15] = [
    "file_name",
    "formatting",
    "columns",
    "tags",
    "num_samples",
    "split",
    "subset",
    "folder",
    "ranking",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "cloud_file_name",
    "script_url",
    "file_sha1",
];

/// The catalogue of one folder.
pub(crate) struct Catalogue {
    path: PathBuf,
    entries: Vec<(String, Json)>,
}

/// One data set of a catalogue.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) shape: RowShape,
    /// How many rows are drawn from the data set, where that is limited.
    pub(crate) num_samples: Option<usize>,
}

impl Catalogue {
    /// `None` where the folder has no catalogue.
    pub(crate) fn open(folder: &Path) -> Result<Option<Catalogue>> {
        let path = folder.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
                return Err(DataError::File { path, problem: "is not UTF-8".to_string() });
            }
            Err(cause) => return Err(DataError::Read { path, cause }),
        };
        match Json::parse(&text) {
            Ok(Json::Object(entries)) => Ok(Some(Catalogue { path, entries })),
            Ok(other) => {
                let problem = format!("holds {}, expected an object of data sets", other.kind());
                Err(DataError::File { path, problem })
            }
            Err(cause) => Err(DataError::File { path, problem: format!("is not usable JSON: {cause}") }),
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn find(&self, name: &str) -> Result<Option<Entry>> {
        let Some((_, entry)) = self.entries.iter().find(|(key, _)| key == name) else { return Ok(None) };
        let folder = self.path.parent().expect("the catalogue's path is a file in a folder");
        read_entry(folder, entry).map(Some).map_err(|problem| DataError::Entry {
            path: self.path.clone(),
            name: name.to_string(),
            problem,
        })
    }
}

/// A catalogue lists many data sets, so only an entry that is used is judged; in it no misspelt key is passed over,
/// for the default that holds in its place may fit the rows as well.
fn read_entry(folder: &Path, entry: &Json) -> Result<Entry, String> {
    let Json::Object(keys) = entry else {
        return Err(format!("is {}, expected an object", entry.kind()));
    };
    refuse_what_is_no_file(entry)?;
    for (key, _) in keys {
        // People leave remarks of their own in catalogues (`license`, `description`): what is near a key was meant to be it.
        let near = near_names(key, KEYS);
        if !KEYS.contains(&key.as_str()) && !near.is_empty() {
            return Err(format!("has the unknown key `{}`, expected {}", key.escape_debug(), join_names(&near)));
        }
    }
    let file_name = match given(entry, "file_name") {
        Some(Json::Text(file_name)) if !file_name.is_empty() => file_name,
        Some(Json::Text(_)) => return Err("has an empty `file_name`".to_string()),
        Some(other) => return Err(format!("has a `file_name` that is {}, expected a path", other.kind())),
        None => return Err("has no `file_name`".to_string()),
    };
    if given(entry, "ranking").is_some_and(|ranking| *ranking != Json::Bool(false)) {
        return Err("has `ranking`: preference data cannot be used for supervised fine-tuning".to_string());
    }
    for key in ["subset", "folder"] {
        if given(entry, key).is_some() {
            return Err(format!("has `{key}`, which chooses a part of a hub data set; `file_name` has no such part"));
        }
    }
    if let Some(split) = given(entry, "split")
        && split.as_text() != Some("train")
    {
        return Err(format!("has `split` {}; a file has only the split `train`", split.dumps(None)));
    }
    Ok(Entry { path: folder.join(file_name), shape: read_shape(entry)?, num_samples: read_num_samples(entry)? })
}

/// The value of a key, null meaning that the key is not there.
fn given<'a>(entry: &'a Json, key: &str) -> Option<&'a Json> {
    entry.get(key).filter(|value| **value != Json::Null)
}

/// Beside an address, where LLaMA-Factory would download, `file_name` is the copy on this machine. A program makes
/// rows of its own, whatever file stands beside it.
fn refuse_what_is_no_file(entry: &Json) -> Result<(), String> {
    if given(entry, "script_url").is_some() {
        return Err("has `script_url`: a data set that is a program is not run".to_string());
    }
    let address = ["hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name"]
        .into_iter()
        .find(|key| given(entry, key).is_some() && given(entry, "file_name").is_none());
    match address {
        None => Ok(()),
        Some(key) => {
            Err(format!("has `{key}` and no `file_name`: data sets are not downloaded, only read from this machine"))
        }
    }
}

fn read_shape(entry: &Json) -> Result<RowShape, String> {
    let formatting = match given(entry, "formatting") {
        None => Formatting::Alpaca,
        Some(value) => match value.as_text() {
            Some("alpaca") => Formatting::Alpaca,
            Some("sharegpt") => Formatting::ShareGpt,
            Some("openai") => Formatting::OpenAi,
            _ => {
                let found = value.dumps(None);
                return Err(format!("has `formatting` {found}, expected `alpaca`, `sharegpt` or `openai`"));
            }
        },
    };
    let mut shape = RowShape::of_formatting(formatting);
    if let Some(columns) = given(entry, "columns") {
        shape.columns = Columns::from_entry(columns)?;
    }
    if let Some(tags) = given(entry, "tags") {
        shape.tags = Tags::from_entry(tags)?;
    }
    let columns = &shape.columns;
    let missing = match formatting {
        Formatting::Alpaca if columns.response.is_none() => "response",
        Formatting::Alpaca if columns.prompt.is_none() && columns.query.is_none() => "prompt",
        Formatting::ShareGpt | Formatting::OpenAi if columns.messages.is_none() => "messages",
        _ => return Ok(shape),
    };
    Err(format!("has `columns` without `{missing}`"))
}

fn read_num_samples(entry: &Json) -> Result<Option<usize>, String> {
    let Some(value) = given(entry, "num_samples") else { return Ok(None) };
    match value {
        Json::Number(digits) if digits.parse::<usize>().is_ok_and(|count| count > 0) => Ok(digits.parse().ok()),
        _ => Err(format!("has `num_samples` {}, expected a count of at least 1", value.dumps(None))),
    }
}
