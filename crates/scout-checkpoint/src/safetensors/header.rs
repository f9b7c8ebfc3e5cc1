//! The header of a safetensors file: from untrusted bytes to entries that fit the file, and back. Does no I/O.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use scout_core::{DType, ParamSpec, Shape};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};

use super::element_type::ElementType;
use crate::error::{CheckpointError, Result};
use crate::unique_json::{UniqueValue, duplicate};

/// The limit of the format's own text.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the length that stands before the header.
pub(super) const LENGTH_BYTES: u64 = 8;

const METADATA_KEY: &str = "__metadata__";

/// No real name comes near; longer ones would only flood a message.
const MAX_NAME_BYTES: usize = 1024;

/// What the libraries that write such files can express.
const MAX_DIMS: usize = 64;

/// One tensor as the header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    pub name: String,
    pub element_type: ElementType,
    pub shape: Shape,
    /// Where its bytes lie, counted from the first byte after the header.
    pub bytes: Range<u64>,
}

impl TensorEntry {
    pub fn num_bytes(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// Entries in the order of their bytes, each of the length its shape asks for, together covering `data_bytes` exactly.
///
/// Names are distinct, and safe to print. `path` is only for messages.
pub(super) fn parse(path: &Path, text: &[u8], file_bytes: u64) -> Result<Vec<TensorEntry>> {
    let bad = |problem: String| CheckpointError::File { path: path.to_path_buf(), problem };
    // The format asks for it, so that no other kind of file passes for this one.
    if text.first() != Some(&b'{') {
        return Err(bad("is not a safetensors file: its header does not begin with `{`".to_string()));
    }
    let raw: RawHeader =
        serde_json::from_slice(text).map_err(|cause| CheckpointError::Json { path: path.to_path_buf(), cause })?;
    let mut names = HashSet::new();
    let mut entries = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in &raw.tensors {
        let entry = check_tensor(name, tensor).map_err(bad)?;
        if !names.insert(name.as_str()) {
            return Err(bad(format!("names the tensor `{name}` twice")));
        }
        entries.push(entry);
    }
    entries.sort_by_key(|entry| (entry.bytes.start, entry.bytes.end));

    let mut end = 0;
    for entry in &entries {
        if entry.bytes.start != end {
            let what =
                if entry.bytes.start < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            let begin = entry.bytes.start;
            return Err(bad(format!("has a bad layout: `{}` {what} (begins at {begin}, expected {end})", entry.name)));
        }
        end = entry.bytes.end;
    }
    let before = LENGTH_BYTES + text.len() as u64;
    let expected = before.checked_add(end).ok_or_else(|| bad("asks for more bytes than can be counted".to_string()))?;
    if expected > file_bytes {
        return Err(CheckpointError::Truncated { path: path.to_path_buf(), found: file_bytes, expected });
    }
    if expected < file_bytes {
        let surplus = file_bytes - expected;
        return Err(bad(format!("has {surplus} bytes after the last tensor, expected none")));
    }
    Ok(entries)
}

fn check_tensor(name: &str, raw: &RawTensor) -> Result<TensorEntry, String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("has a tensor name of {} bytes, expected at most {MAX_NAME_BYTES}", name.len()));
    }
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(format!("has the unusable tensor name `{}`", name.escape_debug()));
    }
    let element_type = ElementType::named(&raw.dtype).ok_or_else(|| {
        let start: String = raw.dtype.chars().take(40).collect();
        format!("gives `{name}` the unknown element type `{}`", start.escape_debug())
    })?;
    if raw.shape.len() > MAX_DIMS {
        return Err(format!("gives `{name}` {} dimensions, expected at most {MAX_DIMS}", raw.shape.len()));
    }
    let too_large = || format!("gives `{name}` the shape {:?}, which is too large to count", raw.shape);
    let mut dims = Vec::with_capacity(raw.shape.len());
    let mut num_bits = u64::from(element_type.bits);
    for &extent in &raw.shape {
        num_bits = num_bits.checked_mul(extent).ok_or_else(too_large)?;
        dims.push(usize::try_from(extent).map_err(|_| too_large())?);
    }
    // A zero hides an overflow in the extents before or after it, and `Shape::num_elements` multiplies unchecked.
    dims.iter()
        .filter(|&&extent| extent != 0)
        .try_fold(1usize, |product, &extent| product.checked_mul(extent))
        .ok_or_else(too_large)?;
    if !num_bits.is_multiple_of(8) {
        return Err(format!("gives `{name}` {num_bits} bits, which is no number of bytes"));
    }
    let (begin, end) = raw.data_offsets;
    let found =
        end.checked_sub(begin).ok_or_else(|| format!("lets `{name}` end ({end}) before it begins ({begin})"))?;
    if found != num_bits / 8 {
        let expected = num_bits / 8;
        return Err(format!("gives `{name}` {found} bytes, expected {expected} for {element_type} {:?}", raw.shape));
    }
    Ok(TensorEntry { name: name.to_string(), element_type, shape: Shape(dims), bytes: begin..end })
}

/// The length and the header of a file that holds `tensors` in this order, padded with spaces to whole 8 bytes.
pub(super) fn render(tensors: &[(ParamSpec, DType)]) -> Vec<u8> {
    let mut text = format!("{{{}:{}", json!(METADATA_KEY), json!({"format": "pt"}));
    let mut begin = 0;
    for (param, dtype) in tensors {
        let end = begin + param.num_elements() as u64 * dtype.size().0;
        let (name, element_type) = (Value::from(param.name.as_str()), ElementType::from(*dtype));
        let shape = Value::from(param.shape.dims().to_vec());
        text += &format!(r#",{name}:{{"dtype":"{element_type}","shape":{shape},"data_offsets":[{begin},{end}]}}"#);
        begin = end;
    }
    text.push('}');
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Keeps every entry, so that a name that stands twice can be seen.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawHeader, A::Error> {
        let mut tensors = Vec::new();
        let mut seen_metadata = false;
        while let Some(name) = entries.next_key::<String>()? {
            if name != METADATA_KEY {
                tensors.push((name, entries.next_value()?));
                continue;
            }
            let UniqueValue(metadata) = entries.next_value()?;
            let is_text = metadata.as_object().is_some_and(|object| object.values().all(Value::is_string));
            if !is_text {
                return Err(serde::de::Error::custom("`__metadata__` is not an object of strings"));
            }
            if std::mem::replace(&mut seen_metadata, true) {
                return Err(duplicate(METADATA_KEY));
            }
        }
        Ok(RawHeader { tensors })
    }
}
