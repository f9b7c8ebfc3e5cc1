//! One YAML document as a tree that remembers where every value stands. Knows nothing of keys or their meaning, and
//! decides nothing about types: a scalar keeps the text the user wrote.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as DeError, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, MergeKeyPolicy, NonFiniteFloatPolicy, Options, Spanned};

// A run file has some hundred nodes. What is far above that is a mistake or an attack, and is refused before it costs
// time: an alias bomb after this many copies, a tower of brackets at this depth.
const MAX_NODES: usize = 20_000;
const MAX_DEPTH: usize = 16;

/// A value and the place of its first character, both counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub value: Value,
    pub line: u64,
    pub column: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    /// Nothing stands where a value should, which YAML takes for `null`.
    Empty,
    /// `typed` says that YAML reads the plain text as a number or a truth value; a quoted `"5"` is not typed.
    Scalar {
        text: String,
        typed: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub name: String,
    pub line: u64,
    pub column: u64,
}

/// Why a text is not one YAML document, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum YamlError {
    Syntax { line: u64, column: u64, problem: String },
    Duplicate { line: u64, column: u64, key: String, first: Option<(u64, u64)> },
}

/// Reads one document. A top-level map keeps the order in which its keys are written.
pub(crate) fn parse(text: &str) -> Result<Node, YamlError> {
    match read(text, DuplicateKeyPolicy::Error) {
        Ok(node) => Ok(node),
        Err(serde_saphyr::Error::DuplicateMappingKey { key: Some(key), location }) => {
            let (line, column) = (location.line(), location.column());
            Err(YamlError::Duplicate { line, column, first: first_place(text, &key, column), key })
        }
        Err(error) => Err(syntax_error(&error)),
    }
}

impl Node {
    pub fn null() -> Node {
        Node { value: Value::Null, line: 0, column: 0 }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null | Value::Empty)
    }

    /// The text of a scalar.
    pub fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// How a message shows the value: on one line, and never longer than a few words.
    pub fn shown(&self) -> String {
        match &self.value {
            Value::Null => "null".to_string(),
            Value::Empty => "no value".to_string(),
            Value::Scalar { text, typed: true } => text.clone(),
            Value::Scalar { text, typed: false } => format!("{:?}", shortened(text)),
            Value::List(items) => {
                let shown: Vec<String> = items.iter().take(8).map(Node::shown_in_list).collect();
                format!("[{}{}]", shown.join(", "), if items.len() > 8 { ", …" } else { "" })
            }
            Value::Map(_) => "a map".to_string(),
        }
    }

    fn shown_in_list(&self) -> String {
        match &self.value {
            Value::List(_) => "a list".to_string(),
            _ => self.shown(),
        }
    }
}

fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

fn read(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Node, serde_saphyr::Error> {
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options(duplicate_keys))?;
    Ok(node(raw, text))
}

fn options(duplicate_keys: DuplicateKeyPolicy) -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_recorded_anchor_events: MAX_NODES,
            max_anchors: 1_000,
            max_aliases: 1_000,
        },
        duplicate_keys: duplicate_keys,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// Where the key stood before; the column tells a key of the outer map from one of the same name further in.
fn first_place(text: &str, key: &str, column: u64) -> Option<(u64, u64)> {
    let document = read(text, DuplicateKeyPolicy::FirstWins).ok()?;
    let Value::Map(entries) = document.value else { return None };
    let (first, _) = entries.into_iter().find(|(first, _)| first.name == key && first.column == column)?;
    Some((first.line, first.column))
}

fn syntax_error(error: &serde_saphyr::Error) -> YamlError {
    let (line, column) = error.location().map_or((1, 1), |place| (place.line().max(1), place.column().max(1)));
    let problem = match error {
        serde_saphyr::Error::MultipleDocuments { .. } => "found a second document, expected one".to_string(),
        // A budget that breaks while aliases are copied comes wrapped, and only its words tell.
        error if error.to_string().contains("budget breached") => {
            format!("found more than {MAX_NODES} values or {MAX_DEPTH} levels, aliases counted out in full")
        }
        serde_saphyr::Error::MergeKeyNotAllowed { .. } => {
            "found a merge key `<<`, expected every key written out".to_string()
        }
        _ => explained(&error.to_string()),
    };
    YamlError::Syntax { line, column, problem }
}

/// The parser's own words without the place, which stands in front already, and with the usual remedy.
fn explained(message: &str) -> String {
    let end = message.find(" at line ").unwrap_or(message.len());
    let words = message[..end].split_whitespace().collect::<Vec<_>>().join(" ");
    let remedy = if words.contains("tab") {
        ", indent with spaces"
    } else if words.contains("mapping values are not allowed") {
        ", check the indentation and put a value that holds a colon in quotes"
    } else if words.contains("unexpected character") {
        ", put a value that starts with it in quotes"
    } else {
        ""
    };
    format!("{words}{remedy}")
}

