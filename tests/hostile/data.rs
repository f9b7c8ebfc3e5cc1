//! Data sets with rows that cannot be learned, and catalogues that do not find them.

use serde_json::json;

use crate::case::{Case, case, check};
use crate::place::Place;

const ROW: &str = r#"{"instruction": "Where?", "output": "Here."}"#;
const CATALOGUE: &str = "model/data/dataset_info.json";

#[test]
fn a_row_that_cannot_be_learned_is_one_clear_error() {
    check(&[
        case("no rows", 65, &["rows.jsonl", "no rows"], |p| p.data("rows.jsonl", "")),
        case("an empty list", 65, &["rows.json", "no rows"], |p| p.data("rows.json", "[]")),
        case("an empty answer", 65, &["row 2 (line 2)", "`output`", "no answer"], |p| {
            second_row(p, r#"{"instruction": "Where?", "output": ""}"#);
        }),
        case("no answer at all", 65, &["row 2 (line 2)", "no answer"], |p| {
            second_row(p, r#"{"instruction": "Where?"}"#)
        }),
        case("no question", 65, &["row 2", "empty"], |p| second_row(p, r#"{"instruction": "", "output": "Here."}"#)),
        case("an answer that is a number", 65, &["row 2", "`output`", "a number", "a text"], |p| {
            second_row(p, r#"{"instruction": "Where?", "output": 5}"#);
        }),
        case("a conversation without an answer", 65, &["row 1", "`messages`", "no answer"], |p| {
            p.data("rows.jsonl", r#"{"messages": [{"role": "user", "content": "Where?"}]}"#);
        }),
        case("an unknown role", 65, &["row 1", "`messages[0].role`", "`narrator`", "expected"], |p| {
            p.data("rows.jsonl", r#"{"messages": [{"role": "narrator", "content": "Once"}]}"#);
        }),
        case("two questions in a row", 65, &["`messages[1].role`", "take turns"], |p| {
            let turn = r#"{"role": "user", "content": "Where?"}"#;
            p.data("rows.jsonl", format!(r#"{{"messages": [{turn}, {turn}]}}"#));
        }),
        case("null for what was said", 65, &["`messages[0].content`"], |p| {
            p.data("rows.jsonl", r#"{"messages": [{"role": "user", "content": null}]}"#);
        }),
        case("keys of no known format", 65, &["row 1", "`text`", "expected"], |p| {
            p.data("rows.jsonl", r#"{"text": "Once upon a time"}"#);
        }),
        case("a row that is a number", 65, &["row 2", "a number", "an object"], |p| second_row(p, "7")),
        case("preferences", 65, &["row 1", "chosen"], |p| {
            p.data("rows.jsonl", r#"{"instruction": "Where?", "chosen": "Here.", "rejected": "There."}"#);
        }),
        case("a column of pictures", 65, &["row 2", "`images`", "not built"], |p| {
            second_row(p, r#"{"instruction": "Where?", "output": "Here.", "images": ["a.png"]}"#);
        }),
        case("a picture in a message", 65, &["pictures", "not built"], |p| {
            let part = r#"{"type": "image_url", "image_url": {"url": "a.png"}}"#;
            p.data("rows.jsonl", format!(r#"{{"messages": [{{"role": "user", "content": [{part}]}}]}}"#));
        }),
        case("a column of videos", 65, &["`videos`", "not built"], |p| {
            second_row(p, r#"{"instruction": "Where?", "output": "Here.", "videos": ["a.mp4"]}"#);
        }),
        case("an answer behind the cut", 65, &["row 1", "`cutoff_len` 4", "raise `cutoff_len`"], |p| {
            p.set("cutoff_len", "4");
            p.data("rows.jsonl", format!("{{\"instruction\": \"{}\", \"output\": \"Here.\"}}", "Where? ".repeat(4000)));
        }),
        case("a call that is not JSON", 65, &["row 1"], |p| {
            let call = r#"[{"from": "human", "value": "Go"}, {"from": "function_call", "value": "go("}]"#;
            p.data("rows.jsonl", format!(r#"{{"conversations": {call}}}"#));
        }),
    ]);
}

#[test]
fn a_file_of_rows_that_is_damaged_is_one_clear_error() {
    check(&[
        case("a row of 10 MB", 65, &["row 2 (line 2)", "`max_row_bytes`", "8388608"], |p| {
            second_row(p, &format!("{{\"instruction\": \"{}\", \"output\": \"Here.\"}}", "x".repeat(10 << 20)));
        }),
        case("a row of 10 MB in a list", 65, &["row 1", "`max_row_bytes`"], |p| {
            p.data("rows.json", format!("[{{\"instruction\": \"{}\", \"output\": \"Here.\"}}]", "x".repeat(10 << 20)));
        }),
        case("a row over a limit of the user's", 65, &["row 2", "`max_row_bytes`", "100 bytes"], |p| {
            p.set("max_row_bytes", "100");
            second_row(p, &format!("{{\"instruction\": \"{}\", \"output\": \"Here.\"}}", "x".repeat(200)));
        }),
        case("a row that is not JSON", 65, &["row 2 (line 2)", "JSON"], |p| second_row(p, "{instruction: Where?}")),
        case("a key twice in a row", 65, &["row 2", "`output`", "twice"], |p| {
            second_row(p, r#"{"instruction": "Where?", "output": "Here.", "output": "There."}"#);
        }),
        case("nested without end", 65, &["row 2"], |p| {
            second_row(p, &format!("{{\"instruction\": {}", "[".repeat(100_000)));
        }),
        case("a list cut off", 65, &["row 2", "ends inside"], |p| p.data("rows.json", format!("[{ROW},\n{{\"instr"))),
        case("a list that goes on", 65, &["goes on after the end of its list (line 2)"], |p| {
            p.data("rows.json", format!("[{ROW}]\n{ROW}"));
        }),
        case("a NUL", 65, &["row 2", "NUL"], |p| {
            second_row(p, "{\"instruction\": \"Wh\0re?\", \"output\": \"Here.\"}")
        }),
        case("a NUL that is escaped", 65, &["row 2", "NUL"], |p| {
            second_row(p, "{\"instruction\": \"Wh\\u0000re?\", \"output\": \"Here.\"}");
        }),
        case("half of a character", 65, &["row 2", "JSON"], |p| {
            second_row(p, "{\"instruction\": \"\\ud83d\", \"output\": \"Here.\"}");
        }),
        case("not UTF-8", 65, &["row 2", "not UTF-8 (byte 17 of the row)"], |p| {
            p.data("rows.jsonl", [ROW.as_bytes(), b"\n{\"instruction\": \"\xff\", \"output\": \"Here.\"}"].concat());
        }),
        case("UTF-16", 65, &["row 1"], |p| {
            let bytes: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
            p.data("rows.jsonl", bytes);
        }),
    ]);
}

#[test]
fn a_file_that_cannot_hold_rows_is_one_clear_error() {
    check(&[
        case("a pipe that nobody writes to", 65, &["rows.jsonl", "regular file"], |p| {
            p.data("rows.jsonl", ROW);
            p.make_pipe_of_file("rows.jsonl");
        }),
        case("a spreadsheet", 65, &["rows.csv", ".jsonl"], |p| {
            p.data("rows.csv", "instruction,output\nWhere?,Here.\n")
        }),
        case("a folder without data", 65, &["rows", "holds no .json or .jsonl"], |p| {
            p.make_folder("rows");
            p.set("dataset", "rows");
            p.write("rows/notes.txt", "");
        }),
        planned("a plan for a bad row", &["row 2", "no answer"], |p| {
            second_row(p, r#"{"instruction": "Where?", "output": ""}"#);
        }),
        case("bad rows shown", 65, &["row 2", "no answer"], |p| second_row(p, r#"{"instruction": "Where?"}"#)).on(&[
            "preprocess",
            "run.yaml",
            "--show",
            "1",
        ]),
    ]);
}

#[test]
fn a_data_set_that_is_not_found_is_one_clear_error() {
    check(&[
        case(
            "a name that is nearly right",
            66,
            &["toy_mesages", "dataset_info.json", "did you mean `toy_messages`?"],
            |p| {
                p.set("dataset", "toy_mesages");
            },
        ),
        case("a path that is nearly right", 66, &["rows.jsnl", "rows.jsonl"], |p| {
            p.data("rows.jsonl", ROW);
            p.set("dataset", "rows.jsnl");
        }),
        case("a name that is not near anything", 66, &["something_else"], |p| p.set("dataset", "something_else")),
        case("one of two is missing", 66, &["nowhere"], |p| p.set("dataset", "[toy_messages, nowhere]")),
        case("no catalogue", 66, &["toy_messages", "dataset_info.json"], |p| p.remove(CATALOGUE)),
        case("an entry without its file", 66, &["toy_messages.jsonl"], |p| p.remove("model/data/toy_messages.jsonl")),
        case("a catalogue that is not JSON", 65, &["dataset_info.json"], |p| p.write(CATALOGUE, "toy:")),
        case("a catalogue that is a list", 65, &["dataset_info.json", "object"], |p| p.write(CATALOGUE, "[]")),
        case("a catalogue that is not UTF-8", 65, &["dataset_info.json", "UTF-8"], |p| {
            p.write(CATALOGUE, b"{\"\xff\":1}")
        }),
        case("an entry twice", 65, &["dataset_info.json", "toy_messages", "twice"], |p| {
            p.replace(CATALOGUE, "{", "{\"toy_messages\": {\"file_name\": \"other.json\"},");
        }),
        entry("a data set of the Hub", &["hf_hub_url", "not downloaded"], |p| {
            set_entry(p, json!({"hf_hub_url": "tatsu-lab/alpaca"}));
        }),
        entry("a data set that is a program", &["script_url", "not run"], |p| {
            set_entry(p, json!({"script_url": "x.py"}))
        }),
        entry("preferences", &["ranking"], |p| {
            set_entry(p, json!({"file_name": "toy_messages.jsonl", "ranking": true}))
        }),
        entry("an unknown format", &["formatting", "chatml"], |p| {
            set_entry(p, json!({"file_name": "toy_messages.jsonl", "formatting": "chatml"}));
        }),
        entry("an unknown column", &["columns", "prompts", "`prompt`"], |p| {
            set_entry(p, json!({"file_name": "toy_messages.jsonl", "columns": {"prompts": "x"}}));
        }),
        entry("the wrong format", &["row 1"], |p| set_entry(p, json!({"file_name": "toy_messages.jsonl"}))),
        case("as many rows held back as there are", 78, &["val_size", "96"], |p| {
            p.set("val_size", "96");
            p.set("eval_strategy", "epoch");
        }),
    ]);
}

fn planned(name: &'static str, says: &'static [&'static str], damage: fn(&Place)) -> Case {
    case(name, 65, says, damage).on(&["plan", "run.yaml"])
}

/// A catalogue entry that is refused.
fn entry(name: &'static str, says: &'static [&'static str], damage: fn(&Place)) -> Case {
    case(name, 65, says, damage)
}

fn set_entry(place: &Place, value: serde_json::Value) {
    place.set_json(CATALOGUE, "toy_messages", value);
}

/// One good row, then this one.
fn second_row(place: &Place, row: &str) {
    place.data("rows.jsonl", format!("{ROW}\n{row}\n"));
}
