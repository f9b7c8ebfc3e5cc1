//! Rules about where things stand and what they are called.

use super::finding::Finding;
use crate::tree::Tree;

/// The first line of a file is its first sentence to a stranger.
pub fn files_say_what_they_are(tree: &Tree) -> Vec<Finding> {
    tree.texts(&["rs", "cu", "cuh"])
        .filter_map(|(file, text)| {
            let opening = if file.path.ends_with(".rs") { "//!" } else { "//" };
            let says = text.lines().next().is_some_and(|line| line.starts_with(opening) && line.len() > opening.len());
            let message =
                format!("opens without `{opening}` and a sentence: say what the file is and what it does not do");
            (!says).then(|| Finding::new(&file.path, 1, message))
        })
        .collect()
}

/// `unsafe` lives in two crates; the compiler holds this for every other one, if it is told.
pub fn unsafe_stays_in_its_two_crates(tree: &Tree) -> Vec<Finding> {
    const MAY_BE_UNSAFE: [&str; 2] = ["crates/scout-device/", "crates/scout-kernels/"];
    let is_root = |path: &str| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    tree.texts(&["rs"])
        .filter(|(file, _)| is_root(&file.path) && !MAY_BE_UNSAFE.iter().any(|home| file.path.starts_with(home)))
        .filter(|(_, text)| !text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]"))
        .map(|(file, _)| Finding::new(&file.path, 0, "lacks `#![forbid(unsafe_code)]`"))
        .collect()
}

/// A thing without a home is a sign that a word is missing.
pub fn no_module_without_a_word(tree: &Tree) -> Vec<Finding> {
    const EMPTY_WORDS: [&str; 6] = ["utils", "util", "common", "helpers", "helper", "misc"];
    let mut findings = Vec::new();
    for (file, text) in tree.texts(&["rs", "cu", "cuh"]) {
        let parts = file.path.split('/').map(|part| part.split_once('.').map_or(part, |(stem, _)| stem));
        if let Some(word) = parts.into_iter().find(|part| EMPTY_WORDS.contains(part)) {
            findings.push(Finding::new(&file.path, 0, format!("`{word}` says nothing: name it after what it holds")));
        }
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            let module = line.strip_prefix("mod ").and_then(|rest| rest.split(|c: char| !is_word(c)).next());
            if let Some(word) = module.filter(|word| EMPTY_WORDS.contains(word)) {
                let message = format!("module `{word}` says nothing: name it after what it holds");
                findings.push(Finding::new(&file.path, index + 1, message));
            }
        }
    }
    findings
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// `<model>-<method>-<hardware>.yaml`, so that a listing of the folder answers which one to take.
pub fn configs_are_named_after_what_they_do(tree: &Tree) -> Vec<Finding> {
    let is_well_named = |name: &str| {
        let parts: Vec<&str> = name.split('-').collect();
        parts.len() >= 3
            && parts.iter().all(|part| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.')
            })
    };
    tree.files
        .iter()
        .filter_map(|file| Some((file, file.path.strip_prefix("configs/")?)))
        .filter(|(_, name)| name.ends_with(".yaml") || name.ends_with(".yml"))
        .filter(|(_, name)| !name.strip_suffix(".yaml").is_some_and(is_well_named))
        .map(|(file, _)| {
            Finding::new(&file.path, 0, "expected a name like `<model>-<method>-<hardware>.yaml` in lower case")
        })
        .collect()
}

