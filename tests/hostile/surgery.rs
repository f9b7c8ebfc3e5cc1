//! Operations on safetensors files that no library would perform: headers that lie, tensors that vanish. Reads only
//! what the program itself wrote.

use std::path::Path;

use serde_json::{Map, Value, json};

/// A file taken apart: the header as written, and the bytes of all tensors.
pub struct Opened {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
}

impl Opened {
    pub fn read(path: &Path) -> Opened {
        let bytes = std::fs::read(path).unwrap();
        let (text, data) = bytes[8..].split_at(u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize);
        Opened { header: serde_json::from_slice(text).unwrap(), data: data.to_vec() }
    }

    pub fn write(&self, path: &Path) {
        write_raw(path, &serde_json::to_string(&self.header).unwrap(), &self.data);
    }

    pub fn names(&self) -> Vec<String> {
        self.header.keys().filter(|name| *name != "__metadata__").cloned().collect()
    }

    pub fn range(&self, name: &str) -> std::ops::Range<usize> {
        let offset = |index: usize| self.header[name]["data_offsets"][index].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    }

    /// Takes a tensor and its bytes out; what lies behind moves up.
    pub fn remove(&mut self, name: &str) {
        let gone = self.range(name);
        self.header.shift_remove(name);
        self.data.drain(gone.clone());
        for other in self.names() {
            let range = self.range(&other);
            if range.start >= gone.end {
                self.header[&other]["data_offsets"] = json!([range.start - gone.len(), range.end - gone.len()]);
            }
        }
    }

    pub fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let range = [self.data.len(), self.data.len() + bytes.len()];
        self.header.insert(name.to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": range}));
        self.data.extend_from_slice(bytes);
    }

    pub fn set_f32(&mut self, name: &str, index: usize, value: f32) {
        let at = self.range(name).start + 4 * index;
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The tensors of `names` alone.
    pub fn part(&self, names: &[String]) -> Opened {
        let mut part = Opened { header: Map::new(), data: Vec::new() };
        for name in names {
            let shape: Vec<usize> = serde_json::from_value(self.header[name]["shape"].clone()).unwrap();
            let dtype = self.header[name]["dtype"].as_str().unwrap().to_string();
            part.add(name, &dtype, &shape, &self.data[self.range(name)]);
        }
        part
    }
}

/// A file with this very header text, whatever it says.
pub fn write_raw(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    std::fs::write(path, bytes).unwrap();
}

/// Takes a file apart, changes it, and writes it back.
pub fn edit(path: &Path, change: impl FnOnce(&mut Opened)) {
    let mut opened = Opened::read(path);
    change(&mut opened);
    opened.write(path);
}

/// The same for the header's text.
pub fn edit_header_text(path: &Path, change: impl FnOnce(String) -> String) {
    let opened = Opened::read(path);
    write_raw(path, &change(serde_json::to_string(&opened.header).unwrap()), &opened.data);
}
