//! The tiny checkpoint's recorded tokens, chat texts and examples, and LLaMA-Factory's own encodings.

use std::path::PathBuf;

use scout_core::ByteCount;
use scout_data::{
    ChatRequest, ChatTemplate, Conversation, Dataset, DatasetRequest, Date, Encoding, Example, Role, Template,
    Tokenizer, Turn, tokenise,
};
use serde_json::Value;

fn tiny_scout() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-scout"))
}

fn read_json(path: PathBuf) -> Value {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    read_json(tiny_scout().join(name)).as_array().unwrap().clone()
}

fn numbers<T: TryFrom<i64>>(value: &Value) -> Vec<T> {
    let number = |item: &Value| T::try_from(item.as_i64().unwrap()).ok().unwrap();
    value.as_array().unwrap().iter().map(number).collect()
}

fn template() -> Template {
    Template::llama4(Tokenizer::load(&tiny_scout()).unwrap(), Date::from_unix(1_721_952_000)).unwrap()
}

#[test]
fn every_recorded_text_has_the_recorded_tokens() {
    let tokenizer = Tokenizer::load(&tiny_scout()).unwrap();
    let cases = cases("tokenizer_cases.json");
    assert!(cases.len() >= 14, "only {} cases", cases.len());
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), numbers::<u32>(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode_with_bos(text).unwrap(), numbers::<u32>(&case["ids_with_bos"]), "{text:?}");
        assert_eq!(tokenizer.decode(&numbers::<u32>(&case["ids"])).unwrap(), case["decoded"].as_str().unwrap());
    }
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eot()), (512, 480, 488));
    assert_eq!(tokenizer.special("<|patch|>"), Some(498));
    assert_eq!(tokenizer.special("<|nothing|>"), None);
}

#[test]
fn every_recorded_conversation_renders_to_the_recorded_text() {
    let chat_template = ChatTemplate::load(&tiny_scout()).unwrap();
    for case in cases("chat_cases.json") {
        for (key, add_generation_prompt) in [("template_text", false), ("template_text_with_generation_prompt", true)] {
            let date = Date::from_unix(0);
            let request = ChatRequest { messages: &case["messages"], tools: None, add_generation_prompt, date };
            assert_eq!(chat_template.render(&request).unwrap(), case[key].as_str().unwrap());
        }
    }
}

fn conversation(messages: &Value) -> Conversation {
    let mut conversation = Conversation::default();
    for message in messages.as_array().unwrap() {
        let content = message["content"].as_str().unwrap().to_string();
        let role = match message["role"].as_str().unwrap() {
            "system" => {
                conversation.system = Some(content);
                continue;
            }
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Observation,
            other => panic!("unexpected role {other}"),
        };
        conversation.turns.push(Turn { role, content });
    }
    conversation
}

#[test]
fn every_recorded_conversation_has_the_recorded_labels_at_every_cutoff() {
    let template = template();
    let mut checked = 0;
    for case in cases("chat_cases.json").iter().filter(|case| case.get("sft_ids").is_some()) {
        let conversation = conversation(&case["messages"]);
        let check = |cutoff: usize, expected: &Value| {
            let encoding = Encoding::from_keys(cutoff, false, false).unwrap();
            let example = template.encode(&conversation, &encoding).unwrap();
            assert_eq!(example.ids, numbers::<u32>(&expected["sft_ids"]), "{cutoff} {conversation:?}");
            assert_eq!(example.labels, numbers::<i64>(&expected["sft_labels"]), "{cutoff} {conversation:?}");
        };
        check(10_000, case);
        for truncated in case["truncated"].as_array().unwrap() {
            check(truncated["cutoff"].as_u64().unwrap() as usize, truncated);
            checked += 1;
        }
    }
    assert!(checked >= 9, "only {checked} truncated cases");
}

#[test]
fn the_recorded_training_rows_are_read_and_nothing_of_them_is_lost() {
    let path = tiny_scout().join("train_data.jsonl");
    let request = DatasetRequest {
        names: vec![path.display().to_string()],
        dataset_dir: None,
        max_samples: None,
        max_row_bytes: ByteCount::mib(8),
        seed: 0,
    };
    let dataset = Dataset::load(&request).unwrap();
    let set = tokenise(&dataset, &template(), &Encoding::from_keys(2048, false, false).unwrap()).unwrap();
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(set.len(), lines.lines().count());
    for (row, line) in lines.lines().enumerate() {
        let message: Value = serde_json::from_str(line).unwrap();
        let whole =
            template().encode(&conversation(&message["messages"]), &Encoding::from_keys(2048, false, false).unwrap());
        assert_eq!(set.ids(row), whole.unwrap().ids);
    }
    assert_eq!(set.statistics().rows_cut, 0);
}