/// What the parser makes of a value, before the written text of numbers and truth values is put back.
enum Raw {
    Null,
    /// A number or a truth value, as the parser would print it.
    Typed(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, source: &str) -> Node {
    let value = match raw.value {
        Raw::Null if written(&raw.defined, source).is_some_and(|text| text.is_empty()) => Value::Empty,
        Raw::Null => Value::Null,
        Raw::Typed(printed) => Value::Scalar { text: written(&raw.defined, source).unwrap_or(printed), typed: true },
        Raw::Text(text) => Value::Scalar { text, typed: false },
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, source)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let (line, column) = (key.referenced.line(), key.referenced.column());
                    (Key { name: key.value, line, column }, node(value, source))
                })
                .collect(),
        ),
    };
    Node { value, line: raw.referenced.line(), column: raw.referenced.column() }
}

/// The source text of a scalar, where the parser kept its bytes.
fn written(place: &Location, source: &str) -> Option<String> {
    let span = place.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
    source.get(start..end).map(|text| text.trim_end().to_string())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: DeError>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i64<E: DeError>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u64<E: DeError>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i128<E: DeError>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u128<E: DeError>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_f64<E: DeError>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_str<E: DeError>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_string()))
    }

    fn visit_unit<E: DeError>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: DeError>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let Value::Map(entries) = parse(text).unwrap().value else { panic!("{text:?} is not a map") };
        let shown: Vec<String> =
            entries.iter().map(|(k, v)| format!("{}@{}:{}={}", k.name, v.line, v.column, v.shown())).collect();
        assert_eq!(shown.join(" "), expected, "{text:?}");
    }

    #[test]
    fn scalars_keep_the_text_and_the_place_they_were_written_with() {
        check("a: 1e-4 # note\nb: 010\n", "a@1:4=1e-4 b@2:4=010");
        check("a: yes\nb: True\nc: no\n", "a@1:4=yes b@2:4=True c@3:4=no");
        check("a: \"5\"\nb: 'it''s'\n", "a@1:4=\"5\" b@2:4=\"it's\"");
        check("a: ~\nb: null\nc: \"null\"\n", "a@1:4=null b@2:4=null c@3:4=\"null\"");
        check("a:\nb: # none\nc: ''\n", "a@1:2=no value b@2:2=no value c@3:4=\"\"");
        check("{a: , b: }", "a@1:3=no value b@1:8=no value");
        check("a: .nan\nb: 1e999\nc: 1_000\n", "a@1:4=.nan b@2:4=1e999 c@3:4=1_000");
        check("é: ü\nb: 0.10\n", "é@1:4=\"ü\" b@2:4=0.10");
        check("a: &x 1.50\nb: *x\n", "a@1:7=1.50 b@2:4=1.50");
        check("\u{feff}a: 1\r\nb: 2\r\n", "a@1:4=1 b@2:4=2");
        check("a: [x, 1, 'y z']\n", "a@1:4=[\"x\", 1, \"y z\"]");
        check("a:\n  - x\n  - [1]\n", "a@2:3=[\"x\", a list]");
        check("a: {b: 1}\n", "a@1:4=a map");
    }

    #[test]
    fn broken_documents_name_the_place_and_the_remedy() {
        let rows: [(&str, (u64, u64), &str); 11] = [
            ("a: [1, 2\nb: 3\n", (2, 2), "illegal placement of ':' indicator"),
            ("a:\n\t- b\n", (2, 2), "indent with spaces"),
            ("a: b: c\n", (1, 5), "put a value that holds a colon in quotes"),
            ("a: @x\n", (1, 4), "put a value that starts with it in quotes"),
            ("a: 'x\n", (2, 1), "quoted scalar"),
            ("a: *nope\n", (1, 4), "unknown anchor"),
            ("a: 1\n---\nb: 2\n", (3, 1), "found a second document, expected one"),
            ("a: !python/object:os.system 1\n", (1, 29), "tag"),
            ("<<: {a: 1}\n", (1, 1), "merge key"),
            ("? [a]\n: 1\n", (1, 3), "expected string scalar"),
            ("a: \0\n", (1, 4), "unexpected character"),
        ];
        for (text, place, words) in rows {
            let Err(YamlError::Syntax { line, column, problem }) = parse(text) else { panic!("{text:?} was read") };
            assert!(problem.contains(words) && !problem.contains('\n'), "{text:?}: {problem}");
            assert_eq!((line, column), place, "{text:?}: {problem}");
        }
    }

    #[test]
    fn a_key_written_twice_names_both_places() {
        let error = parse("a: 1\nb: {a: 2}\na: 3\n").unwrap_err();
        assert_eq!(error, YamlError::Duplicate { line: 3, column: 1, key: "a".into(), first: Some((1, 1)) });
        let nested = parse("b: 1\nc: {b: 1, b: 2}\n").unwrap_err();
        assert_eq!(nested, YamlError::Duplicate { line: 2, column: 11, key: "b".into(), first: None });
    }

    #[test]
    fn bombs_and_towers_are_refused_at_once() {
        let tower = format!("a: {}", "[".repeat(100_000));
        let block_tower: String = (0..200).map(|depth| format!("{}a:\n", "  ".repeat(depth))).collect();
        let names = ["b", "c", "d", "e", "f", "g", "h", "i"];
        let mut bomb = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n".to_string();
        let mut last = "a";
        for name in names {
            bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 9].join(", "));
            last = name;
        }
        let long = format!("a: [{}]\n", "1, ".repeat(MAX_NODES + 1));
        for text in [tower, block_tower, bomb, long] {
            let start = std::time::Instant::now();
            assert!(parse(&text).is_err());
            assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
        }
    }
}
