//! JSON as Python's `json` module reads and writes it: key order and the spelling of numbers are kept, and a repeated
//! key is an error instead of a silent loss. Knows nothing of rows, tools or templates.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deeper values than this are refused; the same bound as `serde_json`'s own.
const MAX_DEPTH: usize = 128;

/// A JSON value. Numbers stay text, because Python prints integers of any size and floats in its own way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Why a text is not one JSON value.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("not valid JSON: {problem}{position}")]
    Syntax { problem: String, position: Position },
    #[error("key `{0}` stands twice in one object")]
    RepeatedKey(String),
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

/// Where a text stops being JSON. Lines and columns count from 1, columns in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// In a piece of the text, which does not know where it stands.
    Unknown,
    InFile {
        line: u64,
        column: usize,
    },
    /// In a text that is itself a part of a file, as a row is, so that its lines are not the file's.
    Within {
        whole: &'static str,
        line: u64,
        column: usize,
    },
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Unknown => Ok(()),
            Position::InFile { line, column } => write!(f, " at line {line} column {column}"),
            Position::Within { whole, line: 1, column } => write!(f, " at column {column} of the {whole}"),
            Position::Within { whole, line, column } => write!(f, " at line {line} column {column} of the {whole}"),
        }
    }
}

impl JsonError {
    fn of_file(cause: &serde_json::Error) -> JsonError {
        let position = Position::InFile { line: cause.line() as u64, column: cause.column() };
        JsonError::Syntax { problem: without_position(cause), position }
    }

    fn of_piece(cause: serde_json::Error) -> JsonError {
        JsonError::Syntax { problem: without_position(&cause), position: Position::Unknown }
    }

    /// The error of a row that begins on line `first_line` of its file. Where in that line is not known.
    pub(crate) fn in_row(self, first_line: u64) -> JsonError {
        self.moved(|line, column| match line {
            1 => Position::Within { whole: "row", line, column },
            _ => Position::InFile { line: first_line + line - 1, column },
        })
    }

    /// The error of a text that stands inside a row's JSON.
    pub(crate) fn in_text(self) -> JsonError {
        self.moved(|line, column| Position::Within { whole: "text", line, column })
    }

    fn moved(self, to: impl Fn(u64, usize) -> Position) -> JsonError {
        match self {
            JsonError::Syntax { problem, position: Position::InFile { line, column } } => {
                JsonError::Syntax { problem, position: to(line, column) }
            }
            other => other,
        }
    }
}

fn without_position(cause: &serde_json::Error) -> String {
    let text = cause.to_string();
    let position = format!(" at line {} column {}", cause.line(), cause.column());
    text.strip_suffix(&position).map(str::to_string).unwrap_or(text)
}

impl Json {
    pub(crate) fn parse(text: &str) -> Result<Json, JsonError> {
        // The first pass checks the whole text and reports line and column; below it only pieces are taken apart.
        let raw: &RawValue = serde_json::from_str(text).map_err(|cause| JsonError::of_file(&cause))?;
        Json::take_apart(raw, 0)
    }

    fn take_apart(raw: &RawValue, depth: usize) -> Result<Json, JsonError> {
        if depth == MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
        let text = raw.get();
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let Entries(entries) = serde_json::from_str(text).map_err(JsonError::of_piece)?;
                let mut seen = HashSet::with_capacity(entries.len());
                if let Some((key, _)) = entries.iter().find(|(key, _)| !seen.insert(key.as_str())) {
                    return Err(JsonError::RepeatedKey(key.clone()));
                }
                let parts = entries.into_iter().map(|(key, value)| Ok((key, Json::take_apart(value, depth + 1)?)));
                Json::Object(parts.collect::<Result<_, JsonError>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(JsonError::of_piece)?;
                Json::List(items.into_iter().map(|item| Json::take_apart(item, depth + 1)).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Json::Text(serde_json::from_str(text).map_err(JsonError::of_piece)?),
            Some(b't' | b'f') => Json::Bool(text == "true"),
            Some(b'n') => Json::Null,
            _ => Json::Number(text.to_string()),
        })
    }

    /// The value of `key`, where this is an object that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What Python counts as nothing: null, an empty text, an empty list or object.
    pub(crate) fn is_nothing(&self) -> bool {
        match self {
            Json::Null => true,
            Json::Text(text) => text.is_empty(),
            Json::List(items) => items.is_empty(),
            Json::Object(entries) => entries.is_empty(),
            Json::Bool(_) | Json::Number(_) => false,
        }
    }

    /// The kind of value, for error messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a truth value",
            Json::Number(_) => "a number",
            Json::Text(_) => "a text",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    /// `json.dumps(value, ensure_ascii=False)`, optionally indented.
    pub(crate) fn dumps(&self, indent: Option<usize>) -> String {
        self.dumps_as(&Style { indent, ..Style::default() })
    }

    /// `json.dumps(value, …)` with every option a chat template can give.
    pub(crate) fn dumps_as(&self, style: &Style) -> String {
        let mut out = String::new();
        self.write(&mut out, style, 0);
        out
    }

    fn write(&self, out: &mut String, style: &Style, level: usize) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(spelling) => out.push_str(&python_number(spelling)),
            Json::Text(text) => write_text(out, text, style.ascii),
            Json::List(items) => style.write_items(out, ('[', ']'), items, level, |out, item| {
                item.write(out, style, level + 1);
            }),
            Json::Object(entries) => {
                let mut ordered: Vec<&(String, Json)> = entries.iter().collect();
                if style.sort_keys {
                    ordered.sort_by(|a, b| a.0.cmp(&b.0));
                }
                style.write_items(out, ('{', '}'), &ordered, level, |out, (key, value)| {
                    write_text(out, key, style.ascii);
                    out.push_str(&style.key_separator);
                    value.write(out, style, level + 1);
                });
            }
        }
    }
}

