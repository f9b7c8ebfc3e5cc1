//! From a value back to the text that YAML reads as that value.

use scout_core::ByteCount;

use crate::yaml::{self, Value};

/// A text as it can stand behind `key: ` and in a list, in quotes where it must be.
pub(crate) fn yaml_text(text: &str) -> String {
    let harmless = |c: char| c.is_alphanumeric() || "_-./+".contains(c);
    let read_back = yaml::parse(text).ok().map(|node| node.value);
    let as_written = Value::Scalar { text: text.to_string(), typed: false };
    if text.chars().all(harmless) && read_back == Some(as_written) {
        return text.to_string();
    }
    serde_json::Value::from(text).to_string()
}

pub(crate) fn yaml_bytes(bytes: ByteCount) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB")] {
        if bytes.0.trailing_zeros() >= shift && bytes.0 > 0 {
            return format!("{}{unit}", bytes.0 >> shift);
        }
    }
    bytes.0.to_string()
}

/// `null` for what is not there.
pub(crate) fn yaml_optional<T>(value: Option<T>, written: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "null".to_string(), written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_texts_read_back_as_the_same_text() {
        let hard =
            ["5", "1e-4", "yes", "null", "~", "a: b", "a #b", "a,b", "[x", "- x", "é ü", "\"q\"", "a\\b", "&a", ""];
        for text in hard.into_iter().chain(["plain", "./a/b.json", "meta-llama/Llama-4", "1.2.3", "---", "..."]) {
            for document in [format!("k: {}\n", yaml_text(text)), format!("k: [{}]\n", yaml_text(text))] {
                let Value::Map(entries) = yaml::parse(&document).unwrap().value else { panic!("{document}") };
                let node = match &entries[0].1.value {
                    Value::List(items) => items[0].clone(),
                    _ => entries[0].1.clone(),
                };
                assert_eq!(node.value, Value::Scalar { text: text.into(), typed: false }, "{document}");
            }
        }
    }

    #[test]
    fn byte_counts_are_written_in_the_largest_whole_unit() {
        for (bytes, expected) in [(80 << 30, "80GiB"), (8 << 20, "8MiB"), (1500, "1500"), (0, "0")] {
            assert_eq!(yaml_bytes(ByteCount(bytes)), expected);
        }
    }
}
