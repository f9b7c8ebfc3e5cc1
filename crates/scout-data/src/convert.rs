//! One row to one conversation, for the three formats. What LLaMA-Factory skips with a warning is an error here, with
//! the field that is wrong. Reads no files.
//!
//! Two habits of LLaMA-Factory 0.9.5's `openai` rows are left out on purpose: it writes `detailed thinking off`, a
//! setting of another model, into every system text, and it drops the text beside a tool call (here it stays in front
//! of the call). Arguments of a call that are JSON inside a text, as OpenAI's own interface returns them, are unpacked.

use crate::conversation::{Conversation, Role, Turn};
use crate::error::{DataError, join_names};
use crate::json::Json;
use crate::row_problem::RowProblem;
use crate::row_shape::{Columns, Formatting, RowShape, Tags};

/// What is wrong with a row, and in which field.
#[derive(Debug)]
pub(crate) struct FieldProblem {
    pub(crate) field: Option<String>,
    pub(crate) problem: RowProblem,
}

type Converted<T> = Result<T, FieldProblem>;

fn at<T>(field: impl Into<String>, problem: RowProblem) -> Converted<T> {
    Err(FieldProblem { field: Some(field.into()), problem })
}

impl Conversation {
    /// Reads one row that stands in no data set: JSON in any of the formats, told by its keys.
    pub fn from_row(text: &str) -> Result<Conversation, DataError> {
        let row = Json::parse(text).map_err(|cause| DataError::Conversation(RowProblem::Json(cause)))?;
        let shape = RowShape::detect(&row).map_err(DataError::Conversation)?;
        convert(&row, &shape).map_err(|wrong| DataError::Conversation(wrong.problem))
    }
}

pub(crate) fn convert(row: &Json, shape: &RowShape) -> Converted<Conversation> {
    if !matches!(row, Json::Object(_)) {
        let problem = RowProblem::WrongType { found: row.kind(), expected: "an object" };
        return Err(FieldProblem { field: None, problem });
    }
    refuse_media(row, &shape.columns)?;
    match shape.formatting {
        Formatting::Alpaca => convert_alpaca(row, &shape.columns),
        Formatting::ShareGpt | Formatting::OpenAi => convert_messages(row, shape),
    }
}

fn refuse_media(row: &Json, columns: &Columns) -> Converted<()> {
    for (column, kind) in [(&columns.images, "pictures"), (&columns.videos, "videos"), (&columns.audios, "sounds")] {
        if let Some((name, value)) = column.as_ref().and_then(|name| Some((name, row.get(name)?)))
            && !value.is_nothing()
        {
            return at(name, RowProblem::Media { kind });
        }
    }
    Ok(())
}

fn convert_alpaca(row: &Json, columns: &Columns) -> Converted<Conversation> {
    let mut turns = Vec::new();
    if let Some((name, history)) = column(row, &columns.history) {
        read_history(name, history, &mut turns)?;
    }
    let parts = [optional_text(row, &columns.prompt)?, optional_text(row, &columns.query)?];
    let question: Vec<String> = parts.into_iter().flatten().collect();
    if question.is_empty() {
        let name = columns.prompt.as_ref().or(columns.query.as_ref());
        let name = name.expect("the shape of alpaca rows names a column of the question");
        present(row, name)?;
        return at(name, RowProblem::EmptyTurn);
    }
    let Some(answer) = optional_text(row, &columns.response)? else {
        let name = columns.response.as_ref().expect("the shape of alpaca rows names the answer's column");
        if row.get(name).is_none() {
            let problem = RowProblem::AnswerMissing { field: name.clone(), found: only_these(row) };
            return Err(FieldProblem { field: None, problem });
        }
        return at(name, RowProblem::Answerless);
    };
    turns.push(Turn { role: Role::User, content: question.join("\n") });
    turns.push(Turn { role: Role::Assistant, content: answer });
    let system = optional_text(row, &columns.system)?;
    Ok(Conversation { system, tools: read_tools(row, &columns.tools)?, turns })
}

