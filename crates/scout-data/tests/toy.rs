//! The toy tokenizer loads, reverses, and has Llama 4's frame; toy rows survive the way through a file.

use std::path::{Path, PathBuf};

use scout_core::ByteCount;
use scout_data::{
    ChatTemplate, Conversation, Dataset, DatasetRequest, Date, Encoding, Template, Tokenizer, alpaca_json,
    openai_jsonl, tokenise, toy_conversations, toy_tokenizer_json,
};
use serde_json::Value;

fn corpus() -> Vec<String> {
    toy_conversations(1, 100).into_iter().flat_map(|toy| toy.turns).map(|turn| turn.content).collect()
}

fn write_tokenizer(folder: &Path, vocab_size: usize) -> Tokenizer {
    let toy = toy_tokenizer_json(vocab_size, &corpus()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), toy.tokenizer_json).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), toy.tokenizer_config_json).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), toy.chat_template).unwrap();
    Tokenizer::load(folder).unwrap()
}

#[test]
fn toy_tokenizers_of_every_size_load_and_reverse_any_text() {
    let folder = tempfile::tempdir().unwrap();
    for vocab_size in [288, 289, 512, 2048, 202_048] {
        let tokenizer = write_tokenizer(folder.path(), vocab_size);
        assert_eq!(tokenizer.vocab_size(), vocab_size);
        for text in ["", "The brass bell is above the bakery door.", "né 日本 🙂\n\n\t x==1;  \u{0}\u{7f}", "<|eot|>a"]
        {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{vocab_size}");
        }
        let (first, size) = if vocab_size == 202_048 { (200_000, 2048) } else { (vocab_size as u32 - 32, 32) };
        assert_eq!(tokenizer.bos(), first);
        assert_eq!(tokenizer.eot(), first + 8);
        assert_eq!(tokenizer.special("<|reserved_special_token_0|>").is_some(), size > 19);
        ChatTemplate::load(folder.path()).unwrap();
    }
    assert!(toy_tokenizer_json(287, &corpus()).is_err());
}

#[test]
fn the_full_vocabulary_has_the_ids_of_llama_4() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = write_tokenizer(folder.path(), 202_048);
    for (name, id) in [
        ("<|begin_of_text|>", 200_000),
        ("<|end_of_text|>", 200_001),
        ("<|fim_suffix|>", 200_004),
        ("<|header_start|>", 200_005),
        ("<|header_end|>", 200_006),
        ("<|eom|>", 200_007),
        ("<|eot|>", 200_008),
        ("<|step|>", 200_009),
        ("<|reserved_special_token_0|>", 200_010),
        ("<|python_start|>", 200_016),
        ("<|python_end|>", 200_017),
        ("<|finetune_right_pad|>", 200_018),
        ("<|image_start|>", 200_080),
        ("<|image_end|>", 200_081),
        ("<|tile_x_separator|>", 200_084),
        ("<|tile_y_separator|>", 200_085),
        ("<|image|>", 200_090),
        ("<|patch|>", 200_092),
        ("<|reasoning_thinking_start|>", 201_142),
        ("<|reasoning_thinking_end|>", 201_143),
    ] {
        assert_eq!(tokenizer.special(name), Some(id), "{name}");
    }
}

#[test]
fn the_frame_equals_the_tiny_checkpoints() {
    let tiny = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-scout"));
    let read = |name: &str| std::fs::read_to_string(tiny.join(name)).unwrap();
    let toy = toy_tokenizer_json(512, &corpus()).unwrap();
    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let (mut ours, mut theirs) = (parse(&toy.tokenizer_json), parse(&read("tokenizer.json")));
    for file in [&mut ours, &mut theirs] {
        assert_eq!(file["model"]["vocab"].as_object().unwrap().len(), 480);
        assert_eq!(file["model"]["merges"].as_array().unwrap().len(), 224);
        // What was learned differs with the corpus.
        file["model"]["vocab"].take();
        file["model"]["merges"].take();
    }
    assert_eq!(ours, theirs);
    assert_eq!(toy.tokenizer_config_json, read("tokenizer_config.json"));
    assert_eq!(toy.chat_template, read("chat_template.jinja"));
}

#[test]
fn learned_merges_shorten_the_corpus() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = write_tokenizer(folder.path(), 512);
    let text = "Where is the wooden owl?";
    assert!(tokenizer.encode(text).unwrap().len() <= text.len() / 2);
}

fn load(path: &Path) -> Dataset {
    let names = vec![path.display().to_string()];
    let max_row_bytes = ByteCount::mib(8);
    Dataset::load(&DatasetRequest { names, dataset_dir: None, max_samples: None, max_row_bytes, seed: 0 }).unwrap()
}

#[test]
fn toy_rows_survive_both_formats_and_can_be_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut toys = toy_conversations(7, 50);
    assert_eq!(toys, toy_conversations(7, 50));
    assert_ne!(toys, toy_conversations(8, 50));
    toys[3].system = Some("Be brief.".to_string());
    let more = toys[4].turns.clone();
    toys[3].turns.extend(more);
    for (name, text) in [("toy.json", alpaca_json(&toys)), ("toy.jsonl", openai_jsonl(&toys))] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        assert_eq!(load(&path).conversations(), toys, "{name}");
    }
    let template = Template::llama4(write_tokenizer(folder.path(), 512), Date::from_unix(0)).unwrap();
    let dataset = Dataset::from_conversations("toy", toys);
    let set = tokenise(&dataset, &template, &Encoding::from_keys(64, false, false).unwrap()).unwrap();
    let statistics = set.statistics();
    assert_eq!((set.len(), statistics.rows, set.lengths().iter().sum::<usize>()), (50, 50, statistics.tokens));
    assert_eq!(statistics.longest, set.lengths().into_iter().max().unwrap());
    let chosen = set.select(&[9, 2]);
    assert_eq!((chosen.ids(0), chosen.sample_id(1), chosen.len()), (set.ids(9), 2, 2));
    assert!(chosen.labels(1).eq(set.labels(2)));
}

#[test]
fn a_row_without_learned_tokens_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let template = Template::llama4(write_tokenizer(folder.path(), 512), Date::from_unix(0)).unwrap();
    let mut toys = toy_conversations(7, 3);
    toys[1].turns[0].content = "why ".repeat(500);
    let dataset = Dataset::from_conversations("toy", toys);
    let error = tokenise(&dataset, &template, &Encoding::from_keys(16, false, false).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "`toy` row 2 (line 2)");
    assert_eq!(error.hint().as_deref(), Some("raise `cutoff_len`, or remove the row"));
    assert_eq!(error.exit_code(), scout_core::ExitCode::BadData);

    let unfinished = Conversation::default();
    let error = tokenise(
        &Dataset::from_conversations("toy", vec![unfinished]),
        &template,
        &Encoding::from_keys(16, false, false).unwrap(),
    );
    assert_eq!(error.unwrap_err().to_string(), "`toy` row 1 (line 1)");
}
