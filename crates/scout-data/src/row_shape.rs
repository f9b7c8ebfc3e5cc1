//! Which fields of a row mean what: the column and tag names of LLaMA-Factory, by default, as a catalogue entry gives
//! them, or as a row shows them. Converts nothing.

use crate::error::{join_names, near_names};
use crate::json::Json;
use crate::row_problem::RowProblem;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Formatting {
    Alpaca,
    ShareGpt,
    OpenAi,
}

/// The format of a data set's rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowShape {
    pub(crate) formatting: Formatting,
    pub(crate) columns: Columns,
    pub(crate) tags: Tags,
}

/// Names of fields; `None` means that the data set does not have it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Columns {
    pub(crate) prompt: Option<String>,
    pub(crate) query: Option<String>,
    pub(crate) response: Option<String>,
    pub(crate) history: Option<String>,
    pub(crate) messages: Option<String>,
    pub(crate) system: Option<String>,
    pub(crate) tools: Option<String>,
    pub(crate) images: Option<String>,
    pub(crate) videos: Option<String>,
    pub(crate) audios: Option<String>,
}

/// Names of keys and roles inside a message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tags {
    pub(crate) role: String,
    pub(crate) content: String,
    pub(crate) user: String,
    pub(crate) assistant: String,
    pub(crate) observation: Option<String>,
    pub(crate) function: Option<String>,
    pub(crate) system: Option<String>,
}

/// What everybody means by these names, and LLaMA-Factory reads only where a column says so.
const OFTEN_FORGOTTEN: [&str; 3] = ["system", "tools", "history"];

impl RowShape {
    /// Fields of a row that look as if they were meant to be used, and are not.
    pub(crate) fn passed_over(&self, row: &Json) -> impl Iterator<Item = &'static str> {
        let Columns { history, system, tools, messages, prompt, query, response, .. } = &self.columns;
        let named = [history, system, tools, messages, prompt, query, response];
        let is_named = move |field: &str| named.into_iter().flatten().any(|name| name == field);
        let says_something = |field: &str| row.get(field).is_some_and(|value| !value.is_nothing());
        OFTEN_FORGOTTEN.into_iter().filter(move |field| says_something(field) && !is_named(field))
    }

    /// What a catalogue entry without `columns` and `tags` means. For `openai` LLaMA-Factory has ShareGPT's names here,
    /// which fit no such row; the names of OpenAI's own format are meant.
    pub(crate) fn of_formatting(formatting: Formatting) -> RowShape {
        let messages = if formatting == Formatting::OpenAi { "messages" } else { "conversations" };
        let columns = Columns {
            prompt: name("instruction"),
            query: name("input"),
            response: name("output"),
            messages: name(messages),
            ..Columns::default()
        };
        RowShape { formatting, columns, tags: Tags::of_formatting(formatting) }
    }

    /// The format of a file given by its path, told from its first row.
    pub(crate) fn detect(row: &Json) -> Result<RowShape, RowProblem> {
        let Json::Object(entries) = row else {
            return Err(RowProblem::WrongType { found: row.kind(), expected: "an object" });
        };
        if let Some(key) = ["chosen", "rejected", "kto_tag"].into_iter().find(|key| row.get(key).is_some()) {
            return Err(RowProblem::Preference(key));
        }
        let formatting = if let Some(messages) = row.get("messages").or_else(|| row.get("conversations")) {
            if speaks_openai(messages) { Formatting::OpenAi } else { Formatting::ShareGpt }
        } else if row.get("instruction").is_some() || row.get("output").is_some() {
            Formatting::Alpaca
        } else {
            let keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).take(8).collect();
            return Err(RowProblem::UnknownFormat { found: join_names(&keys) });
        };
        let mut shape = RowShape::of_formatting(formatting);
        let messages = if row.get("messages").is_some() { "messages" } else { "conversations" };
        shape.columns = Columns {
            history: name("history"),
            messages: name(messages),
            system: name("system"),
            tools: name("tools"),
            images: name("images"),
            videos: name("videos"),
            audios: name("audios"),
            ..shape.columns
        };
        Ok(shape)
    }
}

