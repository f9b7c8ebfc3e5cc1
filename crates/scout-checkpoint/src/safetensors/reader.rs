//! Reading tensors out of a safetensors file by `pread`, range by range. Opening reads the header and nothing else.

use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use scout_core::{DType, Shape};

use super::element_type::ElementType;
use super::header::{self, LENGTH_BYTES, MAX_HEADER_BYTES, TensorEntry};
use crate::error::{CheckpointError, Result};

/// Elements converted at a time: large enough for one disk request, small enough to stay in the cache.
const BLOCK_ELEMENTS: usize = 1 << 18;

/// An open safetensors file whose header has passed every check. Threads may read from one at the same time.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    // Invariant: the entries cover the bytes from `data_start` to the end of the file once, in this order.
    entries: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
    data_start: u64,
    bytes_read: AtomicU64,
}

impl TensorFile {
    /// Fails on anything the format forbids, on a file that is longer or shorter than its header says, and on what is
    /// not a regular file.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let read_failed = |cause| CheckpointError::Read { path: path.to_path_buf(), cause };
        let bad = |problem: String| CheckpointError::File { path: path.to_path_buf(), problem };
        // Asked before opening: opening a named pipe would wait for a writer.
        let metadata = fs::metadata(path).map_err(read_failed)?;
        if !metadata.is_file() {
            return Err(bad("is not a regular file".to_string()));
        }
        let file = File::open(path).map_err(read_failed)?;
        let file_bytes = file.metadata().map_err(read_failed)?.len();
        let truncated = |expected| CheckpointError::Truncated { path: path.to_path_buf(), found: file_bytes, expected };
        if file_bytes < LENGTH_BYTES {
            return Err(truncated(LENGTH_BYTES));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact_at(&mut length, 0).map_err(read_failed)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES {
            let problem = format!("claims a header of {header_bytes} bytes, expected at most {MAX_HEADER_BYTES}");
            return Err(bad(problem));
        }
        let data_start = LENGTH_BYTES + header_bytes;
        if data_start > file_bytes {
            return Err(truncated(data_start));
        }
        let mut text = vec![0; header_bytes as usize];
        file.read_exact_at(&mut text, LENGTH_BYTES).map_err(read_failed)?;
        let entries = header::parse(path, &text, file_bytes)?;
        let by_name = entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect();
        let bytes_read = AtomicU64::new(0);
        Ok(TensorFile { path: path.to_path_buf(), file, entries, by_name, data_start, bytes_read })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of their bytes in the file.
    pub fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    pub fn entry(&self, name: &str) -> Result<&TensorEntry> {
        let missing = || CheckpointError::NoTensor { path: self.path.clone(), tensor: name.to_string() };
        self.by_name.get(name).map(|&index| &self.entries[index]).ok_or_else(missing)
    }

    /// Bytes of tensors read so far, headers not counted.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Bytes of the header with its length, read once when the file was opened. Together with `bytes_read` these are all
    /// bytes that were read of the file.
    pub fn header_bytes_read(&self) -> u64 {
        self.data_start
    }

    /// Reads the elements `range` of a floating-point tensor, counted in row-major order, as f32.
    ///
    /// Fails when the tensor is of another kind, and on the first value that is not finite.
    pub fn read_f32(&self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        let num_elements = entry.shape.num_elements();
        if range.start > range.end || range.end > num_elements || range.len() != out.len() {
            let room = out.len();
            let mistake = format!("elements {range:?} of `{name}` ({num_elements} elements) into room for {room}");
            return Err(CheckpointError::Misuse { path: self.path.clone(), mistake });
        }
        let convert = match entry.element_type.dtype() {
            Some(DType::F32) => f32_from_f32,
            Some(DType::BF16) => f32_from_bf16,
            Some(DType::F16) => f32_from_f16,
            _ => return Err(self.mistyped(entry, "F32, BF16 or F16")),
        };
        let element_bytes = size_of_element(entry.element_type);
        let mut block = vec![0; BLOCK_ELEMENTS.min(out.len()) * element_bytes];
        let mut first = range.start;
        for values in out.chunks_mut(BLOCK_ELEMENTS) {
            let bytes = &mut block[..values.len() * element_bytes];
            self.read_bytes(entry, (first * element_bytes) as u64, bytes)?;
            convert(bytes, values);
            if let Some(offset) = values.iter().position(|value| !value.is_finite()) {
                let (index, value) = (first + offset, values[offset]);
                let (path, tensor) = (self.path.clone(), name.to_string());
                return Err(CheckpointError::NotFinite { path, tensor, index, value });
            }
            first += values.len();
        }
        Ok(())
    }

    /// Reads a whole floating-point tensor, with the failures of `read_f32`.
    pub fn read_f32_all(&self, name: &str) -> Result<(Shape, Vec<f32>)> {
        let entry = self.entry(name)?;
        if !matches!(entry.element_type.dtype(), Some(DType::F32 | DType::BF16 | DType::F16)) {
            return Err(self.mistyped(entry, "F32, BF16 or F16"));
        }
        let mut values = vec![0.0; entry.shape.num_elements()];
        self.read_f32(name, 0..values.len(), &mut values)?;
        Ok((entry.shape.clone(), values))
    }

    pub fn read_i64(&self, name: &str) -> Result<(Shape, Vec<i64>)> {
        let entry = self.entry(name)?;
        if entry.element_type.dtype() != Some(DType::I64) {
            return Err(self.mistyped(entry, "I64"));
        }
        let bytes = self.read_whole(entry)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok((entry.shape.clone(), words.iter().map(|word| i64::from_le_bytes(*word)).collect()))
    }

    pub fn read_u8(&self, name: &str) -> Result<(Shape, Vec<u8>)> {
        let entry = self.entry(name)?;
        if entry.element_type.dtype() != Some(DType::U8) {
            return Err(self.mistyped(entry, "U8"));
        }
        Ok((entry.shape.clone(), self.read_whole(entry)?))
    }

    fn read_whole(&self, entry: &TensorEntry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; entry.num_bytes() as usize];
        self.read_bytes(entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    fn read_bytes(&self, entry: &TensorEntry, offset: u64, out: &mut [u8]) -> Result<()> {
        let position = self.data_start + entry.bytes.start + offset;
        self.file
            .read_exact_at(out, position)
            .map_err(|cause| CheckpointError::Read { path: self.path.clone(), cause })?;
        self.bytes_read.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn mistyped(&self, entry: &TensorEntry, expected: &'static str) -> CheckpointError {
        let (tensor, found) = (entry.name.clone(), entry.element_type.to_string());
        CheckpointError::ElementType { path: self.path.clone(), tensor, found, expected }
    }
}

fn size_of_element(element_type: ElementType) -> usize {
    usize::from(element_type.bits / 8)
}

fn f32_from_f32(bytes: &[u8], values: &mut [f32]) {
    for (value, word) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*word);
    }
}

fn f32_from_bf16(bytes: &[u8], values: &mut [f32]) {
    for (value, word) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        // bf16 is the upper half of an f32, so this is exact, and free of the library's special case for NaN.
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16);
    }
}

fn f32_from_f16(bytes: &[u8], values: &mut [f32]) {
    for (value, word) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f16::from_le_bytes(*word).to_f32();
    }
}