fn read_history(name: &str, history: &Json, turns: &mut Vec<Turn>) -> Converted<()> {
    let Json::List(pairs) = history else {
        return at(name, RowProblem::WrongType { found: history.kind(), expected: "a list of [question, answer]" });
    };
    for (index, pair) in pairs.iter().enumerate() {
        let texts = match pair {
            Json::List(items) => match items.as_slice() {
                [Json::Text(question), Json::Text(answer)] => Some((question, answer)),
                _ => None,
            },
            _ => None,
        };
        let field = || format!("{name}[{index}]");
        let Some((question, answer)) = texts else {
            return at(field(), RowProblem::WrongType { found: pair.kind(), expected: "a pair of texts" });
        };
        for (role, text) in [(Role::User, question), (Role::Assistant, answer)] {
            turns.push(turn(role, checked(text.clone(), field)?, field)?);
        }
    }
    Ok(())
}

fn convert_messages(row: &Json, shape: &RowShape) -> Converted<Conversation> {
    let name = shape.columns.messages.as_deref().expect("the shape of message rows names their column");
    let messages = match present(row, name)? {
        Json::List(messages) => messages.as_slice(),
        other => return at(name, RowProblem::WrongType { found: other.kind(), expected: "a list of messages" }),
    };
    let reader = Messages { column: name, tags: &shape.tags, openai: shape.formatting == Formatting::OpenAi };
    let mut system = optional_text(row, &shape.columns.system)?;
    let mut rest = messages;
    let mut skipped = 0;
    if let Some(first) = messages.first()
        && shape.tags.system.as_deref() == Some(reader.role(0, first)?)
    {
        system = Some(reader.content(0, first)?).filter(|text| !text.is_empty());
        (rest, skipped) = (&messages[1..], 1);
    }
    let mut turns: Vec<Turn> = Vec::with_capacity(rest.len());
    for (index, message) in rest.iter().enumerate() {
        reader.push_turn(index + skipped, message, &mut turns)?;
    }
    if !turns.last().is_some_and(|turn| turn.role.is_answer()) {
        return at(name, RowProblem::Answerless);
    }
    Ok(Conversation { system, tools: read_tools(row, &shape.columns.tools)?, turns })
}

/// Reads the messages of one row.
struct Messages<'a> {
    column: &'a str,
    tags: &'a Tags,
    openai: bool,
}

