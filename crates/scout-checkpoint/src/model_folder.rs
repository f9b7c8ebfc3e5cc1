//! A model folder in the layout of Hugging Face: which file holds which tensor, and ranges of them on demand. Opening
//! reads headers only; the weights of a 217 GB model are read by those who own them, range by range.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use scout_core::{ByteCount, DType, ParamSpec, Shape};
use serde_json::Value;

use crate::disagreement::Disagreement;
use crate::error::{CheckpointError, Result};
use crate::folder::{Folder, is_pickle_name, is_plain_name, read_json};
use crate::safetensors::{ElementType, TensorEntry, TensorFile};

pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
pub(crate) const SINGLE_FILE: &str = "model.safetensors";

/// An open model folder. Threads may read from one at the same time.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    files: Vec<TensorFile>,
    // Invariant: every tensor of every file stands here once, under the file that holds it.
    file_of: HashMap<String, usize>,
}

impl ModelFolder {
    /// Opens every weight file and checks that index and files tell the same.
    ///
    /// Fails on a folder without safetensors, on names and links that lead out of it, and on any tensor that the index
    /// and the files do not place alike.
    pub fn open(path: &Path) -> Result<ModelFolder> {
        let folder = Folder::open(path, "model")?;
        match (folder.file(INDEX_FILE)?, folder.file(SINGLE_FILE)?) {
            (Some(index), single) => open_sharded(&folder, &index, single.is_some()),
            (None, Some(single)) => {
                let file = TensorFile::open(&single)?;
                let file_of = file.entries().iter().map(|entry| (entry.name.clone(), 0)).collect();
                Ok(ModelFolder { path: path.to_path_buf(), files: vec![file], file_of })
            }
            (None, None) => Err(folder.without("model", SINGLE_FILE)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, file by file in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|entry| entry.name.as_str())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.file_of.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Result<&Shape> {
        Ok(&self.file_with(name)?.entry(name)?.shape)
    }

    pub fn element_type(&self, name: &str) -> Result<ElementType> {
        Ok(self.file_with(name)?.entry(name)?.element_type)
    }

    /// Compares the whole folder with what the model expects, in one error that names the first few of each kind.
    pub fn check(&self, expected: &[ParamSpec], accept: &[DType]) -> Result<()> {
        let mut found = Disagreement::default();
        let mut names = HashSet::new();
        for param in expected {
            names.insert(param.name.as_str());
            let Ok(entry) = self.file_with(&param.name).and_then(|file| file.entry(&param.name)) else {
                found.missing.push(param.name.clone());
                continue;
            };
            if entry.shape != param.shape {
                found.misshapen.push(format!("`{}` is {}, expected {}", param.name, entry.shape, param.shape));
            }
            if !entry.element_type.dtype().is_some_and(|dtype| accept.contains(&dtype)) {
                let wanted: Vec<_> = accept.iter().map(|&dtype| ElementType::from(dtype).to_string()).collect();
                let (name, wanted) = (&param.name, wanted.join(" or "));
                found.mistyped.push(format!("`{name}` is {}, expected {wanted}", entry.element_type));
            }
        }
        let surplus = self.names().filter(|name| !names.contains(name));
        found.unexpected.extend(surplus.map(str::to_string));
        match found.is_empty() {
            true => Ok(()),
            false => Err(CheckpointError::Tensors { path: self.path.clone(), found: Box::new(found) }),
        }
    }

    /// Reads the elements `range` of a tensor as f32; see [`TensorFile::read_f32`].
    pub fn read_f32(&self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.file_with(name)?.read_f32(name, range, out)
    }

    /// Reads the elements `range` of a tensor as f32 or bf16; see [`TensorFile::read_as`].
    pub fn read_as(&self, name: &str, range: Range<usize>, dtype: DType, out: &mut [u8]) -> Result<()> {
        self.file_with(name)?.read_as(name, range, dtype, out)
    }

    /// Tells the system that the elements `range` of a tensor will be read soon.
    pub fn announce(&self, name: &str, range: Range<usize>) -> Result<()> {
        self.file_with(name)?.announce(name, range)
    }

    /// The file that holds the elements `range` of a tensor, and where they lie in it.
    pub fn place(&self, name: &str, range: Range<usize>) -> Result<(&Path, Range<u64>)> {
        let file = self.file_with(name)?;
        Ok((file.path(), file.bytes_of(name, range)?))
    }

    /// Asks the system to forget what it keeps of the weight files in memory.
    pub fn leave_the_page_cache(&self) -> Result<()> {
        self.files.iter().try_for_each(TensorFile::leave_the_page_cache)
    }

    /// Bytes of tensors read so far, over all files.
    pub fn bytes_read(&self) -> ByteCount {
        ByteCount(self.files.iter().map(TensorFile::bytes_read).sum())
    }

    /// Bytes of headers read so far, over all files.
    pub fn header_bytes_read(&self) -> ByteCount {
        ByteCount(self.files.iter().map(TensorFile::header_bytes_read).sum())
    }

    /// Bytes that `num_elements` elements of a tensor take in its file.
    pub fn stored_bytes(&self, name: &str, num_elements: usize) -> Result<ByteCount> {
        let entry = self.file_with(name)?.entry(name)?;
        let of_all = entry.shape.num_elements().max(1) as u64;
        // The header was checked: every element takes the same number of bits, so for whole bytes this is exact.
        Ok(ByteCount(entry.num_bytes() / of_all * num_elements as u64))
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> ByteCount {
        ByteCount(self.entries().map(TensorEntry::num_bytes).sum())
    }

    fn entries(&self) -> impl Iterator<Item = &TensorEntry> {
        self.files.iter().flat_map(TensorFile::entries)
    }

    fn file_with(&self, name: &str) -> Result<&TensorFile> {
        let missing = || CheckpointError::NoTensor { path: self.path.clone(), tensor: name.to_string() };
        self.file_of.get(name).map(|&index| &self.files[index]).ok_or_else(missing)
    }
}

/// What an index says, before anybody compared it with the files.
struct Index {
    /// Tensors by the file that should hold them.
    by_file: BTreeMap<String, Vec<String>>,
    total_size: Option<u64>,
}

fn open_sharded(folder: &Folder, index_path: &Path, has_single: bool) -> Result<ModelFolder> {
    let bad = |problem: String| CheckpointError::File { path: index_path.to_path_buf(), problem };
    let index = read_index(index_path)?;
    if has_single && !index.by_file.contains_key(SINGLE_FILE) {
        // Loaders disagree on which of the two wins, so neither may.
        return Err(bad(format!("does not name `{SINGLE_FILE}`, which lies beside it: the folder holds two models")));
    }
    let mut place_of: HashMap<&str, &str> = HashMap::new();
    for (file, names) in &index.by_file {
        place_of.extend(names.iter().map(|name| (name.as_str(), file.as_str())));
    }
    let mut files = Vec::with_capacity(index.by_file.len());
    let mut file_of = HashMap::with_capacity(place_of.len());
    for (file_index, (name, tensors)) in index.by_file.iter().enumerate() {
        let path = folder.file(name)?.ok_or_else(|| bad(format!("names the file `{name}`, which is missing")))?;
        let file = TensorFile::open(&path)?;
        for entry in file.entries() {
            match place_of.get(entry.name.as_str()) {
                Some(place) if place == name => {}
                Some(place) => return Err(bad(format!("puts `{}` into `{place}`, and `{name}` holds it", entry.name))),
                None => return Err(bad(format!("does not name the tensor `{}` of `{name}`", entry.name))),
            }
            file_of.insert(entry.name.clone(), file_index);
        }
        if let Some(tensor) = tensors.iter().find(|tensor| file.entry(tensor).is_err()) {
            return Err(bad(format!("puts `{tensor}` into `{name}`, which does not hold it")));
        }
        files.push(file);
    }
    let model = ModelFolder { path: folder.path().to_path_buf(), files, file_of };
    let found = model.total_bytes().0;
    match index.total_size {
        Some(total_size) if total_size != found => {
            Err(bad(format!("gives a `total_size` of {total_size} bytes, and the tensors have {found}")))
        }
        _ => Ok(model),
    }
}

fn read_index(path: &Path) -> Result<Index> {
    let bad = |problem: String| CheckpointError::File { path: path.to_path_buf(), problem };
    let json = read_json(path)?;
    let Some(weight_map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(bad("has no object `weight_map`".to_string()));
    };
    if weight_map.is_empty() {
        return Err(bad("has an empty `weight_map`".to_string()));
    }
    let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in weight_map {
        if tensor.chars().any(char::is_control) {
            return Err(bad(format!("has the unusable tensor name `{}`", tensor.escape_debug())));
        }
        let Some(file) = file.as_str() else {
            return Err(bad(format!("gives `{tensor}` no file name but {file}")));
        };
        if is_pickle_name(file) {
            let path = path.to_path_buf();
            return Err(CheckpointError::Pickle { path, file: file.escape_debug().to_string() });
        }
        if !is_plain_name(file) || !file.ends_with(".safetensors") {
            let file = file.escape_debug();
            return Err(bad(format!("puts `{tensor}` into `{file}`, expected a .safetensors file of the same folder")));
        }
        by_file.entry(file.to_string()).or_default().push(tensor.clone());
    }
    let total_size = match json.get("metadata").and_then(|metadata| metadata.get("total_size")) {
        None | Some(Value::Null) => None,
        Some(size) => {
            // Some writers put the sum through a float; it is still an exact whole number.
            let whole =
                |value: f64| (value >= 0.0 && value.fract() == 0.0 && value < 2f64.powi(63)).then_some(value as u64);
            let parsed = size.as_u64().or_else(|| size.as_f64().and_then(whole));
            Some(parsed.ok_or_else(|| bad(format!("has the `total_size` {size}, expected a number of bytes")))?)
        }
    };
    Ok(Index { by_file, total_size })
}