/// The options of `json.dumps`.
#[derive(Debug, Clone)]
pub(crate) struct Style {
    pub(crate) indent: Option<usize>,
    pub(crate) ascii: bool,
    pub(crate) sort_keys: bool,
    /// `None`: `", "`, or `","` where lines are broken.
    pub(crate) item_separator: Option<String>,
    pub(crate) key_separator: String,
}

impl Default for Style {
    fn default() -> Style {
        Style { indent: None, ascii: false, sort_keys: false, item_separator: None, key_separator: ": ".to_string() }
    }
}

impl Style {
    fn write_items<T>(
        &self,
        out: &mut String,
        (open, close): (char, char),
        items: &[T],
        level: usize,
        mut write: impl FnMut(&mut String, &T),
    ) {
        out.push(open);
        let separator = self.item_separator.as_deref().unwrap_or(if self.indent.is_some() { "," } else { ", " });
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(separator);
            }
            self.break_line(out, level + 1);
            write(out, item);
        }
        if !items.is_empty() {
            self.break_line(out, level);
        }
        out.push(close);
    }

    fn break_line(&self, out: &mut String, level: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    }
}

fn write_text(out: &mut String, text: &str, ascii: bool) {
    let quoted = serde_json::to_string(text).expect("a string always has a JSON form");
    if !ascii {
        out.push_str(&quoted);
        return;
    }
    for character in quoted.chars() {
        // Python's ASCII form escapes DEL too; its other form does not.
        if character.is_ascii() && character != '\x7f' {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

fn python_number(spelling: &str) -> String {
    if spelling == "-0" {
        return "0".to_string();
    }
    if !spelling.contains(['.', 'e', 'E']) {
        return spelling.to_string();
    }
    match spelling.parse::<f64>() {
        Ok(value) => python_float(value),
        Err(_) => spelling.to_string(),
    }
}

/// `repr(value)` of a Python float: shortest digits that read back, an exponent below 1e-4 and from 1e16 on.
pub(crate) fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_string();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` always prints an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` prints the exponent as an integer");
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// An object's entries in the order they stand, repeated keys included.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &str, indent: Option<usize>, expected: &str) {
        assert_eq!(Json::parse(written).unwrap().dumps(indent), expected, "{written}");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        check(r#"{"b":[1,2.50,{}],"a":[]}"#, None, r#"{"b": [1, 2.5, {}], "a": []}"#);
        check(
            r#"{"b":[1,{"x":null}],"a":[]}"#,
            Some(2),
            "{\n  \"b\": [\n    1,\n    {\n      \"x\": null\n    }\n  ],\n  \"a\": []\n}",
        );
        check(r#" "\u00e9\u0001\n\/<&>'\u2028\u007f" "#, None, "\"é\\u0001\\n/<&>'\u{2028}\u{7f}\"");
        check("123456789012345678901234567890", None, "123456789012345678901234567890");
        check("[true,false,null,-0,-0.0]", None, "[true, false, null, 0, -0.0]");
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (written, expected) in [
            ("1e5", "100000.0"),
            ("1E16", "1e+16"),
            ("1e15", "1000000000000000.0"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("5e-324", "5e-324"),
            ("-1.5e-10", "-1.5e-10"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("3.141592653589793", "3.141592653589793"),
            ("1e999", "Infinity"),
        ] {
            check(written, None, expected);
        }
    }

    #[test]
    fn every_option_of_dumps_is_honoured() {
        let value = Json::parse("{\"b\":\"é🙂\u{7f}\",\"a\":1}").unwrap();
        let style = Style { ascii: true, sort_keys: true, ..Style::default() };
        assert_eq!(value.dumps_as(&style), r#"{"a": 1, "b": "\u00e9\ud83d\ude42\u007f"}"#);
        let style = Style { item_separator: Some(",".to_string()), key_separator: ":".to_string(), ..Style::default() };
        assert_eq!(value.dumps_as(&style), "{\"b\":\"é🙂\u{7f}\",\"a\":1}");
    }

    #[test]
    fn a_broken_text_is_placed_by_what_it_stands_in() {
        let broken = |text: &str| Json::parse(text).unwrap_err();
        assert_eq!(broken("{\n\"a\":}").to_string(), "not valid JSON: expected value at line 2 column 5");
        assert_eq!(
            broken("{\"a\":").in_row(7).to_string(),
            "not valid JSON: EOF while parsing a value at column 5 of the row"
        );
        assert_eq!(broken("{\n\"a\":}").in_row(7).to_string(), "not valid JSON: expected value at line 8 column 5");
        assert_eq!(broken("f(").in_text().to_string(), "not valid JSON: expected ident at column 2 of the text");
        // Half of a character is found in a piece, whose own columns would mislead.
        let text = broken("{\"a\": \"\\ud800\"}").in_row(7).to_string();
        assert_eq!(text, "not valid JSON: unexpected end of hex escape");
    }

    #[test]
    fn broken_repeated_and_bottomless_values_are_refused() {
        for text in ["", "{", "[1,]", "nul", "{\"a\":1} x", "\"\\ud800\"", "01"] {
            assert!(matches!(Json::parse(text), Err(JsonError::Syntax { .. })), "{text}");
        }
        for text in [r#"{"a":1,"a":2}"#, r#"[{"x":{"a":1,"\u0061":1}}]"#] {
            assert!(matches!(Json::parse(text), Err(JsonError::RepeatedKey(key)) if key == "a"), "{text}");
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(matches!(Json::parse(&deep), Err(JsonError::TooDeep)));
    }
}