/// FNV-1a 64 over eight little-endian bytes a number, as the generator beside the fixture computes it.
fn hash(numbers: impl IntoIterator<Item = i64>) -> String {
    let bytes = numbers.into_iter().flat_map(i64::to_le_bytes);
    let state =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{state:016x}")
}

#[test]
fn a_thousand_conversations_encode_as_in_llamafactory() {
    let template = template();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llamafactory_oracle.json");
    let oracle = read_json(PathBuf::from(path));
    let rows = oracle["rows"].as_array().unwrap();
    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let text = |key: &str| row[key].as_str().map(str::to_string);
        let turn = |turn: &Value| Turn {
            role: match turn[0].as_str().unwrap() {
                "u" => Role::User,
                "a" => Role::Assistant,
                "o" => Role::Observation,
                _ => Role::FunctionCall,
            },
            content: turn[1].as_str().unwrap().to_string(),
        };
        let turns = row["turns"].as_array().unwrap().iter().map(turn).collect();
        let conversation = Conversation { system: text("system"), tools: text("tools"), turns };
        let flags = row["flags"].as_str().unwrap();
        let cutoff = row["cutoff"].as_u64().unwrap() as usize;
        let encoding = Encoding::from_keys(cutoff, flags.contains('p'), flags.contains('h')).unwrap();
        let Example { ids, labels, .. } = template.encode(&conversation, &encoding).unwrap();
        let found = (ids.len() as u64, hash(ids.into_iter().map(i64::from)), hash(labels));
        let recorded = (row["num_ids"].as_u64().unwrap(), text("ids").unwrap(), text("labels").unwrap());
        if found != recorded {
            wrong.push(index);
        }
    }
    assert_eq!(rows.len(), 1000);
    assert!(wrong.is_empty(), "{} of 1000 rows differ, first {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

#[test]
fn what_the_cut_takes_is_counted() {
    let template = template();
    let turn = |role, content: &str| Turn { role, content: content.to_string() };
    let turns = vec![turn(Role::User, "Where is the comet?"), turn(Role::Assistant, "By the old pier.")];
    let conversation = Conversation { turns, ..Conversation::default() };
    let whole = template.encode(&conversation, &Encoding::from_keys(100, false, false).unwrap()).unwrap();
    assert_eq!((whole.ids.len(), whole.tokens_cut, whole.targets_cut), (28, 0, 0));
    let cut = template.encode(&conversation, &Encoding::from_keys(12, false, false).unwrap()).unwrap();
    assert_eq!((cut.ids.len(), cut.tokens_cut, cut.targets_cut), (12, 16, 4));
}

#[test]
fn an_unknown_template_is_a_configuration_error_and_marks_of_pictures_are_refused() {
    let tokenizer = Tokenizer::load(&tiny_scout()).unwrap();
    let error = Template::by_name("lama4", tokenizer, Date::from_unix(0)).unwrap_err();
    assert_eq!(error.to_string(), "`template` names the unknown template `lama4`, did you mean `llama4`");
    assert_eq!(error.exit_code(), scout_core::ExitCode::BadConfig);

    let content = "What is in <image>?".to_string();
    let turns = vec![Turn { role: Role::User, content }, Turn { role: Role::Assistant, content: "A".to_string() }];
    let encoding = Encoding::from_keys(100, false, false).unwrap();
    let error = template().encode(&Conversation { turns, ..Conversation::default() }, &encoding).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "pictures are not built yet");
}

#[test]
fn a_damaged_or_missing_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err();
    assert_eq!(error.exit_code(), scout_core::ExitCode::MissingInput);
    for (text, expected) in [("{}", "cannot load the tokenizer"), ("[", "cannot load the tokenizer")] {
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.exit_code(), scout_core::ExitCode::BadData);
    }
    let other = std::fs::read_to_string(tiny_scout().join("tokenizer.json")).unwrap().replace("<|eot|>", "<|end|>");
    std::fs::write(folder.path().join("tokenizer.json"), other).unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err();
    assert_eq!(error.to_string(), "the tokenizer has no token `<|eot|>`, which Llama 4 text needs");
}

#[test]
fn a_cut_saved_inside_the_tokenizer_file_shortens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = read_json(tiny_scout().join("tokenizer.json"));
    file["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("Hello, world!").unwrap().len(), 11);
}
