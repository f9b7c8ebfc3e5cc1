//! Tokens and texts: the tokenizer, the chat template, the supervised view of conversations, and the way from
//! conversations to the recorded batches. Whole numbers and strings, so everything must be equal.

use std::path::Path;

use scout_core::{ByteCount, ExitCode};
use scout_data::{
    ChatRequest, ChatTemplate, Conversation, Dataset, DatasetRequest, Date, Encoding, Example, Supervision, Template,
    Tokenizer,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::compare::Row;
use super::padded::Padded;
use crate::error::{Result, TrainError};

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    ids: Vec<u32>,
    ids_with_bos: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct ChatCase {
    messages: serde_json::Value,
    template_text: String,
    template_text_with_generation_prompt: String,
    /// Present for conversations that end in an answer.
    sft_ids: Option<Vec<u32>>,
    #[serde(default)]
    sft_labels: Vec<i64>,
    #[serde(default)]
    truncated: Vec<TruncatedCase>,
}

#[derive(Deserialize)]
struct TruncatedCase {
    cutoff: usize,
    sft_ids: Vec<u32>,
    sft_labels: Vec<i64>,
}

const NO_CUTOFF: usize = usize::MAX / 4;

pub fn rows(folder: &Path, probe: &Padded, batches: &[Padded]) -> Vec<Row> {
    let checks: [(&str, Result<Vec<String>>); 3] = [
        ("tokenizer_cases", tokenizer_cases(folder)),
        ("chat_cases", chat_cases(folder)),
        ("train_data", train_data(folder, probe, batches)),
    ];
    checks
        .into_iter()
        .map(|(name, wrong)| match wrong {
            Ok(wrong) if wrong.is_empty() => Row::ok(name, "all equal"),
            Ok(wrong) => Row::fail(name, &wrong[0], format!("{} differences, the first in {}", wrong.len(), wrong[0])),
            Err(error) => Row::fail(name, "all", error.with_causes()),
        })
        .collect()
}

/// Names of the cases that differ.
fn tokenizer_cases(folder: &Path) -> Result<Vec<String>> {
    let tokenizer = Tokenizer::load(folder)?;
    let cases: Vec<TokenizerCase> = read_cases(&folder.join("tokenizer_cases.json"))?;
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let is_equal = tokenizer.encode(&case.text)? == case.ids
            && tokenizer.encode_with_bos(&case.text)? == case.ids_with_bos
            && tokenizer.decode(&case.ids)? == case.decoded;
        if !is_equal {
            wrong.push(format!("case {index}"));
        }
    }
    Ok(wrong)
}

fn chat_cases(folder: &Path) -> Result<Vec<String>> {
    let chat = ChatTemplate::load(folder)?;
    let template = Template::llama4(Tokenizer::load(folder)?, Date::now())?;
    let cases: Vec<ChatCase> = read_cases(&folder.join("chat_cases.json"))?;
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        for (add_generation_prompt, expected) in
            [(false, &case.template_text), (true, &case.template_text_with_generation_prompt)]
        {
            let request =
                ChatRequest { messages: &case.messages, tools: None, add_generation_prompt, date: Date::now() };
            if chat.render(&request)? != *expected {
                wrong.push(format!("case {index}, template, generation prompt {add_generation_prompt}"));
            }
        }
        let Some(ids) = &case.sft_ids else { continue };
        let whole = (NO_CUTOFF, ids, &case.sft_labels);
        let cut = case.truncated.iter().map(|cut| (cut.cutoff, &cut.sft_ids, &cut.sft_labels));
        for (cutoff_len, ids, labels) in std::iter::once(whole).chain(cut) {
            let example = encode(&template, &case.messages, cutoff_len)?;
            if (&example.ids, &example.labels) != (ids, labels) {
                wrong.push(format!("case {index}, supervised view, cutoff {cutoff_len}"));
            }
        }
    }
    Ok(wrong)
}

/// The conversations behind the probe batch and the training batches, in their order.
fn train_data(folder: &Path, probe: &Padded, batches: &[Padded]) -> Result<Vec<String>> {
    let path = folder.join("train_data.jsonl");
    let dataset = load(&path)?;
    let template = Template::llama4(Tokenizer::load(folder)?, Date::now())?;
    let encoding = Encoding { supervision: Supervision::Answers, cutoff_len: NO_CUTOFF };
    let recorded: Vec<(usize, usize, &Padded)> = std::iter::once(probe)
        .chain(batches)
        .enumerate()
        .flat_map(|(batch_index, padded)| (0..padded.num_rows).map(move |row| (batch_index, row, padded)))
        .collect();
    if dataset.len() != recorded.len() {
        return Ok(vec![format!("{} conversations for {} recorded rows", dataset.len(), recorded.len())]);
    }
    let mut wrong = Vec::new();
    for (conversation, (batch_index, row, padded)) in dataset.conversations().iter().zip(recorded) {
        let example = template.encode(conversation, &encoding)?;
        if !padded.row_equals(row, &example.ids, &example.labels) {
            wrong.push(format!("batch {batch_index}, row {row}"));
        }
    }
    Ok(wrong)
}

fn load(path: &Path) -> Result<Dataset> {
    Ok(Dataset::load(&DatasetRequest {
        names: vec![path.display().to_string()],
        dataset_dir: None,
        max_samples: None,
        max_row_bytes: ByteCount::mib(8),
        seed: 0,
    })?)
}

fn encode(template: &Template, messages: &serde_json::Value, cutoff_len: usize) -> Result<Example> {
    let row = serde_json::json!({ "messages": messages }).to_string();
    let conversation = Conversation::from_row(&row)?;
    Ok(template.encode(&conversation, &Encoding { supervision: Supervision::Answers, cutoff_len })?)
}

fn read_cases<C: DeserializeOwned>(path: &Path) -> Result<C> {
    let wrong =
        |problem: String| TrainError::Input { path: path.display().to_string(), problem, code: ExitCode::BadData };
    let text = std::fs::read_to_string(path).map_err(|cause| wrong(format!("cannot be read: {cause}")))?;
    serde_json::from_str(&text).map_err(|cause| wrong(format!("is not a list of cases: {cause}")))
}