impl Messages<'_> {
    fn field(&self, index: usize, key: &str) -> String {
        format!("{}[{index}].{key}", self.column)
    }

    fn role<'m>(&self, index: usize, message: &'m Json) -> Converted<&'m str> {
        if !matches!(message, Json::Object(_)) {
            let field = format!("{}[{index}]", self.column);
            return at(field, RowProblem::WrongType { found: message.kind(), expected: "an object" });
        }
        match self.present(index, message, &self.tags.role)? {
            Json::Text(role) => Ok(role),
            other => {
                let problem = RowProblem::WrongType { found: other.kind(), expected: "a text" };
                at(self.field(index, &self.tags.role), problem)
            }
        }
    }

    /// The value of a key that every message has.
    fn present<'m>(&self, index: usize, message: &'m Json, key: &str) -> Converted<&'m Json> {
        match message.get(key) {
            Some(value) => Ok(value),
            None => {
                let (field, found) = (key.to_string(), only_these(message));
                at(format!("{}[{index}]", self.column), RowProblem::Missing { what: "message", field, found })
            }
        }
    }

    fn push_turn(&self, index: usize, message: &Json, turns: &mut Vec<Turn>) -> Converted<()> {
        let name = self.role(index, message)?;
        let mut role = self.known_role(index, name)?;
        let content = self.content_or_call(index, message, &mut role)?;
        // Calls made together are answered by several tool messages in a row; they become one turn, joined as
        // LLaMA-Factory joins them.
        if self.openai
            && role == Role::Observation
            && let Some(last) = turns.last_mut().filter(|last| last.role == Role::Observation)
        {
            last.content.push_str("\n</tool_response>\n<tool_response>\n");
            last.content.push_str(&content);
            return Ok(());
        }
        if role.is_answer() == turns.len().is_multiple_of(2) {
            let expected = if role.is_answer() {
                vec![Some(&self.tags.user), self.tags.observation.as_ref()]
            } else {
                vec![Some(&self.tags.assistant), self.tags.function.as_ref()]
            };
            let expected = join_names(&expected.into_iter().flatten().collect::<Vec<_>>());
            let problem = RowProblem::WrongOrder { turn: turns.len() + 1, found: name.to_string(), expected };
            return at(self.field(index, &self.tags.role), problem);
        }
        turns.push(turn(role, content, || self.field(index, &self.tags.content))?);
        Ok(())
    }

    fn known_role(&self, index: usize, name: &str) -> Converted<Role> {
        let tags = self.tags;
        let known = [
            (Some(&tags.user), Role::User),
            (Some(&tags.assistant), Role::Assistant),
            (tags.observation.as_ref(), Role::Observation),
            (tags.function.as_ref(), Role::FunctionCall),
        ];
        if let Some((_, role)) = known.iter().find(|(tag, _)| tag.is_some_and(|tag| tag == name)) {
            return Ok(*role);
        }
        let field = self.field(index, &tags.role);
        if tags.system.as_deref() == Some(name) {
            let (found, expected) = (name.to_string(), "it in the first message only".to_string());
            return at(field, RowProblem::UnknownRole { found, expected });
        }
        let names: Vec<&String> = known.iter().filter_map(|(tag, _)| *tag).chain(tags.system.as_ref()).collect();
        at(field, RowProblem::UnknownRole { found: name.to_string(), expected: join_names(&names) })
    }

    fn content_or_call(&self, index: usize, message: &Json, role: &mut Role) -> Converted<String> {
        let calls = message.get("tool_calls").filter(|calls| self.openai && role.is_answer() && !calls.is_nothing());
        let Some(calls) = calls else { return self.content(index, message) };
        *role = Role::FunctionCall;
        let said = match message.get(&self.tags.content) {
            None => String::new(),
            Some(content) if content.is_nothing() => String::new(),
            Some(_) => self.content(index, message)?,
        };
        let calls = self.tool_calls(index, calls)?;
        if said.is_empty() { Ok(calls) } else { Ok(format!("{said}<tool_call>{calls}</tool_call>")) }
    }

    fn tool_calls(&self, index: usize, calls: &Json) -> Converted<String> {
        let field = || self.field(index, "tool_calls");
        let Json::List(calls) = calls else {
            return at(field(), RowProblem::WrongType { found: calls.kind(), expected: "a list of calls" });
        };
        let mut functions = Vec::with_capacity(calls.len());
        for call in calls {
            let function = call.get("function").unwrap_or(&Json::Null);
            let (Some(name @ Json::Text(_)), Some(arguments)) = (function.get("name"), function.get("arguments"))
            else {
                let problem = "has no `function` with `name` and `arguments`".to_string();
                return at(field(), RowProblem::Tool { what: "tool call", problem });
            };
            let arguments = match arguments {
                Json::Text(text) => match Json::parse(text) {
                    Ok(unpacked) => unpacked,
                    Err(cause) => {
                        let what = "tool call's `arguments`";
                        return at(field(), RowProblem::ToolJson { what, cause: cause.in_text() });
                    }
                },
                other => other.clone(),
            };
            let parts = [("name", name.clone()), ("arguments", arguments)];
            functions.push(Json::Object(parts.map(|(key, value)| (key.to_string(), value)).into()));
        }
        checked(Json::List(functions).dumps(None), field)
    }

    fn content(&self, index: usize, message: &Json) -> Converted<String> {
        let field = || self.field(index, &self.tags.content);
        match self.present(index, message, &self.tags.content)? {
            Json::Text(text) => checked(text.clone(), field),
            Json::List(parts) if self.openai => {
                let mut whole = String::new();
                for part in parts {
                    match (part.get("type").and_then(Json::as_text), part.get("text")) {
                        (Some("text"), Some(Json::Text(text))) => whole.push_str(text),
                        (Some("image" | "image_url" | "input_image"), _) => {
                            return at(field(), RowProblem::Media { kind: "pictures" });
                        }
                        (Some("video" | "video_url"), _) => return at(field(), RowProblem::Media { kind: "videos" }),
                        (Some("audio" | "input_audio"), _) => return at(field(), RowProblem::Media { kind: "sounds" }),
                        _ => {
                            let problem =
                                RowProblem::WrongType { found: part.kind(), expected: "parts of type `text`" };
                            return at(field(), problem);
                        }
                    }
                }
                checked(whole, field)
            }
            other => at(field(), RowProblem::WrongType { found: other.kind(), expected: "a text" }),
        }
    }
}

