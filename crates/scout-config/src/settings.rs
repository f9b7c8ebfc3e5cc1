//! Every known key with the value that won and where it was written: defaults, then the file, the environment and the
//! command line. Says nothing about what a value means; that is for `values.rs` and the components.

use std::collections::BTreeMap;

use scout_core::env::KEY_PREFIX;

use crate::error::{ConfigError, Origin, one_line, or_list};
use crate::key::{Accepts, Key, Treatment};
use crate::keys::{self, KEYS};
use crate::nearest::nearest;
use crate::scalars;
use crate::yaml::{self, Node, Value};

pub(crate) struct Settings {
    // Invariant: one entry for each of `KEYS`.
    values: BTreeMap<&'static str, Setting>,
    name: String,
}

pub(crate) struct Setting {
    pub node: Node,
    pub origin: Origin,
    /// Whether the origin holds a value, not a `null` that asks for the default.
    is_given: bool,
}

impl Settings {
    /// `name` is what the file is called in messages.
    pub fn gather(
        name: &str,
        text: &str,
        overrides: &[String],
        environment: &[(String, String)],
    ) -> Result<Settings, ConfigError> {
        let values = KEYS.iter().map(|key| (key.name, Setting::default_of(key))).collect();
        let mut settings = Settings { values, name: name.to_string() };
        let mut mistakes = settings.add_file(text)?;
        for (variable, text) in environment {
            mistakes.extend(settings.add_variable(variable, text).err());
        }
        for text in overrides {
            mistakes.extend(settings.add_override(text).err());
        }
        mistakes.extend(settings.against_treatments());
        ConfigError::none_of(mistakes)?;
        Ok(settings)
    }

    pub fn get(&self, key: &str) -> &Setting {
        self.values.get(key).expect("components read only keys of the table")
    }

    /// Whether the user wrote a value; `null` and the default are none.
    pub fn is_written(&self, key: &str) -> bool {
        self.get(key).is_given
    }

