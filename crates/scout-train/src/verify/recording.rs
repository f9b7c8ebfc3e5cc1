//! Recorded files: their tensors, each with its own reason where it cannot be read, and the batches that they were made
//! with.

use std::collections::BTreeMap;
use std::path::Path;

use scout_checkpoint::TensorFile;
use scout_core::{DType, ExitCode};

use super::compare::{Numbers, Values};
use super::padded::Padded;
use super::promise::Manifest;
use crate::error::{Result, TrainError};

/// What was recorded under a name, or why it cannot be read.
pub type Recording = BTreeMap<String, std::result::Result<Numbers, String>>;

/// Every tensor of a file, each with its own reason if it cannot be read; an error when the file itself cannot.
fn read(path: &Path) -> Result<Recording> {
    let file = TensorFile::open(path)?;
    let read_one = |name: &str, dtype| -> scout_checkpoint::Result<Numbers> {
        Ok(match dtype {
            Some(DType::I64) => {
                let (shape, values) = file.read_i64(name)?;
                Numbers::integers(shape.dims(), values)
            }
            Some(DType::U8) => {
                let (shape, values) = file.read_u8(name)?;
                Numbers::integers(shape.dims(), values.into_iter().map(i64::from).collect())
            }
            _ => {
                let (shape, values) = file.read_f32_all(name)?;
                Numbers::floats(shape.dims(), values)
            }
        })
    };
    let entries = file.entries().iter();
    let read = entries.map(|entry| {
        let read =
            read_one(&entry.name, entry.element_type.dtype()).map_err(|error| TrainError::from(error).with_causes());
        (entry.name.clone(), read)
    });
    Ok(read.collect())
}

/// The same for a file whose tensors are `promised`: one that cannot be opened fails each of them with its reason.
pub fn read_promised(path: &Path, promised: &[String]) -> Recording {
    read(path).unwrap_or_else(|error| {
        let reason = error.with_causes();
        promised.iter().map(|name| (name.clone(), Err(reason.clone()))).collect()
    })
}

/// `expected.safetensors` and the batch it was made with.
pub fn read_probe(folder: &Path, prefix: &str, vocab_size: usize) -> Result<(Padded, Recording)> {
    let recorded = read(&folder.join("expected.safetensors"))?;
    Ok((padded(&recorded, prefix)?.inside_vocabulary(vocab_size)?, recorded))
}

/// The batch that a recording was made with; its ids may stand under a prefix, the rest is shared.
fn padded(recorded: &Recording, prefix: &str) -> Result<Padded> {
    let (shape, ids) = integers(recorded, &format!("{prefix}input_ids"))?;
    let (_, labels) = integers(recorded, "labels")?;
    let (_, mask) = integers(recorded, "attention_mask")?;
    Padded::new(&shape, ids, labels, mask)
}

pub fn integers(recorded: &Recording, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
    let problem = match recorded.get(name) {
        Some(Ok(Numbers { shape, values: Values::Integers(values) })) => return Ok((shape.clone(), values.clone())),
        Some(Ok(_)) => "does not hold whole numbers".to_string(),
        Some(Err(detail)) => detail.clone(),
        None => "is missing".to_string(),
    };
    Err(TrainError::Input { path: name.to_string(), problem, code: ExitCode::BadData })
}

pub fn read_batches(folder: &Path, manifest: &Manifest, vocab_size: usize) -> Result<Vec<Padded>> {
    let recorded = read(&folder.join("train_batches.safetensors"))?;
    let [(shape, ids), (_, labels), (_, mask)] = ["input_ids", "labels", "attention_mask"]
        .map(|name| integers(&recorded, name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        .try_into()
        .expect("three names give three tensors");
    let args = &manifest.args;
    if shape != [args.steps, args.batch, args.seq] || [ids.len(), labels.len()] != [mask.len(); 2] {
        return Err(TrainError::Input {
            path: "train_batches.safetensors".to_string(),
            problem: format!("has shape {shape:?}, expected [{}, {}, {}]", args.steps, args.batch, args.seq),
            code: ExitCode::BadData,
        });
    }
    let step_len = args.batch * args.seq;
    (0..args.steps)
        .map(|step| {
            let part = |values: &[i64]| values[step * step_len..(step + 1) * step_len].to_vec();
            Padded::new(&shape[1..], part(&ids), part(&labels), part(&mask))?.inside_vocabulary(vocab_size)
        })
        .collect()
}