/// A turn with something in it. Only a tool may return nothing.
fn turn(role: Role, content: String, field: impl Fn() -> String) -> Converted<Turn> {
    match role {
        Role::User if content.is_empty() => at(field(), RowProblem::EmptyTurn),
        Role::Assistant | Role::FunctionCall if content.is_empty() => at(field(), RowProblem::Answerless),
        _ => Ok(Turn { role, content }),
    }
}

fn checked(text: String, field: impl Fn() -> String) -> Converted<String> {
    if text.contains('\0') { at(field(), RowProblem::Nul) } else { Ok(text) }
}

/// The value of a column that every row has.
fn present<'a>(row: &'a Json, name: &str) -> Converted<&'a Json> {
    row.get(name).ok_or_else(|| {
        let problem = RowProblem::Missing { what: "row", field: name.to_string(), found: only_these(row) };
        FieldProblem { field: None, problem }
    })
}

/// The fields of an object that lacks one, where a misspelt name can be seen: the first of them, each on one line and
/// cut where it is long, for a row may have any number of any length.
fn only_these(object: &Json) -> String {
    const MOST: usize = 8;
    const LONGEST: usize = 40;
    let Json::Object(entries) = object else { return "nor any other".to_string() };
    let mut names: Vec<String> = Vec::with_capacity(MOST + 1);
    for (name, _) in entries.iter().take(MOST) {
        let cut: String = name.chars().take(LONGEST).collect();
        let more = if cut.len() < name.len() { "…" } else { "" };
        names.push(format!("`{}{more}`", cut.escape_debug()));
    }
    if entries.len() > MOST {
        names.push(format!("{} more", entries.len() - MOST));
    }
    match names.split_last() {
        None => "nor any other".to_string(),
        Some((name, [])) => format!("only {name}"),
        Some((last, head)) => format!("only {} and {last}", head.join(", ")),
    }
}

/// A column that the row has and that is not null.
fn column<'a>(row: &'a Json, name: &'a Option<String>) -> Option<(&'a str, &'a Json)> {
    let name = name.as_deref()?;
    Some((name, row.get(name).filter(|value| **value != Json::Null)?))
}

/// A text column; absent, null and empty are the same.
fn optional_text(row: &Json, name: &Option<String>) -> Converted<Option<String>> {
    match column(row, name) {
        None => Ok(None),
        Some((name, Json::Text(text))) => {
            Ok(Some(checked(text.clone(), || name.to_string())?).filter(|text| !text.is_empty()))
        }
        Some((name, other)) => at(name, RowProblem::WrongType { found: other.kind(), expected: "a text" }),
    }
}

/// Tool definitions: text that holds JSON, or the JSON itself.
fn read_tools(row: &Json, name: &Option<String>) -> Converted<Option<String>> {
    match column(row, name) {
        Some((name, tools @ (Json::List(_) | Json::Object(_)))) if !tools.is_nothing() => {
            checked(tools.dumps(None), || name.to_string()).map(Some)
        }
        Some((_, Json::List(_) | Json::Object(_))) => Ok(None),
        _ => optional_text(row, name),
    }
}
