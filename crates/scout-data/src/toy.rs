//! A toy tokenizer in Llama 4's format and toy conversations, for synthetic checkpoints. The tokenizer is valid and
//! reversible but knows only the corpus it was given; nothing here resembles the real vocabulary except its frame.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use crate::conversation::{Conversation, Role, Turn};
use crate::error::{DataError, Result};
use crate::order::permutation;

/// Rows of Scout's embedding table, and where its special tokens begin.
const SCOUT_VOCABULARY: usize = 202_048;
const SCOUT_BASE: usize = 200_000;
/// Places for special tokens in any other vocabulary.
const SPECIAL_SLOTS: usize = 32;
const NUM_BYTES: usize = 256;

/// Llama 4's special tokens in Llama 4's order, with their distance from the first one in Scout's vocabulary.
const SPECIALS: [(&str, usize); 19] = [
    ("<|begin_of_text|>", 0),
    ("<|end_of_text|>", 1),
    ("<|fim_prefix|>", 2),
    ("<|fim_middle|>", 3),
    ("<|fim_suffix|>", 4),
    ("<|header_start|>", 5),
    ("<|header_end|>", 6),
    ("<|eom|>", 7),
    ("<|eot|>", 8),
    ("<|step|>", 9),
    ("<|python_start|>", 16),
    ("<|python_end|>", 17),
    ("<|finetune_right_pad|>", 18),
    ("<|image_start|>", 80),
    ("<|image_end|>", 81),
    ("<|tile_x_separator|>", 84),
    ("<|tile_y_separator|>", 85),
    ("<|image|>", 90),
    ("<|patch|>", 92),
];
/// Two more that only the full vocabulary has room for.
const REASONING: [(&str, usize); 2] = [("<|reasoning_thinking_start|>", 1142), ("<|reasoning_thinking_end|>", 1143)];

/// The word-splitting expression known as o200k.
const SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The texts of a model folder's tokenizer files.
#[derive(Debug, Clone)]
pub struct ToyTokenizer {
    pub tokenizer_json: String,
    pub tokenizer_config_json: String,
    pub chat_template: String,
}

/// Makes a tokenizer of exactly `vocab_size` tokens whose merges are learned from `corpus`, then filled up with pairs
/// and triples of bytes. Scout's own size gets Scout's ids of the special tokens; every other size has them at its end.
pub fn toy_tokenizer_json(vocab_size: usize, corpus: &[String]) -> Result<ToyTokenizer> {
    let base = if vocab_size == SCOUT_VOCABULARY { SCOUT_BASE } else { vocab_size.saturating_sub(SPECIAL_SLOTS) };
    // All pairs and triples of bytes: more than this cannot be filled.
    let most = SPECIAL_SLOTS + NUM_BYTES + NUM_BYTES.pow(2) + NUM_BYTES.pow(3);
    if base < NUM_BYTES || vocab_size > most {
        let problem = format!("is {vocab_size}, expected {} to {most}", NUM_BYTES + SPECIAL_SLOTS);
        return Err(DataError::Setting { key: "vocab_size", problem });
    }
    let mut vocabulary = Vocabulary::of_bytes();
    vocabulary.learn(corpus, base);
    vocabulary.fill(base);
    let specials = special_tokens(base, vocab_size);
    let tokenizer = tokenizer_value(&vocabulary, &specials);
    let config = json!({
        "backend": "tokenizers",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": "MODEL_MAX_LENGTH",
        "pad_token": "<|finetune_right_pad|>",
        "tokenizer_class": "TokenizersBackend"
    });
    // transformers writes "no limit" as this integer, which is wider than any of ours.
    let config = pretty(&config).replace("\"MODEL_MAX_LENGTH\"", "1000000000000000019884624838656");
    Ok(ToyTokenizer {
        tokenizer_json: pretty(&tokenizer),
        tokenizer_config_json: config + "\n",
        chat_template: include_str!("toy_chat_template.jinja").to_string(),
    })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a value of texts and numbers always has a JSON form")
}

