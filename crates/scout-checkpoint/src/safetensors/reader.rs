//! Reading tensors out of a safetensors file by `pread`, range by range. Opening reads the header and nothing else.

use std::collections::HashMap;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, fadvise};
use scout_core::{ByteCount, DType, Shape};

use super::header::{self, LENGTH_BYTES, MAX_HEADER_BYTES, TensorEntry};
use super::numbers;
use crate::error::{CheckpointError, Result};

/// Elements that are read, then looked at and converted, at a time: few enough to stay in the cache meanwhile.
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

/// What a download left in place of the file, told by its first bytes: no header is as long as these would say.
fn stands_for_the_file(first: &[u8; LENGTH_BYTES as usize]) -> Option<&'static str> {
    match first {
        b"version " => Some("is a pointer of git-lfs and not the file it stands for: `git lfs pull` fetches that"),
        b"<!DOCTYP" | b"<!doctyp" => Some("is a page of a web site and not the file: download it again"),
        _ if first.starts_with(b"<html") => Some("is a page of a web site and not the file: download it again"),
        _ => None,
    }
}

impl TensorFile {
    /// What a call of `read_f32` or `read_as` takes of the host's memory beside its result, at most: numbers as they are
    /// stored, and as f32.
    pub const SCRATCH: ByteCount = ByteCount(2 * (BLOCK_ELEMENTS * size_of::<f32>()) as u64);

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
        if let Some(problem) = stands_for_the_file(&length) {
            return Err(bad(problem.to_string()));
        }
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
        self.must_fit(entry, &range, out.len())?;
        let stored = self.floating_type(entry)?;
        let mut bytes = vec![0; BLOCK_ELEMENTS.min(out.len()) * bytes_of_one(stored)];
        let mut first = range.start;
        for values in out.chunks_mut(BLOCK_ELEMENTS) {
            self.read_block(entry, stored, first, &mut bytes[..values.len() * bytes_of_one(stored)])?;
            numbers::to_f32(&bytes, stored, values);
            first += values.len();
        }
        Ok(())
    }

    /// Reads the elements `range` of a floating-point tensor as f32 or bf16, in the order of bytes that files have.
    ///
    /// Where the file holds that type, bytes go from there to `out` and nowhere else. Fails as
    /// [`TensorFile::read_f32`] does, and where a value that is finite in the file is not finite in `dtype`.
    pub fn read_as(&self, name: &str, range: Range<usize>, dtype: DType, out: &mut [u8]) -> Result<()> {
        let entry = self.entry(name)?;
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(self.misuse(format!("elements of `{name}` as {dtype}, expected f32 or bf16")));
        }
        let room = out.len() / bytes_of_one(dtype);
        if !out.len().is_multiple_of(bytes_of_one(dtype)) {
            return Err(self.misuse(format!("elements of `{name}` as {dtype} into {} bytes", out.len())));
        }
        self.must_fit(entry, &range, room)?;
        let stored = self.floating_type(entry)?;
        let mut first = range.start;
        if stored == dtype {
            for block in out.chunks_mut(BLOCK_ELEMENTS * bytes_of_one(dtype)) {
                self.read_block(entry, dtype, first, block)?;
                first += block.len() / bytes_of_one(dtype);
            }
            return Ok(());
        }
        let block_len = BLOCK_ELEMENTS.min(room);
        let (mut bytes, mut values) = (vec![0; block_len * bytes_of_one(stored)], vec![0.0; block_len]);
        for block in out.chunks_mut(BLOCK_ELEMENTS * bytes_of_one(dtype)) {
            let values = &mut values[..block.len() / bytes_of_one(dtype)];
            let bytes = &mut bytes[..values.len() * bytes_of_one(stored)];
            self.read_block(entry, stored, first, bytes)?;
            numbers::to_f32(bytes, stored, values);
            numbers::from_f32(values, dtype, block);
            self.must_be_finite(entry, dtype, first, block)?;
            first += values.len();
        }
        Ok(())
    }

    /// Tells the system that the elements `range` of a tensor will be read soon. Only a hint: nothing fails.
    pub fn announce(&self, name: &str, range: Range<usize>) -> Result<()> {
        let bytes = self.bytes_of(name, range)?;
        // Where the file system knows no such hint, reading takes longer and that is all.
        let _ = fadvise(&self.file, bytes.start, NonZeroU64::new(bytes.end - bytes.start), Advice::WillNeed);
        Ok(())
    }

    /// Asks the system to forget what it keeps of the file in memory, so that reading it again is reading the disk.
    pub fn leave_the_page_cache(&self) -> Result<()> {
        // What was written and has not reached the disk cannot be forgotten. Where the file system cannot be asked to write
        // it, or refuses for a file that is only read, most was written long ago.
        let _ = self.file.sync_data();
        fadvise(&self.file, 0, None, Advice::DontNeed)
            .map_err(|cause| CheckpointError::Read { path: self.path.clone(), cause: cause.into() })
    }

    /// Where the elements `range` of a tensor lie in the file.
    pub fn bytes_of(&self, name: &str, range: Range<usize>) -> Result<Range<u64>> {
        let entry = self.entry(name)?;
        self.must_fit(entry, &range, range.len())?;
        let begin = self.data_start + entry.bytes.start;
        let bits = u64::from(entry.element_type.bits);
        Ok(begin + range.start as u64 * bits / 8..begin + (range.end as u64 * bits).div_ceil(8))
    }

    /// Reads a whole floating-point tensor, with the failures of `read_f32`.
    pub fn read_f32_all(&self, name: &str) -> Result<(Shape, Vec<f32>)> {
        let entry = self.entry(name)?;
        self.floating_type(entry)?;
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

    /// Reads elements as they are stored. Fails on the first that is not finite.
    fn read_block(&self, entry: &TensorEntry, stored: DType, first: usize, out: &mut [u8]) -> Result<()> {
        self.read_bytes(entry, (first * bytes_of_one(stored)) as u64, out)?;
        self.must_be_finite(entry, stored, first, out)
    }

    fn must_be_finite(&self, entry: &TensorEntry, dtype: DType, first: usize, bytes: &[u8]) -> Result<()> {
        let Some((offset, value)) = numbers::first_not_finite(bytes, dtype) else { return Ok(()) };
        let (path, tensor) = (self.path.clone(), entry.name.clone());
        Err(CheckpointError::NotFinite { path, tensor, index: first + offset, value })
    }

    fn must_fit(&self, entry: &TensorEntry, range: &Range<usize>, room: usize) -> Result<()> {
        let num_elements = entry.shape.num_elements();
        if range.start > range.end || range.end > num_elements || range.len() != room {
            let name = &entry.name;
            let mistake = format!("elements {range:?} of `{name}` ({num_elements} elements) into room for {room}");
            return Err(self.misuse(mistake));
        }
        Ok(())
    }

    fn floating_type(&self, entry: &TensorEntry) -> Result<DType> {
        match entry.element_type.dtype() {
            Some(dtype @ (DType::F32 | DType::BF16 | DType::F16)) => Ok(dtype),
            _ => Err(self.mistyped(entry, "F32, BF16 or F16")),
        }
    }

    fn misuse(&self, mistake: String) -> CheckpointError {
        CheckpointError::Misuse { path: self.path.clone(), mistake }
    }

    fn mistyped(&self, entry: &TensorEntry, expected: &'static str) -> CheckpointError {
        let (tensor, found) = (entry.name.clone(), entry.element_type.to_string());
        CheckpointError::ElementType { path: self.path.clone(), tensor, found, expected }
    }
}

fn bytes_of_one(dtype: DType) -> usize {
    dtype.size().0 as usize
}
