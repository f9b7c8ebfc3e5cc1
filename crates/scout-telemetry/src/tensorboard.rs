//! TensorBoard event files, written without TensorFlow: records of length, masked CRC32C and a protobuf `Event`. Only
//! scalars are written, and nothing is read back.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::TelemetryError;
use crate::step_log::StepRecord;

/// The tags that a step record becomes, with transformers' names where it has one.
pub const SCALAR_TAGS: [&str; 7] = [
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "train/epoch",
    "train/tok_s_gpu",
    "train/mfu",
    "eval/loss",
];

/// The open event file of one run. Every event reaches the operating system whole, so a killed run loses none.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Makes `folder` (usually `runs/` in the run folder) and in it `events.out.tfevents.<unix>.<host>`.
    pub fn create(folder: &Path, host: &str) -> Result<EventFile, TelemetryError> {
        fs::create_dir_all(folder).map_err(|cause| TelemetryError::create(folder, cause))?;
        let now = seconds_since_1970();
        let host: String = host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let path = folder.join(format!("events.out.tfevents.{}.{host}", now as u64));
        let file = File::create(&path).map_err(|cause| TelemetryError::create(&path, cause))?;
        let mut events = EventFile { file, path };
        // Readers refuse a file whose first event does not name this version.
        events.append(&Event { wall_time: now, step: 0, content: Content::FileVersion("brain.Event:2") })?;
        Ok(events)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the numbers the record has, under their `SCALAR_TAGS`, as one event.
    pub fn record(&mut self, record: &StepRecord) -> Result<(), TelemetryError> {
        let values = [
            record.loss,
            record.grad_norm,
            record.lr.map(|value| value as f32),
            record.epoch.map(|value| value as f32),
            record.tok_s_gpu.map(|value| value as f32),
            record.mfu.map(|value| value as f32),
            record.eval_loss,
        ];
        let scalars: Vec<(&str, f32)> =
            SCALAR_TAGS.iter().zip(values).filter_map(|(tag, value)| Some((*tag, value?))).collect();
        self.scalars(record.current_steps, &scalars)
    }

    /// Writes the values under their tags as one event of this step; nothing for an empty list.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f32)]) -> Result<(), TelemetryError> {
        if scalars.is_empty() {
            return Ok(());
        }
        self.append(&Event { wall_time: seconds_since_1970(), step, content: Content::Scalars(scalars) })
    }

    fn append(&mut self, event: &Event) -> Result<(), TelemetryError> {
        let record = framed(&event.encode());
        self.file.write_all(&record).map_err(|cause| TelemetryError::write(&self.path, cause))
    }
}

fn seconds_since_1970() -> f64 {
    // A clock before 1970 gives time zero: TensorBoard only uses it for the horizontal axis.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

struct Event<'a> {
    wall_time: f64,
    step: u64,
    content: Content<'a>,
}

enum Content<'a> {
    FileVersion(&'a str),
    Scalars(&'a [(&'a str, f32)]),
}

impl Event<'_> {
    /// `Event { double wall_time = 1; int64 step = 2; string file_version = 3 | Summary summary = 5 }`, where
    /// `Summary { repeated Value value = 1 }` and `Value { string tag = 1; float simple_value = 2 }`.
    fn encode(&self) -> Vec<u8> {
        let mut event = vec![0x09];
        event.extend(self.wall_time.to_le_bytes());
        event.push(0x10);
        varint(&mut event, self.step);
        match self.content {
            Content::FileVersion(version) => field_of_bytes(&mut event, 3, version.as_bytes()),
            Content::Scalars(scalars) => {
                let mut summary = Vec::new();
                for (tag, value) in scalars {
                    let mut entry = Vec::new();
                    field_of_bytes(&mut entry, 1, tag.as_bytes());
                    entry.push(0x15);
                    entry.extend(value.to_le_bytes());
                    field_of_bytes(&mut summary, 1, &entry);
                }
                field_of_bytes(&mut event, 5, &summary);
            }
        }
        event
    }
}

