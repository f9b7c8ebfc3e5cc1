//! From the text of a value to a number, a truth value, a word, a path, a list. Which key wants what is for the
//! components to say.

use std::path::PathBuf;
use std::time::Duration;

use scout_core::ByteCount;

use crate::error::{ConfigError, one_line, or_list};
use crate::settings::Settings;
use crate::yaml::{self, Node, Value};

/// Far above every sensible count, and low enough that the product of two counts fits.
pub(crate) const MAX_COUNT: u64 = i32::MAX as u64;

/// Where a number must lie, and how a message says so.
pub(crate) struct Range {
    pub words: &'static str,
    pub holds: fn(f64) -> bool,
}

pub(crate) const ABOVE_ZERO: Range = Range { words: "a number greater than 0", holds: |x| x > 0.0 };
pub(crate) const NOT_NEGATIVE: Range = Range { words: "a number of at least 0", holds: |x| x >= 0.0 };
pub(crate) const BELOW_ONE: Range =
    Range { words: "a number from 0 up to, but without 1", holds: |x| (0.0..1.0).contains(&x) };
pub(crate) const SHARE: Range = Range { words: "a number from 0 to 1", holds: |x| (0.0..=1.0).contains(&x) };

/// A value that is one of a few words.
pub(crate) trait Word: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];

    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).expect("every variant has its word").0
    }
}

/// Defines an enum of words, as written in YAML.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$note])* $variant,)+
        }

        impl $crate::values::Word for $name {
            const WORDS: &'static [(&'static str, $name)] = &[$(($word, $name::$variant)),+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad($crate::values::Word::word(*self))
            }
        }
    };
}
pub(crate) use words;

type Read<T> = Result<T, ConfigError>;

