//! The methods of Python's strings, dictionaries and lists that chat templates call. Not the whole language: a method
//! that is missing is an error that names it.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

/// Calls `value.method(args)` as Python would.
pub(crate) fn call(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => call_on_text(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => call_on_map(value, method, args),
        ValueKind::Seq => call_on_list(value, method, args),
        _ => Err(unknown(value, method)),
    }
}

fn unknown(value: &Value, method: &str) -> Error {
    Error::new(ErrorKind::UnknownMethod, format!("a value of kind {} has no method `{method}`", value.kind()))
}

fn call_on_text(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => Value::from(strip(text, method, args)?),
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "splitlines" => {
            let (): () = from_args(args)?;
            Value::from(text.lines().map(Value::from).collect::<Vec<_>>())
        }
        "startswith" => Value::from(any_affix(args, |affix| text.starts_with(affix))?),
        "endswith" => Value::from(any_affix(args, |affix| text.ends_with(affix))?),
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "capitalize" => {
            let mut rest = text.chars();
            let first: String = rest.next().into_iter().flat_map(char::to_uppercase).collect();
            Value::from(first + &rest.as_str().to_lowercase())
        }
        "title" => Value::from(title(text)),
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            match count.map(usize::try_from) {
                Some(Ok(count)) => Value::from(text.replacen(old, new, count)),
                _ => Value::from(text.replace(old, new)),
            }
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut parts = Vec::new();
            for item in items.try_iter()? {
                let part = item.as_str().map(str::to_string);
                parts.push(part.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "join expects strings"))?);
            }
            Value::from(parts.join(text))
        }
        "find" => {
            let (needle,): (&str,) = from_args(args)?;
            Value::from(text.find(needle).map_or(-1, |start| text[..start].chars().count() as i64))
        }
        "count" => {
            let (needle,): (&str,) = from_args(args)?;
            let found = if needle.is_empty() { text.chars().count() + 1 } else { text.matches(needle).count() };
            Value::from(found)
        }
        "isdigit" => Value::from(!text.is_empty() && text.chars().all(char::is_numeric)),
        "isalpha" => Value::from(!text.is_empty() && text.chars().all(char::is_alphabetic)),
        "isspace" => Value::from(!text.is_empty() && text.chars().all(char::is_whitespace)),
        _ => return Err(unknown(&Value::from(text), method)),
    })
}

fn strip<'a>(text: &'a str, method: &str, args: &[Value]) -> Result<&'a str, Error> {
    let (characters,): (Option<&str>,) = from_args(args)?;
    let taken = |character: char| match characters {
        Some(characters) => characters.contains(character),
        None => character.is_whitespace() || ('\x1c'..='\x1f').contains(&character),
    };
    Ok(match method {
        "strip" => text.trim_matches(taken),
        "lstrip" => text.trim_start_matches(taken),
        _ => text.trim_end_matches(taken),
    })
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let mut parts: Vec<&str> = match (separator, limit) {
        (Some(""), _) => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        (Some(separator), None) => text.split(separator).collect(),
        (Some(separator), Some(limit)) if from_right => text.rsplitn(limit + 1, separator).collect(),
        (Some(separator), Some(limit)) => text.splitn(limit + 1, separator).collect(),
        (None, None) => text.split_whitespace().collect(),
        (None, Some(_)) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "split with a limit needs a separator"));
        }
    };
    if from_right && limit.is_some() {
        parts.reverse();
    }
    Ok(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
}

/// `startswith` and `endswith` take one text or several.
fn any_affix(args: &[Value], fits: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let (affixes,): (&Value,) = from_args(args)?;
    if let Some(affix) = affixes.as_str() {
        return Ok(fits(affix));
    }
    Ok(affixes.try_iter()?.any(|affix| affix.as_str().is_some_and(&fits)))
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        inside = character.is_alphabetic();
    }
    out
}

fn call_on_map(map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let keys = || -> Result<Vec<Value>, Error> { Ok(map.try_iter()?.collect()) };
    Ok(match method {
        "get" => {
            let (key, default): (&Value, Option<&Value>) = from_args(args)?;
            let found = map.get_item(key)?;
            let default = || default.cloned().unwrap_or(Value::from(()));
            if found.is_undefined() { default() } else { found }
        }
        "keys" => Value::from(keys()?),
        "values" => Value::from(keys()?.iter().map(|key| map.get_item(key)).collect::<Result<Vec<_>, Error>>()?),
        "items" => {
            let pair = |key: &Value| Ok(Value::from(vec![key.clone(), map.get_item(key)?]));
            Value::from(keys()?.iter().map(pair).collect::<Result<Vec<_>, Error>>()?)
        }
        _ => return Err(unknown(map, method)),
    })
}

fn call_on_list(list: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    match method {
        "count" => Ok(Value::from(list.try_iter()?.filter(|item| item == wanted).count())),
        "index" => match list.try_iter()?.position(|item| item == *wanted) {
            Some(index) => Ok(Value::from(index)),
            None => Err(Error::new(ErrorKind::InvalidOperation, "the value is not in the list")),
        },
        _ => Err(unknown(list, method)),
    }
}
