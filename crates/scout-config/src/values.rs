//! What a component asks of the settings: the value of a key as a number, a truth value, a word, a path, a list, or the
//! error that it is none. Which key wants what is for the components to say.

use std::path::PathBuf;
use std::time::Duration;

use scout_core::ByteCount;

use crate::error::{ConfigError, one_line, or_list};
use crate::scalars::{has_leading_zero, number, truth, whole};
use crate::settings::Settings;
use crate::words::Word;
use crate::yaml::{Node, Value};

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
            Value::Null | Value::Empty => return Ok(Vec::new()),
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
        // Other readers of these files replace `${...}`, and shells `~`; taking it as written would name a file nobody
        // meant. Replaced, it could be another one on every host, where all ranks must have the same configuration.
        let problem = if text.contains("${") {
            "the value itself, `${…}` is not replaced"
        } else if text == "~" || text.starts_with("~/") {
            "the whole path, `~` is not replaced"
        } else if text.trim().is_empty() || text.contains(['\n', '\0']) {
            "a text on one line, not empty"
        } else {
            return Ok(text.to_string());
        };
        Err(self.wrong_found(key, one_line(&format!("{text:?}")), problem))
    }
}

fn octal_warning(text: Option<&str>) -> &'static str {
    match text {
        Some(text) if has_leading_zero(text) => ", without a leading 0, which some readers take for octal",
        _ => "",
    }
}
