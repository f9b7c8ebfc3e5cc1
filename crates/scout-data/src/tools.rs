//! Tool definitions and tool calls as text, in LLaMA-Factory's Llama 3 wording. Runs no tools.

use crate::date::Date;
use crate::json::Json;
use crate::row_problem::RowProblem;

const THOUGHT_WORDS: (&str, &str) = ("<think>\n", "\n</think>\n\n");
const CALL_WORDS: (&str, &str) = ("<tool_call>", "</tool_call>");

/// The text behind the system prompt that tells the model its tools.
pub(crate) fn tools_text(definitions: &str, date: Date) -> Result<String, RowProblem> {
    const WHAT: &str = "list of tools";
    let tools = parse(definitions, WHAT)?;
    let Json::List(tools) = tools else {
        let problem = format!("is {}, expected a list", tools.kind());
        return Err(RowProblem::Tool { what: WHAT, problem });
    };
    if tools.is_empty() {
        return Ok(String::new());
    }
    let today = date.strftime("%d %b %Y").expect("every directive of this format is known");
    let mut text = format!(
        "Cutting Knowledge Date: December 2023\nToday Date: {today}\n\nYou have access to the following functions. To \
         call a function, please respond with JSON for a function call. Respond in the format {{\"name\": function \
         name, \"parameters\": dictionary of argument name and its value}}. Do not use variables.\n\n"
    );
    for tool in tools {
        if !matches!(tool, Json::Object(_)) {
            let problem = format!("has {} in it, expected objects", tool.kind());
            return Err(RowProblem::Tool { what: WHAT, problem });
        }
        let wrapped = if tool.get("type").and_then(Json::as_text) == Some("function") {
            tool
        } else {
            object([("type", Json::Text("function".to_string())), ("function", tool)])
        };
        text += &wrapped.dumps(Some(4));
        text += "\n\n";
    }
    Ok(text)
}

/// A tool call as the model says it. A thought, or whatever stands around `<tool_call>…</tool_call>`, stays in front.
pub(crate) fn function_text(content: &str) -> Result<String, RowProblem> {
    if let Some((whole, inside)) = framed(content, CALL_WORDS) {
        return Ok(content.replace(whole, "") + &calls_text(inside)?);
    }
    match framed(content, THOUGHT_WORDS) {
        Some((whole, _)) => Ok(format!("{whole}{}", calls_text(&content.replace(whole, ""))?)),
        None => calls_text(content),
    }
}

/// The first stretch between two words, with and without them.
fn framed<'a>(text: &'a str, (open, close): (&str, &str)) -> Option<(&'a str, &'a str)> {
    let start = text.find(open)?;
    let inside = start + open.len();
    let end = inside + text[inside..].find(close)?;
    Some((&text[start..end + close.len()], &text[inside..end]))
}

fn calls_text(content: &str) -> Result<String, RowProblem> {
    const WHAT: &str = "tool call";
    let calls = match parse(content, WHAT)? {
        Json::List(calls) => calls,
        single => vec![single],
    };
    let mut said = Vec::with_capacity(calls.len());
    for call in &calls {
        let (Some(name), Some(arguments)) = (call.get("name"), call.get("arguments")) else {
            let problem = "has no `name` and `arguments`".to_string();
            return Err(RowProblem::Tool { what: WHAT, problem });
        };
        said.push(object([("name", name.clone()), ("parameters", arguments.clone())]));
    }
    Ok(if said.len() == 1 { said[0].dumps(None) } else { Json::List(said).dumps(None) })
}

fn parse(text: &str, what: &'static str) -> Result<Json, RowProblem> {
    Json::parse(text).map_err(|cause| RowProblem::ToolJson { what, cause: cause.in_text() })
}

fn object<const N: usize>(entries: [(&str, Json); N]) -> Json {
    Json::Object(entries.map(|(key, value)| (key.to_string(), value)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_keeps_what_was_thought_or_said_before_it() {
        for (content, expected) in [
            (r#"{"name":"f","arguments":{"a":1}}"#, r#"{"name": "f", "parameters": {"a": 1}}"#),
            (r#"[{"name":"f","arguments":[]}]"#, r#"{"name": "f", "parameters": []}"#),
            (
                r#"[{"name":"f","arguments":{}},{"name":"g","arguments":{}}]"#,
                r#"[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}]"#,
            ),
            ("[]", "[]"),
            (
                "<think>\nhm\n</think>\n\n{\"name\":\"f\",\"arguments\":{}}",
                "<think>\nhm\n</think>\n\n{\"name\": \"f\", \"parameters\": {}}",
            ),
            (
                "so <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call> then",
                "so  then{\"name\": \"f\", \"parameters\": {}}",
            ),
        ] {
            assert_eq!(function_text(content).unwrap(), expected, "{content}");
        }
    }

    #[test]
    fn calls_and_definitions_that_are_not_json_are_refused() {
        for content in ["", "hello", r#"{"name":"f"}"#, "[1]", "<tool_call>x</tool_call>", "null"] {
            assert!(function_text(content).is_err(), "{content}");
        }
        for definitions in ["{}", "[1]", "nothing", r#"{"name":"f"}"#] {
            assert!(tools_text(definitions, Date::from_unix(0)).is_err(), "{definitions}");
        }
    }

    #[test]
    fn an_empty_list_of_tools_says_nothing() {
        assert_eq!(tools_text("[]", Date::from_unix(0)).unwrap(), "");
    }
}
