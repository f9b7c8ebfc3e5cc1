//! Benchmarks of this program, run by `cargo bench -p scout-benches -- [NAME …]`; what was measured lies in `results/`.
//! This library holds what they share: what was asked for, where it ran, summaries of repeated timings.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::Command;

use scout_model::{Batch, Document, Target};

/// The words after `--`: names of benchmarks, and settings as `--key value`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    names: Vec<String>,
    settings: BTreeMap<String, String>,
}

impl Request {
    /// Of this process.
    pub fn read() -> Request {
        Request::parse(std::env::args().skip(1))
    }

    fn parse(words: impl IntoIterator<Item = String>) -> Request {
        let mut request = Request::default();
        // Cargo adds `--bench` without a value.
        let mut words = words.into_iter().filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(key) => drop(request.settings.insert(key.to_string(), words.next().unwrap_or_default())),
                None => request.names.push(word),
            }
        }
        request
    }

    /// Without names, all benchmarks are.
    pub fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }
}

/// The commit that was built, as far as git can tell.
pub fn commit() -> String {
    let told = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let name = told.ok().filter(|told| told.status.success()).and_then(|told| String::from_utf8(told.stdout).ok());
    name.map_or("unknown".to_string(), |name| name.trim().to_string())
}

/// The processor's name for itself, as far as the system can tell.
pub fn processor() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = told.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("unknown".to_string(), |(_, name)| name.trim().to_string())
}

/// `num_documents` documents of equal length, every position scored.
pub fn batch(num_documents: usize, document_len: usize, chunk_size: usize) -> Result<Batch, scout_model::ModelError> {
    let token = |index: usize| ((index * 7919) % 7000) as u32;
    let documents: Vec<Document> = (0..num_documents)
        .map(|d| Document {
            sample_id: d as u64,
            tokens: (0..document_len).map(|t| token(d * document_len + t)).collect(),
        })
        .collect();
    let num_tokens = num_documents * document_len;
    let targets: Vec<Target> = (0..num_tokens)
        .filter(|row| (row + 1) % document_len != 0)
        .map(|row| Target { row: row as u32, token: token(row + 1), weight: 1.0 / num_tokens as f32 })
        .collect();
    Batch::new(&documents, &targets, chunk_size)
}

/// Minimum, median and maximum of repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// `None` for no measurements.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        Some(Spread { min: *values.first()?, median: values[values.len() / 2], max: *values.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_benchmarks_and_sets_values() {
        let parse = |text: &str| Request::parse(text.split_whitespace().map(str::to_string));
        let all = parse("--bench");
        assert!(all.wants("a") && all.setting("json").is_none());
        let one = parse("a --json b --bench --ranks 4");
        assert!(one.wants("a") && !one.wants("b"));
        assert_eq!((one.setting("json"), one.setting("ranks")), (Some("b"), Some("4")));
    }

    #[test]
    fn a_spread_is_the_least_the_middle_and_the_most() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