/// The names of all special slots, in order of their ids. Slots without a name are reserved and numbered.
fn special_tokens(base: usize, vocab_size: usize) -> Vec<String> {
    let slots = vocab_size - base;
    let full = vocab_size == SCOUT_VOCABULARY;
    let mut named: BTreeMap<usize, &str> = BTreeMap::new();
    for (index, (name, scout_offset)) in SPECIALS.into_iter().chain(REASONING).enumerate() {
        if full || index < SPECIALS.len() {
            named.insert(if full { scout_offset } else { index }, name);
        }
    }
    let mut reserved = (0..).map(|number| format!("<|reserved_special_token_{number}|>"));
    let slot = |offset| match named.get(&offset) {
        Some(name) => name.to_string(),
        None => reserved.next().expect("numbers do not end"),
    };
    (0..slots).map(slot).collect()
}

fn tokenizer_value(vocabulary: &Vocabulary, specials: &[String]) -> Value {
    let base = vocabulary.tokens.len();
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(index, name)| {
            json!({
                "id": base + index, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        })
        .collect();
    let bos = &specials[0];
    let token = |type_id: u8| json!({"SpecialToken": {"id": bos, "type_id": type_id}});
    let sequence = |id: &str, type_id: u8| json!({"Sequence": {"id": id, "type_id": type_id}});
    let vocab: serde_json::Map<String, Value> =
        vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
        ]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing",
             "single": [token(0), sequence("A", 0)],
             "pair": [token(0), sequence("A", 0), token(1), sequence("B", 1)],
             "special_tokens": {bos: {"id": bos, "ids": [base], "tokens": [bos]}}}
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": vocabulary.merges
        }
    })
}

/// Tokens in the order of their ids, and the merges that make all but the single bytes.
struct Vocabulary {
    // Invariant: both halves of a merge and their union are tokens, and the union comes after the halves.
    tokens: Vec<String>,
    known: HashSet<String>,
    merges: Vec<(String, String)>,
}

impl Vocabulary {
    fn of_bytes() -> Vocabulary {
        let mut characters = byte_characters();
        characters.sort_unstable();
        let tokens: Vec<String> = characters.iter().map(char::to_string).collect();
        Vocabulary { known: tokens.iter().cloned().collect(), tokens, merges: Vec::new() }
    }

    fn merge(&mut self, left: &str, right: &str) {
        let whole = format!("{left}{right}");
        if self.known.insert(whole.clone()) {
            self.tokens.push(whole);
            self.merges.push((left.to_string(), right.to_string()));
        }
    }

    /// Byte pair encoding: joins the most frequent pair of neighbours until `size` tokens are there or no pair comes
    /// twice. Ties go to the pair that is first in the alphabet, so the result depends on the corpus alone.
    fn learn(&mut self, corpus: &[String], size: usize) {
        let mut words = word_counts(corpus);
        while self.tokens.len() < size {
            let mut pairs: HashMap<(&str, &str), usize> = HashMap::new();
            for (word, count) in &words {
                for pair in word.windows(2) {
                    *pairs.entry((&pair[0], &pair[1])).or_default() += count;
                }
            }
            let best = pairs.into_iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0)));
            let Some((left, right)) = best.filter(|(_, count)| *count > 1).map(|(pair, _)| pair) else { return };
            let (left, right) = (left.to_string(), right.to_string());
            for (word, _) in &mut words {
                join_pair(word, &left, &right);
            }
            self.merge(&left, &right);
        }
    }

    /// Pairs of bytes in order of their ids, then each pair with a third byte.
    fn fill(&mut self, size: usize) {
        let bytes: Vec<String> = self.tokens[..NUM_BYTES].to_vec();
        for left in &bytes {
            for right in &bytes {
                if self.tokens.len() == size {
                    return;
                }
                self.merge(left, right);
            }
        }
        for first in &bytes {
            for second in &bytes {
                for third in &bytes {
                    if self.tokens.len() == size {
                        return;
                    }
                    self.merge(&format!("{first}{second}"), third);
                }
            }
        }
    }
}

fn join_pair(word: &mut Vec<String>, left: &str, right: &str) {
    let mut index = 0;
    while index + 1 < word.len() {
        if word[index] == left && word[index + 1] == right {
            let tail = word.remove(index + 1);
            word[index].push_str(&tail);
        }
        index += 1;
    }
}