fn field_of_bytes(message: &mut Vec<u8>, field: u8, content: &[u8]) {
    message.push(field << 3 | 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// One record of the file: length, checksum of the length, content, checksum of the content.
fn framed(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(content.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(content);
    record.extend(masked_crc(content).to_le_bytes());
    record
}

/// The checksum is rotated and shifted because a checksum of data that holds checksums would be weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes per logged step do not need a table.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader written from the format's description, independent of the writer above: `(step, tag, value)` rows and
    /// the file version.
    fn read(mut bytes: &[u8]) -> (String, Vec<(u64, String, f32)>) {
        let (mut version, mut rows) = (String::new(), Vec::new());
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let crc_at = |range: std::ops::Range<usize>| u32::from_le_bytes(bytes[range].try_into().unwrap());
            assert_eq!(unmask(crc_at(8..12)), crc32c(&bytes[..8]));
            assert_eq!(unmask(crc_at(12 + length..16 + length)), crc32c(&bytes[12..12 + length]));
            let mut step = 0;
            for (field, number, content) in fields(&bytes[12..12 + length]) {
                match field {
                    1 => assert!(f64::from_bits(number) > 1.7e9, "a time of this century"),
                    2 => step = number,
                    3 => version = String::from_utf8(content).unwrap(),
                    5 => {
                        for (_, _, value) in fields(&content) {
                            let parts = fields(&value);
                            let tag = String::from_utf8(parts[0].2.clone()).unwrap();
                            rows.push((step, tag, f32::from_bits(parts[1].1 as u32)));
                        }
                    }
                    other => panic!("field {other} is not expected"),
                }
            }
            bytes = &bytes[16 + length..];
        }
        (version, rows)
    }

    fn unmask(masked: u32) -> u32 {
        masked.wrapping_sub(0xa282_ead8).rotate_left(15)
    }

    /// Field number, number (varint, fixed32 or fixed64) and bytes of each field of a protobuf message.
    fn fields(mut message: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        let number = |message: &mut &[u8]| {
            let (mut value, mut shift) = (0_u64, 0);
            loop {
                let byte = message[0];
                *message = &message[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        };
        let mut found = Vec::new();
        while !message.is_empty() {
            let key = number(&mut message);
            let (value, size) = match key & 7 {
                0 => (number(&mut message), 0),
                1 => (u64::from_le_bytes(message[..8].try_into().unwrap()), 8),
                2 => (0, number(&mut message) as usize),
                5 => (u64::from(u32::from_le_bytes(message[..4].try_into().unwrap())), 4),
                other => panic!("wire type {other} is not expected"),
            };
            found.push((key >> 3, value, message[..size].to_vec()));
            message = &message[size..];
        }
        found
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of the polynomial's catalogue entry, and RFC 3720's 32 zero bytes.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn scalars_come_back_from_the_file_with_step_tag_and_value() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(&folder.path().join("runs"), "node-1").unwrap();
        let record = StepRecord { current_steps: 300, loss: Some(1.5), lr: Some(1e-4), ..StepRecord::default() };
        events.record(&record).unwrap();
        events.record(&StepRecord { current_steps: 301, eval_loss: Some(2.5), ..StepRecord::default() }).unwrap();
        events.record(&StepRecord { current_steps: 302, ..StepRecord::default() }).unwrap();
        let (version, rows) = read(&fs::read(events.path()).unwrap());
        assert_eq!(version, "brain.Event:2");
        let expected = [(300, "train/loss", 1.5), (300, "train/learning_rate", 1e-4), (301, "eval/loss", 2.5)];
        assert_eq!(rows, expected.map(|(step, tag, value)| (step, tag.to_string(), value)));
    }

    #[test]
    fn the_file_name_tells_the_time_and_a_host_without_odd_characters() {
        let folder = tempfile::tempdir().unwrap();
        let events = EventFile::create(folder.path(), "a/b c-1").unwrap();
        let name = events.path().file_name().unwrap().to_str().unwrap().to_string();
        let rest = name.strip_prefix("events.out.tfevents.").unwrap();
        let (time, host) = rest.split_once('.').unwrap();
        assert!(time.parse::<u64>().unwrap() > 1_700_000_000, "{name}");
        assert_eq!(host, "a_b_c-1");
        assert_eq!(events.path().parent(), Some(folder.path()));
    }
}
