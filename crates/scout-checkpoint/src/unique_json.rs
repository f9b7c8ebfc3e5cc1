//! JSON in which no object may name a key twice. Plain parsers keep the last one in silence, so two programs can read
//! two different files from the same bytes. Knows nothing about what the JSON means.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses `bytes` as one JSON value.
///
/// Fails where `serde_json` fails (depth of more than 128 included) and on a key that stands twice in one object.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<UniqueValue>(bytes).map(|UniqueValue(value)| value)
}

/// A JSON value whose objects, at every depth, have distinct keys.
pub(crate) struct UniqueValue(pub Value);

impl<'de> Deserialize<'de> for UniqueValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UniqueValue, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(UniqueValue)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(UniqueValue(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let UniqueValue(value) = entries.next_value()?;
            if object.contains_key(&key) {
                return Err(duplicate(&key));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// The key comes from a file nobody has checked, so it is shown escaped and not at any length.
pub(crate) fn duplicate<E: Error>(key: &str) -> E {
    let start: String = key.chars().take(100).collect();
    E::custom(format_args!("the key `{}` stands twice", start.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused_at_every_depth() {
        let check = |text: &str, expected: Option<&str>| {
            let found = parse(text.as_bytes()).err().map(|error| error.to_string());
            match (found, expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "{text}: {found}"),
                (found, expected) => panic!("{text}: found {found:?}, expected {expected:?}"),
            }
        };
        check(r#"{"a":1,"b":[{"a":2},{"a":3}],"c":{"a":null}}"#, None);
        check(r#"{"a":1,"a":1}"#, Some("the key `a` stands twice"));
        check(r#"{"a":[1,{"b":{"c":1,"c":2}}]}"#, Some("the key `c` stands twice"));
        check("{\"a\\u001b\":1,\"a\\u001b\":1}", Some("the key `a\\u{1b}` stands twice"));
        check(&"[".repeat(1000), Some("recursion limit"));
        check("{} {}", Some("trailing characters"));
        check("", Some("EOF"));
    }

    #[test]
    fn values_are_the_ones_the_plain_parser_gives() {
        let text = r#"{"z":[1,-2,3.5,18446744073709551615,true,null,"é"],"a":{"b":{}}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }
}
