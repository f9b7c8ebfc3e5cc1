//! Good rows of every format, and a table of hostile ones: each is refused with its place, its reason and its code.

use std::error::Error;
use std::path::{Path, PathBuf};

use scout_core::{ByteCount, ExitCode};
use scout_data::{Conversation, DataError, Dataset, DatasetRequest, Role, Turn};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        Folder(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn request(&self, names: &[&str]) -> DatasetRequest {
        DatasetRequest {
            names: names.iter().map(|name| name.to_string()).collect(),
            dataset_dir: Some(self.0.path().to_path_buf()),
            max_samples: None,
            max_row_bytes: ByteCount(20_000),
            seed: 42,
        }
    }
}

fn load_path(path: &Path) -> Result<Dataset, DataError> {
    Dataset::load(&DatasetRequest {
        names: vec![path.display().to_string()],
        dataset_dir: None,
        max_samples: None,
        max_row_bytes: ByteCount(20_000),
        seed: 42,
    })
}

fn talk(system: Option<&str>, tools: Option<&str>, turns: &[(Role, &str)]) -> Conversation {
    let turns = turns.iter().map(|(role, content)| Turn { role: *role, content: content.to_string() }).collect();
    Conversation { system: system.map(str::to_string), tools: tools.map(str::to_string), turns }
}