    pub fn origins(self) -> BTreeMap<&'static str, Origin> {
        self.values.into_iter().map(|(key, setting)| (key, setting.origin)).collect()
    }

    pub fn missing(&self, key: &'static str, expected: &'static str) -> ConfigError {
        ConfigError::MissingKey { name: self.name.clone(), key, expected }
    }

    /// The error that the value of `key` is not what was expected.
    pub fn wrong(&self, key: &'static str, expected: impl Into<String>) -> ConfigError {
        let found = self.get(key).node.shown();
        self.wrong_found(key, one_line(&found), expected)
    }

    /// The error that the value of `key` is at odds with the value of `other`.
    pub fn contradiction(&self, key: &'static str, other: &str, expected: impl Into<String>) -> ConfigError {
        let found = format!("{} with {other} {}", self.get(key).node.shown(), self.get(other).node.shown());
        self.wrong_found(key, one_line(&found), expected)
    }

    /// The error that one part of the value of `key` is not what was expected.
    pub fn wrong_found(&self, key: &'static str, found: String, expected: impl Into<String>) -> ConfigError {
        ConfigError::Value { place: self.get(key).origin.clone(), key, found, expected: expected.into() }
    }

    /// One line for every key that was written and changes nothing.
    pub fn notes_of_inert_keys(&self) -> Vec<String> {
        let reasons = KEYS.iter().filter(|key| self.is_written(key.name)).filter_map(|key| match key.treatment {
            Treatment::Inert(_, reason) => Some((key.name, reason)),
            _ => None,
        });
        reasons.map(|(key, reason)| without_effect(key, reason)).collect()
    }

    /// Returns what is wrong with single keys. Fails where the text is no YAML with keys.
    fn add_file(&mut self, text: &str) -> Result<Vec<ConfigError>, ConfigError> {
        let name = self.name.clone();
        let place_of = |line, column| Origin::File { name: name.clone(), line, column };
        let document = yaml::parse(text).map_err(|error| ConfigError::of_yaml(error, place_of))?;
        let problem = match document.value {
            Value::Map(entries) => {
                let set = entries.into_iter().map(|(key, node)| {
                    let value_place = place_of(node.line, node.column);
                    self.set(&key.name, node, (place_of(key.line, key.column), value_place))
                });
                return Ok(set.filter_map(Result::err).collect());
            }
            Value::Null | Value::Empty => "found no keys".to_string(),
            Value::List(_) => "found a list".to_string(),
            Value::Scalar { .. } => format!("found {}", one_line(&document.shown())),
        };
        let problem = format!("{problem}, expected keys and values such as `learning_rate: 1e-4`");
        Err(ConfigError::Syntax { place: place_of(document.line.max(1), document.column.max(1)), problem })
    }

    fn add_variable(&mut self, variable: &str, text: &str) -> Result<(), ConfigError> {
        let Some(key) = variable.strip_prefix(KEY_PREFIX) else { return Ok(()) };
        let place = Origin::Environment { variable: variable.to_string() };
        let node = written_value(text, &place)?;
        self.set(&key.to_lowercase(), node, (place.clone(), place))
    }

    fn add_override(&mut self, text: &str) -> Result<(), ConfigError> {
        let place = Origin::Override { text: text.to_string() };
        let Some((key, value)) = text.split_once('=') else {
            return Err(ConfigError::Syntax { place, problem: "found no `=`, expected `key=value`".to_string() });
        };
        let node = written_value(value, &place)?;
        self.set(key.trim(), node, (place.clone(), place))
    }

    /// `places` are those of the key and of its value.
    fn set(&mut self, name: &str, node: Node, places: (Origin, Origin)) -> Result<(), ConfigError> {
        let Some(key) = keys::find(name) else {
            return Err(ConfigError::UnknownKey { place: places.0, key: one_line(name), suggestion: nearest(name) });
        };
        // An empty place is more often a number that was to be filled in than a wish for the default.
        if node.value == Value::Empty && key.treatment == Treatment::Honoured && key.default != "null" {
            let expected = format!("one (`null` asks for the default {})", key.default);
            return Err(ConfigError::Value { place: places.1, key: key.name, found: node.shown(), expected });
        }
        // A written `null` asks for the default, and is remembered as the place that asked.
        let is_given = !node.is_null();
        let node = if is_given { node } else { Setting::default_of(key).node };
        self.values.insert(key.name, Setting { node, origin: places.1, is_given });
        Ok(())
    }

    /// What was written for keys that nobody reads and cannot be accepted.
    fn against_treatments(&self) -> Vec<ConfigError> {
        let mistake = |key: &Key| {
            let node = &self.get(key.name).node;
            let expected = match key.treatment {
                Treatment::Honoured => None,
                Treatment::Refused(reason) => Some(format!("null: {reason}")),
                Treatment::Only(words, reason) => Accepts::Words(words).refusal(node, reason),
                Treatment::Inert(accepts, reason) => accepts.refusal(node, reason),
            }?;
            Some(self.wrong(key.name, expected))
        };
        KEYS.iter().filter(|key| self.is_written(key.name)).filter_map(mistake).collect()
    }
}

/// The info line about a key that changes nothing.
pub(crate) fn without_effect(key: &str, reason: &str) -> String {
    format!("`{key}` has no effect: {reason}")
}

impl Setting {
    fn default_of(key: &Key) -> Setting {
        let node = match key.treatment {
            Treatment::Honoured => yaml::parse(key.default).expect("a test reads every default of the table"),
            _ => Node::null(),
        };
        Setting { node, origin: Origin::Default, is_given: false }
    }
}

impl Accepts {
    /// What the value should have been, where it is none of those accepted.
    fn refusal(self, node: &Node, reason: &str) -> Option<String> {
        match self {
            Accepts::Anything => None,
            Accepts::Bool => scalars::truth(node).is_none().then(|| "true or false".to_string()),
            Accepts::Text => node.scalar().is_none().then(|| "a text".to_string()),
            Accepts::Number => {
                let fits = node.scalar().and_then(scalars::number).is_some_and(|number| number >= 0.0);
                (!fits).then(|| "a number of at least 0".to_string())
            }
            Accepts::Words(words) => {
                let items = if let Value::List(items) = &node.value { items } else { std::slice::from_ref(node) };
                let fits = items.iter().all(|item| words.iter().any(|word| scalars::means(item, word)));
                (!fits).then(|| format!("{}: {reason}", or_list(words)))
            }
        }
    }
}

/// The value of an override or a variable, read as in the file.
fn written_value(text: &str, place: &Origin) -> Result<Node, ConfigError> {
    if text.trim().is_empty() {
        let problem = "found no value, expected one (`null` asks for the default)".to_string();
        return Err(ConfigError::Syntax { place: place.clone(), problem });
    }
    yaml::parse(text).map_err(|error| ConfigError::of_yaml(error, |_, _| place.clone()))
}
