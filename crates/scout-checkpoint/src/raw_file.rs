//! A file as its disk holds it, read past what the system keeps of it in memory where the file system allows that: to
//! measure the disk. What the bytes mean is not looked at.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::{CheckpointError, Result};

/// An open file. Threads may read from one at the same time.
#[derive(Debug)]
pub struct RawFile {
    path: PathBuf,
    file: File,
    is_direct: bool,
}

/// Memory that a disk can write to by itself.
#[derive(Debug)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    // Invariant: `len` bytes from here on are in `bytes`, and begin at a multiple of the alignment.
    start: usize,
    len: usize,
}

impl RawFile {
    /// What places and lengths of direct reads are multiples of: the blocks of today's disks.
    pub const ALIGNMENT: usize = 4096;

    /// Opens a file that is not empty, for direct reads where they work.
    pub fn open(path: &Path) -> Result<RawFile> {
        let direct = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
        if let Ok(file) = direct {
            // Some file systems open and then refuse to read.
            let mut probe = AlignedBuffer::zeros(Self::ALIGNMENT);
            if file.read_at(probe.bytes_mut(), 0).is_ok() {
                return Ok(RawFile { path: path.to_path_buf(), file, is_direct: true });
            }
        }
        let file = File::open(path).map_err(|cause| CheckpointError::Read { path: path.to_path_buf(), cause })?;
        Ok(RawFile { path: path.to_path_buf(), file, is_direct: false })
    }

    /// Whether what the system keeps in memory is passed by.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Fills the first `len` bytes of `buffer` from `start` on, both multiples of the alignment, and says how many there
    /// were: fewer at the end of the file.
    pub fn read(&self, start: u64, len: usize, buffer: &mut AlignedBuffer) -> Result<usize> {
        let buffer = &mut buffer.bytes_mut()[..len];
        let mut found = 0;
        // A number of bytes that is no multiple is the end of the file.
        while found < len && found.is_multiple_of(Self::ALIGNMENT) {
            match self.file.read_at(&mut buffer[found..], start + found as u64) {
                Ok(0) => break,
                Ok(more) => found += more,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(CheckpointError::Read { path: self.path.clone(), cause }),
            }
        }
        Ok(found)
    }
}

impl AlignedBuffer {
    pub fn zeros(len: usize) -> AlignedBuffer {
        let bytes = vec![0; len + RawFile::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(RawFile::ALIGNMENT);
        AlignedBuffer { bytes, start, len }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_block_by_block_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..3 * RawFile::ALIGNMENT + 5).map(|index| (index % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = RawFile::open(&path).unwrap();
        let mut buffer = AlignedBuffer::zeros(2 * RawFile::ALIGNMENT);
        for start in [0, 1, 2, 3, 4].map(|block| block * RawFile::ALIGNMENT) {
            let expected = &bytes[start.min(bytes.len())..(start + 2 * RawFile::ALIGNMENT).min(bytes.len())];
            let found = file.read(start as u64, 2 * RawFile::ALIGNMENT, &mut buffer).unwrap();
            assert!(buffer.bytes_mut()[..found] == *expected, "{start}: {found} bytes");
        }
    }
}