#[test]
fn rows_of_every_format_are_read_by_path() {
    use Role::{Assistant, FunctionCall, Observation, User};
    for (name, text, expected) in [
        (
            "a.json",
            r#"[{"instruction":"Q","input":"more","output":"A","system":"S","history":[["q","a"]]},{"instruction":"Q","input":null,"output":"A"}]"#,
            vec![
                talk(Some("S"), None, &[(User, "q"), (Assistant, "a"), (User, "Q\nmore"), (Assistant, "A")]),
                talk(None, None, &[(User, "Q"), (Assistant, "A")]),
            ],
        ),
        (
            "b.jsonl",
            r#"{"conversations":[{"from":"system","value":"S"},{"from":"human","value":"Q"},{"from":"function_call","value":"{\"name\":\"f\",\"arguments\":{}}"},{"from":"observation","value":""},{"from":"gpt","value":"A"}],"tools":"[]"}"#,
            vec![talk(
                Some("S"),
                Some("[]"),
                &[(User, "Q"), (FunctionCall, r#"{"name":"f","arguments":{}}"#), (Observation, ""), (Assistant, "A")],
            )],
        ),
        (
            "c.jsonl",
            r#"
{"messages":[{"role":"user","content":[{"type":"text","text":"Q"},{"type":"text","text":"!"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\": 1e5}"}}]},{"role":"tool","content":"1"},{"role":"tool","content":"2"},{"role":"assistant","content":"A"}],"tools":[{"name":"f"}]}
{"messages":[{"role":"system","content":""},{"role":"user","content":"Q"},{"role":"assistant","content":"hm ","tool_calls":[{"function":{"name":"f","arguments":{}}}]}]}
"#,
            vec![
                talk(
                    None,
                    Some(r#"[{"name": "f"}]"#),
                    &[
                        (User, "Q!"),
                        (FunctionCall, r#"[{"name": "f", "arguments": {"x": 100000.0}}]"#),
                        (Observation, "1\n</tool_response>\n<tool_response>\n2"),
                        (Assistant, "A"),
                    ],
                ),
                talk(
                    None,
                    None,
                    &[(User, "Q"), (FunctionCall, r#"hm <tool_call>[{"name": "f", "arguments": {}}]</tool_call>"#)],
                ),
            ],
        ),
        (
            "d.json",
            r#"[{"conversations":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}],"images":[]}]"#,
            vec![talk(None, None, &[(User, "Q"), (Assistant, "A")])],
        ),
    ] {
        let folder = Folder::new(&[(name, text.as_bytes())]);
        assert_eq!(load_path(&folder.path(name)).unwrap().conversations(), expected, "{name}");
    }
}

#[test]
fn hostile_rows_are_refused_with_their_place_and_reason() {
    let long = format!(r#"{{"instruction":"Q","output":"{}"}}"#, "A".repeat(30_000));
    let deep = format!(r#"{{"instruction":"Q","output":"A","x":{}1{}}}"#, "[".repeat(500), "]".repeat(500));
    let good = r#"{"instruction":"Q","output":"A"}"#;
    let chat = |messages: &str| format!(r#"{{"messages":[{messages}]}}"#);
    let user = r#"{"role":"user","content":"Q"}"#;
    let assistant = r#"{"role":"assistant","content":"A"}"#;
    for (bad, expected) in [
        (
            r#"{"instruction":"Q"}"#.to_string(),
            ": the row has no answer to learn: it has no field `output`, only `instruction`",
        ),
        (r#"{"instruction":"Q","output":""}"#.to_string(), "field `output`: the row has no answer to learn"),
        (r#"{"instruction":"Q","output":null}"#.to_string(), "field `output`: the row has no answer to learn"),
        (r#"{"instruction":"","input":"","output":"A"}"#.to_string(), "field `instruction`: the text is empty"),
        (r#"{"instruction":null,"output":"A"}"#.to_string(), "field `instruction`: the text is empty"),
        ("{}".to_string(), ": the row has no field `instruction`, nor any other"),
        (r#"{"input":"","output":"A"}"#.to_string(), ": the row has no field `instruction`, only `input` and `output`"),
        (
            r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1}"#.to_string(),
            ": the row has no field `instruction`, only `a`, `b`, `c`, `d`, `e`, `f`, `g`, `h` and 2 more",
        ),
        (r#"{"a\nb":1}"#.to_string(), ": the row has no field `instruction`, only `a\\nb`"),
        (
            format!(r#"{{"{}":1}}"#, "é".repeat(50)),
            ": the row has no field `instruction`, only `éééééééééééééééééééééééééééééééééééééééé…`",
        ),
        (r#"{"instruction":5,"output":"A"}"#.to_string(), "field `instruction`: found a number, expected a text"),
        (r#"{"instruction":"Q","output":["A"]}"#.to_string(), "field `output`: found a list, expected a text"),
        (
            r#"{"instruction":"Q","output":"A","history":[["q"]]}"#.to_string(),
            "field `history[0]`: found a list, expected a pair of texts",
        ),
        (
            r#"{"instruction":"Q","output":"A","output":"B"}"#.to_string(),
            "the row is not usable JSON: key `output` stands twice in one object",
        ),
        (
            r#"{"instruction":"Q","output":"A","x":{"k":1,"k":2}}"#.to_string(),
            "the row is not usable JSON: key `k` stands twice in one object",
        ),
        (
            r#"{"instruction":"Q","output":"A"#.to_string(),
            "the row is not usable JSON: not valid JSON: EOF while parsing a string at column 30 of the row",
        ),
        (
            r#"{"instruction":"Q","output":"\ud800"}"#.to_string(),
            "the row is not usable JSON: not valid JSON: unexpected end of hex escape",
        ),
        (r#"{"instruction":"Q","output":"\u0000"}"#.to_string(), "field `output`: a NUL character in the text"),
        ("5".to_string(), "found a number, expected an object"),
        (deep, "the row is not usable JSON: nested deeper than 128 levels"),
        (long, "the row is longer than `max_row_bytes`, 20000 bytes"),
        (
            r#"{"instruction":"Q","output":"A","images":["a.png"]}"#.to_string(),
            "field `images`: pictures are not built yet",
        ),
        (
            r#"{"instruction":"Q","output":"A","videos":"v.mp4"}"#.to_string(),
            "field `videos`: videos are not built yet",
        ),
        (
            r#"{"instruction":"Q","output":"A","audios":["a.wav"]}"#.to_string(),
            "field `audios`: sounds are not built yet",
        ),
    ] {
        check_bad_second_row(good, &bad, expected);
    }
    let good = chat(&format!("{user},{assistant}"));
    for (messages, expected) in [
        ("".to_string(), "field `messages`: the row has no answer to learn"),
        (user.to_string(), "field `messages`: the row has no answer to learn"),
        (
            format!("{user},{user}"),
            "field `messages[1].role`: turn 2 is of role `user`, expected `assistant` or `function`",
        ),
        (
            format!("{user},{assistant},{assistant}"),
            "field `messages[2].role`: turn 3 is of role `assistant`, expected `user` or `tool`",
        ),
        (assistant.to_string(), "field `messages[0].role`: turn 1 is of role `assistant`"),
        (
            format!("{user},{assistant},{{\"role\":\"system\",\"content\":\"S\"}}"),
            "field `messages[2].role`: unknown role `system`, expected it in the first message only",
        ),
        (
            r#"{"role":"moderator","content":"Q"}"#.to_string(),
            "field `messages[0].role`: unknown role `moderator`, expected `user`, `assistant`, `tool`, `function` or `system`",
        ),
        (r#"{"role":"user"}"#.to_string(), "field `messages[0]`: the message has no field `content`, only `role`"),
        (
            r#"{"from":"human","value":"Q"}"#.to_string(),
            "field `messages[0]`: the message has no field `role`, only `from` and `value`",
        ),
        (r#"{"role":"user","content":7}"#.to_string(), "field `messages[0].content`: found a number, expected a text"),
        (r#"{"role":"user","content":""}"#.to_string(), "field `messages[0].content`: the text is empty"),
        (
            r#"{"role":"user","content":[{"type":"image_url","image_url":{}}]}"#.to_string(),
            "field `messages[0].content`: pictures are not built yet",
        ),
        (
            format!("{user},{{\"role\":\"assistant\",\"content\":\"\"}}"),
            "field `messages[1].content`: the row has no answer to learn",
        ),
        (
            format!("{user},{{\"role\":\"assistant\",\"tool_calls\":[{{}}]}}"),
            "field `messages[1].tool_calls`: the tool call has no `function` with `name` and `arguments`",
        ),
        (
            format!(
                "{user},{{\"role\":\"assistant\",\"tool_calls\":[{{\"function\":{{\"name\":\"f\",\"arguments\":\"x\"}}}}]}}"
            ),
            "field `messages[1].tool_calls`: the tool call's `arguments` is not usable JSON: not valid JSON: expected value at column 1 of the text",
        ),
        ("\"Q\"".to_string(), "field `messages[0]`: found a text, expected an object"),
    ] {
        check_bad_second_row(&good, &chat(&messages), expected);
    }
}

/// A file of one good row, an empty line and a bad row, as lines and as a list.
fn check_bad_second_row(good: &str, bad: &str, expected: &str) {
    let lines = format!("{good}\n\n{bad}\n");
    let list = format!("[{good},\n\n{bad}\n]");
    for (name, text) in [("rows.jsonl", lines), ("rows.json", list)] {
        // A row that is cut off swallows the rest of a list, which is reported as such.
        if name == "rows.json" && expected.contains("EOF") {
            continue;
        }
        let folder = Folder::new(&[(name, text.as_bytes())]);
        let error = load_path(&folder.path(name)).expect_err(bad);
        let found = chain(&error);
        let place = format!("`{}` row 2 (line 3)", folder.path(name).display());
        assert!(found.starts_with(&place), "{found}\n{bad}");
        assert!(found.contains(expected), "found    {found}\nexpected {expected}");
        assert_eq!(error.exit_code(), ExitCode::BadData, "{found}");
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

#[test]
fn all_bad_rows_of_a_file_are_told_in_one_error() {
    let good = r#"{"instruction":"Q","output":"A"}"#;
    let empty = r#"{"instruction":"Q","output":""}"#;
    let error = |rows: &[&str], max_samples| {
        let folder = Folder::new(&[("rows.jsonl", rows.join("\n").as_bytes())]);
        let path = folder.path("rows.jsonl").display().to_string();
        let request = DatasetRequest { max_samples, ..folder.request(&[&path]) };
        let error = Dataset::load(&request).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::BadData);
        (chain(&error).replace(&path, "rows.jsonl"), error.hint())
    };

    let rows = [good, empty, "7", good, empty, "{\"instruction\":\"\0\"}", "{\"instruction\""];
    let (text, hint) = error(&rows, None);
    assert_eq!(
        text,
        "5 of 7 rows of `rows.jsonl` cannot be used: row 2 (line 2) and row 5 (line 5), field `output`: the row has \
         no answer to learn; row 3 (line 3): found a number, expected an object; row 6 (line 6): a NUL character in the \
         text; row 7 (line 7): the row is not usable JSON: not valid JSON: EOF while parsing an object at column 14 of \
         the row"
    );
    assert_eq!(hint.as_deref(), Some("a file holds one JSON list of rows, or one whole row on every line"));

    let (text, _) = error(&rows, Some(3));
    assert!(text.starts_with("2 of the first 3 rows of `rows.jsonl` cannot be used: row 2"), "{text}");
    let (text, _) = error(&rows, Some(2));
    assert_eq!(text, "`rows.jsonl` row 2 (line 2), field `output`: the row has no answer to learn");

    let long = "x".repeat(30_000);
    let (text, hint) = error(&[good, empty, &long, empty], None);
    assert!(text.starts_with("2 of the first 3 rows of `rows.jsonl` cannot be used: row 2"), "{text}");
    assert_eq!(hint.as_deref(), Some("split the row, or raise `max_row_bytes`"));
}

#[test]
fn hostile_files_are_refused_with_the_code_of_their_kind() {
    for (name, bytes, expected) in [
        ("a.json", &b""[..], "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.json", b"[{\"instruction\":\"Q\",\"output\":\"A\"}", "row 1 (line 1): the file ends inside the row"),
        ("a.json", b"[{\"instruction\":\"Q\",\"output\":\"A\"}] x", "goes on after the end of its list (line 1)"),
        (
            "a.jsonl",
            b"{\"instruction\":\"\xff\",\"output\":\"A\"}",
            "row 1 (line 1): the row is not UTF-8 (byte 16 of the row)",
        ),
        ("a.jsonl", b"{\"instruction\":\"\x00\",\"output\":\"A\"}", "row 1 (line 1): a NUL character in the text"),
        ("a.jsonl", b"\xff\xfe{\x00}\x00", "row 1 (line 1): a NUL character in the text"),
        ("a.csv", b"instruction,output", "is of an unknown kind, expected a .json or .jsonl file"),
        ("a.jsonl", b"{\"text\":\"T\",\"id\":1}", "the row looks like no known format: found `text` or `id`"),
        (
            "a.jsonl",
            b"{\"prompt\":\"Q\",\"chosen\":\"A\",\"rejected\":\"B\"}",
            "preference data (`chosen`) cannot be used",
        ),
    ] {
        let folder = Folder::new(&[(name, bytes)]);
        let error = load_path(&folder.path(name)).unwrap_err();
        assert!(chain(&error).contains(expected), "{}\n{expected}", chain(&error));
        assert_eq!(error.exit_code(), ExitCode::BadData, "{expected}");
    }
}

#[test]
fn a_missing_data_set_names_its_neighbours() {
    let folder = Folder::new(&[
        ("dataset_info.json", br#"{"identity": {"file_name": "identity.json"}, "gone": {"file_name": "gone.json"}}"#),
        ("rows.jsonl", b""),
    ]);
    let error = Dataset::load(&folder.request(&["identty"])).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::MissingInput);
    assert_eq!(error.hint().as_deref(), Some("did you mean `identity`?"));
    assert!(error.to_string().starts_with("no data set `identty`: it is neither a path nor a name in `"), "{error}");

    let error = load_path(&folder.path("row.jsonl")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::MissingInput);
    assert_eq!(error.hint(), Some(format!("did you mean `{}`?", folder.path("rows.jsonl").display())));

    let error = Dataset::load(&folder.request(&["gone"])).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::MissingInput);
    assert!(error.to_string().contains("gone.json"), "{error}");
}

#[test]
fn names_paths_and_folders_are_read_one_after_another() {
    let row = |answer: &str| format!(r#"{{"instruction":"Q","output":"{answer}"}}"#);
    let list = format!("[{},{}]", row("2"), row("3"));
    let folder = Folder::new(&[
        ("dataset_info.json", br#"{"named": {"file_name": "part/b.json", "file_sha1": "0"}}"#),
        ("part/b.json", list.as_bytes()),
        ("part/a.jsonl", row("1").as_bytes()),
        ("part/notes.txt", b"nothing"),
    ]);
    let part = folder.path("part").display().to_string();
    let dataset = Dataset::load(&folder.request(&["named", &part])).unwrap();
    let answers: Vec<&str> = dataset.conversations().iter().map(|talk| talk.turns[1].content.as_str()).collect();
    assert_eq!(answers, ["2", "3", "1", "2", "3"]);
    assert_eq!((dataset.place(1).row, dataset.place(2).path), (2, folder.path("part/a.jsonl")));

    let mut limited = folder.request(&["named", &part]);
    limited.max_samples = Some(1);
    assert_eq!(Dataset::load(&limited).unwrap().len(), 2, "the limit holds for each data set");
}

#[test]
fn a_catalogue_entry_gives_columns_tags_and_a_draw() {
    let info = br#"{
        "renamed": {"file_name": "renamed.json", "columns": {"prompt": "q", "response": "a", "system": "s"}},
        "tagged": {"file_name": "tagged.json", "formatting": "sharegpt", "columns": {"messages": "talk"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you"}},
        "drawn": {"file_name": "drawn.jsonl", "num_samples": 8},
        "plain": {"file_name": "renamed.json"},
        "openai": {"file_name": "openai.json", "formatting": "openai"},
        "copied": {"file_name": "openai.json", "formatting": "openai", "hf_hub_url": "a/b", "ranking": false,
            "split": "train", "subset": null},
        "unused": {"file_nam": "nothing.json"}
    }"#;
    let drawn: String =
        (0..5).map(|n| format!("{{\"instruction\":\"Q\",\"output\":\"{n}\",\"system\":\"S\"}}\n")).collect();
    let folder = Folder::new(&[
        ("dataset_info.json", info),
        ("renamed.json", br#"[{"q":"Q","input":"ignored","a":"A","s":"S"}]"#),
        ("tagged.json", br#"[{"talk":[{"who":"me","what":"Q"},{"who":"you","what":"A"}]}]"#),
        ("drawn.jsonl", drawn.as_bytes()),
        ("openai.json", br#"[{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}]"#),
    ]);
    let load = |name: &str| Dataset::load(&folder.request(&[name]));
    let turns = [(Role::User, "Q"), (Role::Assistant, "A")];
    assert_eq!(load("renamed").unwrap().conversations(), [talk(Some("S"), None, &turns)]);
    assert_eq!(load("tagged").unwrap().conversations(), [talk(None, None, &turns)]);
    assert_eq!(load("openai").unwrap().conversations(), [talk(None, None, &turns)]);
    assert_eq!(load("copied").unwrap().conversations(), [talk(None, None, &turns)]);
    let error = chain(&load("plain").unwrap_err());
    let expected = "it has no field `output`, only `q`, `input`, `a` and `s`";
    assert!(error.ends_with(expected), "the columns are not guessed for a named data set: {error}");

    let drawn = load("drawn").unwrap();
    let mut answers: Vec<&str> = drawn.conversations().iter().map(|talk| talk.turns[1].content.as_str()).collect();
    assert_eq!(answers.len(), 8);
    assert_eq!(drawn.conversations()[0].system, None, "a column that is not named is not read");
    assert_eq!(drawn.conversations(), load("drawn").unwrap().conversations());
    answers.sort_unstable();
    answers.dedup();
    assert_eq!(answers.len(), 5, "every row is drawn before one is drawn twice");
}

#[test]
fn what_rows_have_and_no_column_names_is_noted_once() {
    let rows =
        br#"[{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"}],"system":"S","tools":""},
                    {"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"}],"system":"S"}]"#;
    let info = br#"{"plain": {"file_name": "rows.json", "formatting": "sharegpt", "license": "MIT", "description": "a remark"},
                    "named": {"file_name": "rows.json", "formatting": "sharegpt",
                              "columns": {"messages": "conversations", "system": "system"}}}"#;
    let folder = Folder::new(&[("rows.json", rows), ("dataset_info.json", info)]);
    let found = Dataset::load(&folder.request(&["plain"])).unwrap();
    let [note] = found.notes() else { panic!("{:?}", found.notes()) };
    assert!(note.starts_with("rows of `plain` have `system`, which is not used"), "{note}");
    assert_eq!(found.conversations()[0].system, None);
    // Nobody forgot anything where a column is named, or the rows themselves are asked.
    assert!(Dataset::load(&folder.request(&["named"])).unwrap().notes().is_empty());
    assert!(load_path(&folder.path("rows.json")).unwrap().notes().is_empty());
}

#[test]
fn catalogue_entries_that_cannot_be_met_are_refused_with_the_reason() {
    for (entry, expected) in [
        (r#"{"hf_hub_url": "a/b"}"#, "has `hf_hub_url` and no `file_name`: data sets are not downloaded"),
        (r#"{"ms_hub_url": "a/b"}"#, "has `ms_hub_url` and no `file_name`"),
        (r#"{"script_url": "x.py"}"#, "has `script_url`: a data set that is a program is not run"),
        (r#"{"file_name": "r.json", "script_url": "x.py"}"#, "has `script_url`: a data set that is a program"),
        (r#"{"hf_hub_url": "a/b", "revision": "main"}"#, "has `hf_hub_url` and no `file_name`"),
        (r#"{"file_nam": "r.json"}"#, "has the unknown key `file_nam`, expected `file_name`"),
        (r#"{"file_name": "r.json", "column": {"prompt": "q"}}"#, "has the unknown key `column`, expected `columns`"),
        (r#"{"file_name": "r.json", "colums": {}}"#, "has the unknown key `colums`, expected `columns`"),
        (r#"{"file_name": "r.json", "num_sample": 1}"#, "has the unknown key `num_sample`, expected `num_samples`"),
        (r#"{"file_name": "r.json", "formating": "openai"}"#, "unknown key `formating`, expected `formatting`"),
        (r#"{"file_name": "r.json", "tag": {}}"#, "has the unknown key `tag`, expected `tags`"),
        (r#"{"file_name": "r.json", "ranking": true}"#, "has `ranking`: preference data cannot be used"),
        (r#"{"file_name": "r.json", "subset": "en"}"#, "has `subset`"),
        (r#"{"file_name": "r.json", "split": "test"}"#, "has `split` \"test\"; a file has only the split `train`"),
        (r#"{"file_name": "r.json", "num_samples": 0}"#, "has `num_samples` 0, expected a count of at least 1"),
        (
            r#"{"file_name": "r.json", "formatting": "xml"}"#,
            "has `formatting` \"xml\", expected `alpaca`, `sharegpt` or `openai`",
        ),
        (
            r#"{"file_name": "r.json", "columns": {"promt": "q"}}"#,
            "has the unknown key `promt` in `columns`, expected `prompt`",
        ),
        (r#"{"file_name": "r.json", "columns": {"prompt": "q"}}"#, "has `columns` without `response`"),
        (r#"{"file_name": "r.json", "columns": {"response": "a"}}"#, "has `columns` without `prompt`"),
        (r#"{"file_name": "r.json", "columns": {"chosen": "c"}}"#, "names `chosen`: preference data cannot be used"),
        (r#"{"file_name": "r.json", "tags": {"role_tag": "r"}}"#, "has `tags` without `content_tag`"),
        (r#"{"file_name": 5}"#, "has a `file_name` that is a number, expected a path"),
        ("{}", "has no `file_name`"),
        ("[]", "is a list, expected an object"),
    ] {
        let info = format!(r#"{{"set": {entry}}}"#);
        let folder = Folder::new(&[("dataset_info.json", info.as_bytes())]);
        let error = Dataset::load(&folder.request(&["set"])).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}\n{expected}");
        assert!(error.to_string().starts_with("entry `set` of `"), "{error}");
        assert_eq!(error.exit_code(), ExitCode::BadData);
    }
    for info in ["[]", "{", r#"{"a": {}, "a": {}}"#] {
        let folder = Folder::new(&[("dataset_info.json", info.as_bytes())]);
        let error = Dataset::load(&folder.request(&["set"])).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::BadData, "{error}");
    }
}
