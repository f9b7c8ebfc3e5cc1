//! Renders a checkpoint's own chat template as transformers does, byte for byte. A template is a program from
//! strangers: it runs with a bounded number of instructions and a bounded output, and reaches no files. Makes no tokens.

use std::io;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};

use crate::date::Date;
use crate::error::{DataError, Result};
use crate::json::{Json, Style, python_float};
use crate::python_methods;
use crate::tokenizer::{read_config, token_name};

/// Instructions a template may execute; a long conversation takes some ten thousand.
const FUEL: u64 = 20_000_000;
/// The most bytes a template may write.
const OUTPUT_LIMIT: usize = 64 << 20;
const NAME: &str = "chat_template";

/// A compiled template with the names of the special tokens it may use.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
}

/// What a template is rendered with.
#[derive(Debug, Clone, Copy)]
pub struct ChatRequest<'a> {
    pub messages: &'a serde_json::Value,
    pub tools: Option<&'a serde_json::Value>,
    pub add_generation_prompt: bool,
    /// What `strftime_now` calls now.
    pub date: Date,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, or the one inside `tokenizer_config.json`.
    pub fn load(folder: &Path) -> Result<ChatTemplate> {
        let config = read_config(folder)?.unwrap_or(Json::Null);
        let path = folder.join("chat_template.jinja");
        let source = match std::fs::read_to_string(&path) {
            Ok(source) => source,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => match inline_template(&config) {
                Some(source) => source.to_string(),
                None => return Err(DataError::Read { path, cause }),
            },
            Err(cause) => return Err(DataError::Read { path, cause }),
        };
        let Json::Object(entries) = &config else { return ChatTemplate::new(&source, Vec::new()) };
        let names = entries.iter().map(|(key, _)| key).filter(|key| key.ends_with("_token"));
        let tokens = names.filter_map(|key| Some((key.clone(), token_name(&config, key)?))).collect();
        ChatTemplate::new(&source, tokens)
    }

    /// Compiles a template; `special_tokens` are the variables `bos_token` and the like.
    pub fn new(source: &str, special_tokens: Vec<(String, String)>) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the default ones"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(write_as_python);
        environment.set_unknown_method_callback(|_, value, method, args| python_methods::call(value, method, args));
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", |value: &Value| plain_text(value));
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let source = without_generation_marks(source);
        let failed = |cause: Error| DataError::ChatTemplate { doing: "compilation", cause: Box::new(cause) };
        environment.add_template_owned(NAME, source).map_err(failed)?;
        Ok(ChatTemplate { environment, special_tokens })
    }

    pub fn render(&self, request: &ChatRequest<'_>) -> Result<String> {
        let date = request.date;
        let now = Value::from_function(move |format: String| -> Result<String, Error> {
            date.strftime(&format).map_err(|directive| {
                let message = format!("strftime_now does not know `{directive}`");
                Error::new(ErrorKind::InvalidOperation, message)
            })
        });
        let mut variables: Vec<(String, Value)> =
            self.special_tokens.iter().map(|(name, token)| (name.clone(), Value::from(token))).collect();
        variables.push(("messages".to_string(), to_value(request.messages)));
        variables.push(("tools".to_string(), request.tools.map_or(Value::from(()), to_value)));
        variables.push(("documents".to_string(), Value::from(())));
        variables.push(("add_generation_prompt".to_string(), Value::from(request.add_generation_prompt)));
        variables.push(("strftime_now".to_string(), now));
        let failed = |cause: Error| DataError::ChatTemplate { doing: "rendering", cause: Box::new(cause) };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let mut output = Bounded { bytes: Vec::new() };
        template.render_captured_to(Value::from_pairs(variables), &mut output).map_err(failed)?;
        Ok(String::from_utf8(output.bytes).expect("a template writes whole strings"))
    }
}

/// A template inside the configuration: a text, or a list of named ones of which `default` is meant.
fn inline_template(config: &Json) -> Option<&str> {
    match config.get("chat_template")? {
        Json::Text(source) => Some(source),
        Json::List(named) => {
            let is_default = |entry: &&Json| entry.get("name").and_then(Json::as_text) == Some("default");
            named.iter().find(is_default)?.get("template")?.as_text()
        }
        _ => None,
    }
}

/// `{% generation %}` marks what the assistant says and writes nothing; the engine has no such block, so it becomes
/// one that is always true.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, after) = (&rest[start..start + length + 2], &rest[start + length + 2..]);
        out.push_str(&rest[..start]);
        match tag[2..tag.len() - 2].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// Output that refuses to grow past the limit.
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_LIMIT {
            return Err(io::Error::other(format!("the template writes more than {OUTPUT_LIMIT} bytes")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(to_value).collect::<Vec<Value>>()),
        serde_json::Value::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, value)| (key.as_str(), to_value(value))))
        }
    }
}

/// transformers' `tojson`: `json.dumps` that leaves `<`, `&` and letters beyond ASCII alone.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let mut style = Style {
        indent: options.get::<Option<usize>>("indent")?,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ..Style::default()
    };
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = separators
            .try_into()
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson expects two separators"))?;
        (style.item_separator, style.key_separator) = (Some(item), key);
    }
    options.assert_all_used()?;
    Ok(from_value(value)?.dumps_as(&style))
}

fn from_value(value: &Value) -> Result<Json, Error> {
    Ok(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => Json::Number(number_text(value)),
        ValueKind::String => Json::Text(value.as_str().unwrap_or_default().to_string()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| from_value(&item));
            Json::List(items.collect::<Result<_, Error>>()?)
        }
        ValueKind::Map => {
            let entries = value.try_iter()?.map(|key| Ok((plain_text(&key), from_value(&value.get_item(&key)?)?)));
            Json::Object(entries.collect::<Result<_, Error>>()?)
        }
        kind => {
            return Err(Error::new(ErrorKind::BadSerialization, format!("a value of kind {kind} has no JSON form")));
        }
    })
}

fn number_text(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), python_float)
}

fn write_as_python(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    out.write_str(&plain_text(value)).map_err(|_| Error::new(ErrorKind::WriteFailure, "could not write"))
}

/// Python's `str` of a value; what is undefined is nothing, as in Jinja.
fn plain_text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        _ => python_repr(value),
    }
}

fn python_repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_string(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_string(),
        ValueKind::Number => number_text(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items: Vec<String> = value.try_iter().into_iter().flatten().map(|item| python_repr(&item)).collect();
            match items.as_slice() {
                [single] if value.is_tuple() => format!("({single},)"),
                _ if value.is_tuple() => format!("({})", items.join(", ")),
                _ => format!("[{}]", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            let entry = |key: Value| {
                let found = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", python_repr(&key), python_repr(&found))
            };
            format!("{{{}}}", keys.map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

/// Python's `repr` of a string: single quotes unless only they would need escaping.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if character == quote => out.extend(['\\', quote]),
            _ if u32::from(character) < 0x20 || character == '\x7f' => {
                out.push_str(&format!("\\x{:02x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
