//! Writing a safetensors file as a stream: the header first, then each tensor in pieces, in the declared order. Holds
//! no tensor; the file gets its name only when it is complete.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use scout_core::{DType, ParamSpec};

use super::header;
use crate::atomic_file::AtomicFile;
use crate::error::{CheckpointError, Result};

/// A safetensors file in the making. Dropped before `finish`, it leaves nothing behind.
pub struct TensorWriter {
    path: PathBuf,
    file: AtomicFile,
    tensors: Vec<(ParamSpec, DType)>,
    /// The tensor being written and how many of its elements are.
    current: usize,
    written: usize,
}

impl TensorWriter {
    /// Declares the whole content; readers find tensors in this order.
    ///
    /// Only floating-point types can be written. Fails when a name stands twice.
    pub fn create(path: &Path, tensors: Vec<(ParamSpec, DType)>) -> Result<TensorWriter> {
        let misuse = |mistake: String| CheckpointError::Misuse { path: path.to_path_buf(), mistake };
        let mut names = HashSet::new();
        for (param, dtype) in &tensors {
            if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
                return Err(misuse(format!("`{}` is declared as {dtype}, expected f32, bf16 or f16", param.name)));
            }
            if !names.insert(param.name.as_str()) {
                return Err(misuse(format!("`{}` is declared twice", param.name)));
            }
        }
        let mut file = AtomicFile::create(path)?;
        file.write(&header::render(&tensors))?;
        let mut writer = TensorWriter { path: path.to_path_buf(), file, tensors, current: 0, written: 0 };
        writer.skip_complete();
        Ok(writer)
    }

    /// Appends the next elements of the tensor that is due, rounded to nearest even where its type is narrower.
    ///
    /// Fails when another tensor is due or this one is full, and on a value that is or becomes infinite or NaN.
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let Some((param, dtype)) = self.tensors.get(self.current).filter(|(param, _)| param.name == name) else {
            let due = self.tensors.get(self.current).map_or("nothing more", |(param, _)| &param.name);
            return Err(self.misuse(format!("`{name}` is written where `{due}` is due")));
        };
        let room = param.num_elements() - self.written;
        if values.len() > room {
            return Err(self.misuse(format!("`{name}` has room for {room} more elements and got {}", values.len())));
        }
        let encoded = match dtype {
            DType::BF16 => encode(values, |value| {
                let value = bf16::from_f32(value);
                (value.to_le_bytes(), value.is_finite())
            }),
            DType::F16 => encode(values, |value| {
                let value = f16::from_f32(value);
                (value.to_le_bytes(), value.is_finite())
            }),
            _ => encode(values, |value| (value.to_le_bytes(), value.is_finite())),
        };
        let bytes = encoded.map_err(|offset| {
            let (index, value) = (self.written + offset, values[offset]);
            let (path, tensor) = (self.path.clone(), name.to_string());
            CheckpointError::NotFiniteToWrite { path, tensor, index, value }
        })?;
        self.file.write(&bytes)?;
        self.written += values.len();
        self.skip_complete();
        Ok(())
    }

    /// Puts the file in place. Fails when a declared tensor is not complete.
    pub fn finish(self) -> Result<()> {
        if let Some((param, _)) = self.tensors.get(self.current) {
            let (name, found, expected) = (&param.name, self.written, param.num_elements());
            return Err(self.misuse(format!("`{name}` ends after {found} of {expected} elements")));
        }
        self.file.commit()
    }

    /// Moves on from a full tensor, and over those without elements.
    fn skip_complete(&mut self) {
        while self.tensors.get(self.current).is_some_and(|(param, _)| param.num_elements() == self.written) {
            self.current += 1;
            self.written = 0;
        }
    }

    fn misuse(&self, mistake: String) -> CheckpointError {
        CheckpointError::Misuse { path: self.path.clone(), mistake }
    }
}

/// The bytes of all values, or the position of the first one that `round` calls not finite.
fn encode<const N: usize>(values: &[f32], round: impl Fn(f32) -> ([u8; N], bool)) -> Result<Vec<u8>, usize> {
    let mut bytes = Vec::with_capacity(values.len() * N);
    for (offset, &value) in values.iter().enumerate() {
        let (word, is_finite) = round(value);
        if !is_finite {
            return Err(offset);
        }
        bytes.extend_from_slice(&word);
    }
    Ok(bytes)
}