/// The words of the corpus as byte characters, with how often each comes. A word is a run of letters, digits or
/// others with the space before it, which is close enough to the real splitting to learn useful merges.
fn word_counts(corpus: &[String]) -> Vec<(Vec<String>, usize)> {
    let kind = |character: char| match character {
        _ if character.is_alphabetic() => 0,
        _ if character.is_numeric() => 1,
        _ if character.is_whitespace() => 2,
        _ => 3,
    };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for text in corpus {
        let mut word = String::new();
        for character in text.chars() {
            let joins = word.chars().last().is_some_and(|last| kind(last) == kind(character) || word == " ");
            if !joins && !word.is_empty() {
                *counts.entry(std::mem::take(&mut word)).or_default() += 1;
            }
            word.push(character);
        }
        if !word.is_empty() {
            *counts.entry(word).or_default() += 1;
        }
    }
    let characters = byte_characters();
    let spelled = |word: &str| word.bytes().map(|byte| characters[usize::from(byte)].to_string()).collect();
    counts.iter().map(|(word, count)| (spelled(word), *count)).collect()
}

/// The printable character that stands for each byte in byte-level vocabularies.
fn byte_characters() -> Vec<char> {
    let mut stand_ins = (256_u32..).filter_map(char::from_u32);
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let character =
        |byte: u8| if printable(byte) { char::from(byte) } else { stand_ins.next().expect("far more than 256") };
    (0..=u8::MAX).map(character).collect()
}

/// Questions about a dozen things, each with its one true answer, drawn from the seed.
pub fn toy_conversations(seed: u64, count: usize) -> Vec<Conversation> {
    const THINGS: [(&str, &str); 12] = [
        ("brass bell", "above the bakery door"),
        ("paper kite", "behind the tall clock"),
        ("blue teapot", "on the captain's table"),
        ("wooden owl", "beside the garden gate"),
        ("silver spoon", "under the third stair"),
        ("round mirror", "in the miller's barn"),
        ("green lamp", "at the end of the quay"),
        ("old fiddle", "inside the oak chest"),
        ("red ladder", "against the chapel wall"),
        ("stone frog", "next to the village well"),
        ("glass marble", "in the pocket of the coat"),
        ("iron key", "beneath the empty vase"),
    ];
    const QUESTIONS: [(&str, &str); 3] =
        [("Where is the ", "?"), ("Please find the ", "."), ("Who has seen the ", " today?")];
    let kinds = THINGS.len() * QUESTIONS.len();
    let draws = (0..).flat_map(|round| permutation(seed, round, kinds)).take(count);
    let conversation = |kind: usize| {
        let (thing, place) = THINGS[kind % THINGS.len()];
        let (before, after) = QUESTIONS[kind / THINGS.len()];
        let user = Turn { role: Role::User, content: format!("{before}{thing}{after}") };
        let assistant = Turn { role: Role::Assistant, content: format!("The {thing} is {place}.") };
        Conversation { system: None, tools: None, turns: vec![user, assistant] }
    };
    draws.map(conversation).collect()
}

/// Conversations as a file of Alpaca rows. Turns of tools have no place in that format and are left to the other one.
pub fn alpaca_json(conversations: &[Conversation]) -> String {
    let row = |conversation: &Conversation| {
        let pairs: Vec<&[Turn]> = conversation.turns.chunks_exact(2).collect();
        let (last, history) = pairs.split_last().map_or((None, &[][..]), |(last, history)| (Some(last), history));
        let text = |index: usize| last.map_or("", |pair| pair[index].content.as_str());
        let mut row = json!({"instruction": text(0), "input": "", "output": text(1)});
        if let Some(system) = &conversation.system {
            row["system"] = json!(system);
        }
        if !history.is_empty() {
            row["history"] = history.iter().map(|pair| json!([pair[0].content, pair[1].content])).collect();
        }
        row
    };
    pretty(&conversations.iter().map(row).collect()) + "\n"
}

/// Conversations as lines of OpenAI messages.
pub fn openai_jsonl(conversations: &[Conversation]) -> String {
    let mut out = String::new();
    for conversation in conversations {
        let system = conversation.system.iter().map(|system| json!({"role": "system", "content": system}));
        let turns = conversation.turns.iter().map(|turn| {
            let role = match turn.role {
                Role::User => "user",
                Role::Assistant => "assistant",
                Role::Observation => "tool",
                Role::FunctionCall => "function",
            };
            json!({"role": role, "content": turn.content})
        });
        let mut row = json!({"messages": system.chain(turns).collect::<Vec<Value>>()});
        if let Some(tools) = &conversation.tools {
            row["tools"] = json!(tools);
        }
        out += &row.to_string();
        out.push('\n');
    }
    out
}