/// What a library does follows from its arguments; only programs look at the environment.
pub fn the_environment_is_read_at_the_top(tree: &Tree) -> Vec<Finding> {
    const READERS: [&str; 5] = ["crates/scout-cli/", "launcher/", "crates/xtask/", "tests/", "benches/"];
    let mut findings = Vec::new();
    for (file, text) in tree.texts(&["rs"]) {
        // Cargo speaks to build scripts through the environment, and so does a test to the copy of itself that it starts.
        let is_test = file.path.contains("/tests/") || file.path.ends_with("tests.rs");
        if READERS.iter().any(|home| file.path.starts_with(home)) || file.path.ends_with("/build.rs") || is_test {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("env::var") || code.contains("env::set_var") || code.contains("env::remove_var") {
                let message = "reads the environment: take an argument, and let `scout-cli` or `launcher` read";
                findings.push(Finding::new(&file.path, index + 1, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::finding::check_rows;

    #[test]
    fn a_file_opens_with_a_sentence() {
        check_rows(
            files_say_what_they_are,
            &[
                ("a.rs", "//! Adds.\n", None),
                ("kernel.cu", "// Adds.\n", None),
                ("a.rs", "use std::fs;\n//! Adds.", Some("opens without `//!`")),
                ("a.rs", "//!\n", Some("opens without")),
                ("a.rs", "", Some("opens without")),
                ("kernel.cu", "#include <a>", Some("opens without `//`")),
            ],
        );
    }

    #[test]
    fn crate_roots_forbid_unsafe_outside_its_two_crates() {
        check_rows(
            unsafe_stays_in_its_two_crates,
            &[
                ("crates/scout-core/src/lib.rs", "//! A.\n#![forbid(unsafe_code)]", None),
                ("crates/scout-core/src/lib.rs", "//! `#![forbid(unsafe_code)]` is missing", Some("lacks")),
                ("crates/scout-cli/src/main.rs", "fn main() {}", Some("lacks")),
                ("launcher/src/lib.rs", "// #![forbid(unsafe_code)]", Some("lacks")),
                ("crates/scout-device/src/lib.rs", "", None),
                ("crates/scout-kernels/src/lib.rs", "", None),
                ("crates/scout-core/src/bytes.rs", "", None),
            ],
        );
    }

    #[test]
    fn modules_have_names_that_say_something() {
        check_rows(
            no_module_without_a_word,
            &[
                ("crates/a/src/utils.rs", "", Some("`utils`")),
                ("crates/a/src/common/mod.rs", "", Some("`common`")),
                ("crates/a/src/lib.rs", "pub mod helpers;", Some("module `helpers`")),
                ("crates/a/src/lib.rs", "    mod util {", Some("module `util`")),
                ("crates/a/src/lib.rs", "mod utilization;", None),
                ("crates/a/src/common_words.rs", "", None),
            ],
        );
    }

    #[test]
    fn configs_name_model_method_and_hardware() {
        check_rows(
            configs_are_named_after_what_they_do,
            &[
                ("configs/tiny-cpu-4rank.yaml", "", None),
                ("configs/llama4scout-qlora-8xh100.yaml", "", None),
                ("configs/README.md", "", None),
                ("configs/test.yaml", "", Some("<model>-<method>-<hardware>")),
                ("configs/Scout-lora-8xh100.yaml", "", Some("lower case")),
                ("configs/scout-lora-.yaml", "", Some("<hardware>")),
                ("configs/scout-lora-8xh100.yml", "", Some(".yaml")),
            ],
        );
    }

    #[test]
    fn only_programs_read_the_environment() {
        let reads = "let home = std::env::var_os(\"HOME\");";
        check_rows(
            the_environment_is_read_at_the_top,
            &[
                ("crates/scout-data/src/lib.rs", reads, Some("reads the environment")),
                ("crates/scout-data/src/lib.rs", "for (key, value) in env::vars() {", Some("reads the environment")),
                ("crates/scout-data/src/lib.rs", "// std::env::var is read by the caller", None),
                ("crates/scout-data/src/lib.rs", "env!(\"CARGO_PKG_VERSION\")", None),
                ("crates/scout-kernels/build.rs", reads, None),
                ("crates/scout-kernels/src/thread_tests.rs", reads, None),
                ("crates/scout-train/tests/trainer.rs", reads, None),
                ("crates/scout-cli/src/main.rs", reads, None),
                ("launcher/src/lib.rs", reads, None),
                ("tests/launch/main.rs", reads, None),
            ],
        );
    }
}