/// Whether messages use `role` where ShareGPT uses `from`. An empty list is told by the key it stands under.
fn speaks_openai(messages: &Json) -> bool {
    match messages {
        Json::List(items) => items.first().is_none_or(|first| first.get("from").is_none()),
        _ => true,
    }
}

impl Tags {
    pub(crate) fn of_formatting(formatting: Formatting) -> Tags {
        let names = match formatting {
            Formatting::OpenAi => ["role", "content", "user", "assistant", "tool", "function", "system"],
            _ => ["from", "value", "human", "gpt", "observation", "function_call", "system"],
        };
        let [role, content, user, assistant, observation, function, system] = names.map(str::to_string);
        Tags {
            role,
            content,
            user,
            assistant,
            observation: Some(observation),
            function: Some(function),
            system: Some(system),
        }
    }

    /// Reads `tags` of a catalogue entry. As in LLaMA-Factory, a role that is not named there does not exist.
    pub(crate) fn from_entry(entry: &Json) -> Result<Tags, String> {
        const KEYS: [&str; 7] =
            ["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"];
        let [role, content, user, assistant, observation, function, system] = read_names("tags", entry, KEYS)?;
        let needed = |value: Option<String>, key: &str| value.ok_or(format!("has `tags` without `{key}`"));
        Ok(Tags {
            role: needed(role, "role_tag")?,
            content: needed(content, "content_tag")?,
            user: needed(user, "user_tag")?,
            assistant: needed(assistant, "assistant_tag")?,
            observation,
            function,
            system,
        })
    }
}

impl Columns {
    /// Reads `columns` of a catalogue entry. As in LLaMA-Factory, a column that is not named there is not read.
    pub(crate) fn from_entry(entry: &Json) -> Result<Columns, String> {
        const KEYS: [&str; 13] = [
            "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios",
            "chosen", "rejected", "kto_tag",
        ];
        let [prompt, query, response, history, messages, system, tools, images, videos, audios, preferences @ ..] =
            read_names("columns", entry, KEYS)?;
        for (key, value) in KEYS[10..].iter().zip(&preferences) {
            if value.is_some() {
                return Err(format!("names `{key}`: preference data cannot be used for supervised fine-tuning"));
            }
        }
        Ok(Columns { prompt, query, response, history, messages, system, tools, images, videos, audios })
    }
}

fn read_names<const N: usize>(what: &str, entry: &Json, keys: [&str; N]) -> Result<[Option<String>; N], String> {
    let Json::Object(entries) = entry else {
        return Err(format!("has `{what}` of the wrong type: found {}, expected an object", entry.kind()));
    };
    refuse_unknown_keys(&format!(" in `{what}`"), entries, &keys)?;
    let mut names = [const { None }; N];
    for (slot, key) in names.iter_mut().zip(keys) {
        *slot = match entry.get(key) {
            None | Some(Json::Null) => None,
            Some(Json::Text(name)) => Some(name.clone()),
            Some(other) => {
                return Err(format!("has `{what}.{key}` of the wrong type: found {}, expected a text", other.kind()));
            }
        };
    }
    Ok(names)
}

/// `place` says in which part of the entry the keys stand, where it is a part.
pub(crate) fn refuse_unknown_keys(place: &str, entries: &[(String, Json)], keys: &[&str]) -> Result<(), String> {
    let Some((unknown, _)) = entries.iter().find(|(key, _)| !keys.contains(&key.as_str())) else { return Ok(()) };
    let near = near_names(unknown, keys.iter().copied());
    let expected = if near.is_empty() { join_names(keys) } else { join_names(&near) };
    Err(format!("has the unknown key `{}`{place}, expected {expected}", unknown.escape_debug()))
}

fn name(text: &str) -> Option<String> {
    Some(text.to_string())
}