impl Settings {
    /// `None` where the value is `null`, else what `read` makes of it.
    pub fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Settings, &'static str) -> Read<T>,
    ) -> Read<Option<T>> {
        if self.get(key).node.is_null() { Ok(None) } else { read(self, key).map(Some) }
    }

    pub fn flag(&self, key: &'static str) -> Read<bool> {
        truth(&self.get(key).node).ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// A whole number from 0.
    pub fn count(&self, key: &'static str) -> Read<usize> {
        self.whole(key, 0, MAX_COUNT).map(|number| number as usize)
    }

    /// A whole number from 1.
    pub fn positive(&self, key: &'static str) -> Read<usize> {
        self.whole(key, 1, MAX_COUNT).map(|number| number as usize)
    }

    pub fn whole(&self, key: &'static str, least: u64, most: u64) -> Read<u64> {
        let text = self.get(key).node.scalar();
        match text.and_then(whole) {
            Some(number) if (i128::from(least)..=i128::from(most)).contains(&number) => Ok(number as u64),
            Some(number) if number > i128::from(most) => {
                Err(self.wrong(key, format!("a whole number from {least} to {most}")))
            }
            _ => Err(self.wrong(key, format!("a whole number of at least {least}{}", octal_warning(text)))),
        }
    }

    pub fn number(&self, key: &'static str, range: &Range) -> Read<f64> {
        let text = self.get(key).node.scalar();
        match text.and_then(number) {
            Some(number) if (range.holds)(number) => Ok(number),
            _ => Err(self.wrong(key, format!("{}{}", range.words, octal_warning(text)))),
        }
    }

    pub fn seconds(&self, key: &'static str) -> Read<Duration> {
        const MAX_SECONDS: f64 = 1e9;
        let seconds = self.number(key, &ABOVE_ZERO)?;
        if seconds > MAX_SECONDS {
            return Err(self.wrong(key, "a number of seconds up to 1e9"));
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    pub fn bytes(&self, key: &'static str) -> Read<ByteCount> {
        let text = self.get(key).node.scalar().filter(|text| !has_leading_zero(text));
        text.and_then(|text| text.parse::<ByteCount>().ok())
            .filter(|bytes| bytes.0 > 0)
            .ok_or_else(|| self.wrong(key, "a number of bytes such as `80GiB`, `512MiB` or `1048576`"))
    }

    pub fn text(&self, key: &'static str) -> Read<String> {
        let text = self.get(key).node.scalar().ok_or_else(|| self.wrong(key, "a text"))?;
        self.plain_text(key, text)
    }

    pub fn path(&self, key: &'static str) -> Read<PathBuf> {
        let text = self.get(key).node.scalar().ok_or_else(|| self.wrong(key, "a path"))?;
        self.plain_text(key, text).map(PathBuf::from)
    }

    /// A comma list in one text, or a YAML list whose items may themselves hold commas.
    pub fn list(&self, key: &'static str) -> Read<Vec<String>> {
        const EXPECTED: &str = "names separated by commas, or a list of names";
        let node = &self.get(key).node;
        let items: Vec<&str> = match &node.value {
            Value::Null => return Ok(Vec::new()),
            Value::Scalar { text, .. } => text.split(',').map(str::trim).collect(),
            Value::List(items) => {
                let texts: Option<Vec<&str>> = items.iter().map(Node::scalar).collect();
                texts.ok_or_else(|| self.wrong(key, EXPECTED))?
            }
            Value::Map(_) => return Err(self.wrong(key, EXPECTED)),
        };
        if items.is_empty() || items.iter().any(|item| item.is_empty()) {
            return Err(self.wrong(key, format!("{EXPECTED}, none of them empty")));
        }
        items.into_iter().map(|item| self.plain_text(key, item)).collect()
    }

    /// One of the words of `T`. `later` are words that are known and not built yet.
    pub fn word<T: Word>(&self, key: &'static str, later: &[&str]) -> Read<T> {
        let written = self.get(key).node.scalar();
        if let Some((_, value)) = T::WORDS.iter().find(|(word, _)| Some(*word) == written) {
            return Ok(*value);
        }
        let allowed: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        let why = match written {
            Some(word) if later.contains(&word) => format!(": {word} is not built yet"),
            _ => String::new(),
        };
        Err(self.wrong(key, format!("{}{why}", or_list(&allowed))))
    }

    fn plain_text(&self, key: &'static str, text: &str) -> Read<String> {
        // Other readers of these files replace `${...}`; taking it as written would name a file nobody meant.
        let problem = if text.contains("${") {
            "the value itself, `${…}` is not replaced"
        } else if text.trim().is_empty() || text.contains(['\n', '\0']) {
            "a text on one line, not empty"
        } else {
            return Ok(text.to_string());
        };
        Err(self.wrong_found(key, one_line(&format!("{text:?}")), problem))
    }
}

/// Truth values as YAML 1.1 and 1.2 write them.
pub(crate) fn truth(node: &Node) -> Option<bool> {
    match node.scalar()?.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The text of a scalar; truth values become `true` and `false`, in whatever way they are written.
pub(crate) fn word(node: &Node) -> Option<String> {
    match &node.value {
        Value::Scalar { typed: true, .. } => match truth(node) {
            Some(truth) => Some(truth.to_string()),
            None => node.scalar().map(str::to_string),
        },
        _ => node.scalar().map(str::to_string),
    }
}

/// A finite decimal number: `2e-5`, `1.0`, `-3`, `1_000`.
pub(crate) fn number(text: &str) -> Option<f64> {
    let digits = decimal(text)?;
    digits.parse::<f64>().ok().filter(|number| number.is_finite())
}

fn whole(text: &str) -> Option<i128> {
    decimal(text)?.parse().ok()
}

/// The text without `_` between digits, if nothing in it but decimal digits, signs, one point and an exponent.
fn decimal(text: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_digit() || "+-.eE_".contains(c);
    let stray_underscore = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    if !text.chars().all(allowed) || stray_underscore || has_leading_zero(text) {
        return None;
    }
    Some(text.replace('_', ""))
}

/// `010` is eight to YAML 1.1 and ten to YAML 1.2: nobody can know what was meant.
fn has_leading_zero(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit() || c == '_')
}

fn octal_warning(text: Option<&str>) -> &'static str {
    match text {
        Some(text) if has_leading_zero(text) => ", without a leading 0, which some readers take for octal",
        _ => "",
    }
}

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
    fn numbers_are_decimal_finite_and_unambiguous() {
        for (text, expected) in [
            ("1e-4", Some(1e-4)),
            ("1.0e-4", Some(1e-4)),
            ("2E+3", Some(2000.0)),
            ("-3", Some(-3.0)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("0", Some(0.0)),
            ("0.10", Some(0.1)),
            ("1_000", Some(1000.0)),
            ("010", None),
            ("-010", None),
            ("1__0", None),
            ("_1", None),
            ("0x10", None),
            ("1e999", None),
            (".nan", None),
            (".inf", None),
            ("inf", None),
            ("1,5", None),
            ("e", None),
            ("", None),
            ("--1", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

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
