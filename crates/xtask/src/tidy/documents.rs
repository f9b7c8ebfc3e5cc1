//! Rules about what the documents promise.

use std::collections::HashSet;

use super::finding::Finding;
use crate::tree::Tree;

const ARCHITECTURE: &str = "crates/ARCHITECTURE.md";

/// A link to a file of the repository leads to one.
pub fn links_lead_somewhere(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.texts(&["md"]) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            if in_code {
                continue;
            }
            for target in link_targets(line) {
                let is_elsewhere = target.contains("://") || target.starts_with("mailto:") || target.starts_with('#');
                let path = target.split('#').next().unwrap_or_default();
                if !is_elsewhere && !exists(tree, folder, path) {
                    findings.push(Finding::new(
                        &file.path,
                        index + 1,
                        format!("link to `{target}`, which is not there"),
                    ));
                }
            }
        }
    }
    findings
}

/// What stands between the parentheses of `[text](target)`, outside inline code.
fn link_targets(line: &str) -> Vec<&str> {
    // Every second part between backticks is code.
    let prose = line.split('`').step_by(2);
    let links = prose.flat_map(|part| part.split("](").skip(1));
    links.filter_map(|rest| rest.split([')', ' ']).next()).map(|target| target.trim_matches(['<', '>'])).collect()
}

fn exists(tree: &Tree, folder: &str, path: &str) -> bool {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part != ".." {
            parts.push(part);
        } else if parts.pop().is_none() {
            return false;
        }
    }
    let wanted = parts.join("/");
    // An absolute path would only be right on one machine.
    !path.starts_with('/')
        && (wanted.is_empty()
            || tree.files.iter().any(|file| file.path == wanted || file.path.starts_with(&format!("{wanted}/"))))
}

/// An invariant `(test: `name`)`, or `(tests: ...)`, of the architecture page names tests that exist.
pub fn invariants_name_a_living_test(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.file(ARCHITECTURE).and_then(|file| file.text.as_deref()) else {
        return vec![Finding::new(ARCHITECTURE, 0, "is missing: it holds the map and the invariants")];
    };
    let tests: HashSet<&str> = tree.texts(&["rs"]).flat_map(|(_, text)| test_names(text)).collect();
    let mut findings = Vec::new();
    // Over the whole text, because a sentence may be broken into lines anywhere.
    let openings = ["(test:", "(tests:"].into_iter().flat_map(|opening| text.match_indices(opening));
    for (at, opening) in openings {
        let line = text[..at].lines().count();
        let promise = text[at + opening.len()..].split(')').next().unwrap_or_default();
        let names: Vec<&str> = promise.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            findings.push(Finding::new(ARCHITECTURE, line, "expected the name of a test in backticks"));
        }
        for name in names {
            if !tests.contains(name.rsplit("::").next().unwrap_or(name)) {
                findings.push(Finding::new(ARCHITECTURE, line, format!("there is no test `{name}`")));
            }
        }
    }
    findings
}

/// The functions marked as tests.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_marked = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[") {
            is_marked |= line.starts_with("#[test]");
        } else if let Some((before, after)) = line.split_once("fn ") {
            let is_function = before.split_whitespace().all(|word| word == "pub" || word == "async");
            if is_marked && is_function {
                names.extend(after.split('(').next());
            }
            is_marked = false;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_missing_files_are_refused() {
        let files = ["README.md", "crates/ARCHITECTURE.md", "configs/tiny-cpu-4rank.yaml"];
        for (path, text, expected) in [
            ("README.md", "[map](crates/ARCHITECTURE.md#code-map) and [configs](configs/)", None),
            (
                "crates/ARCHITECTURE.md",
                "[start](../README.md), [here](.), [code](https://example.com/a.md), [up](#top)",
                None,
            ),
            ("README.md", "[`tiny`](configs/tiny-cpu-4rank.yaml \"title\")", None),
            ("README.md", "`[not](a-link.md)`\n```\n[nor](this.md)\n```", None),
            ("README.md", "[map](ARCHITECTURE.md)", Some("`ARCHITECTURE.md`")),
            ("README.md", "[`tiny`](configs/tiny.yaml)", Some("`configs/tiny.yaml`")),
            ("crates/ARCHITECTURE.md", "[out](../../elsewhere.md)", Some("elsewhere.md")),
            ("README.md", "[root](/README.md)", Some("`/README.md`")),
        ] {
            let rows: Vec<(&str, &str)> =
                files.iter().map(|file| (*file, if *file == path { text } else { "" })).collect();
            let found = links_lead_somewhere(&Tree::of(&rows));
            match expected {
                None => assert!(found.is_empty(), "{text}: {found:?}"),
                Some(part) => assert!(found.len() == 1 && found[0].message.contains(part), "{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn an_invariant_without_a_living_test_is_refused() {
        assert!(invariants_name_a_living_test(&Tree::of(&[]))[0].message.contains("is missing"));
        let code = "#[test]\n#[cfg(unix)]\nfn plans_cover_every_byte() {}\n\nfn only_a_function() {}\n#[test]\npub fn second() {}";
        for (text, expected) in [
            ("- Plans cover every byte (test: `plans_cover_every_byte`).", None),
            ("- Two (test: `plan::tests::plans_cover_every_byte`, `second`) of them.", None),
            ("- Broken into lines (test:\n  `second`)", None),
            ("- Gone (test:\n  `plans_cover_nothing`)", Some("there is no test `plans_cover_nothing`")),
            ("- Gone too (tests: `second`, `third`)", Some("there is no test `third`")),
            ("- Not a test (test: `only_a_function`)", Some("there is no test `only_a_function`")),
            ("- Nameless (test: none)", Some("in backticks")),
        ] {
            let found = invariants_name_a_living_test(&Tree::of(&[(ARCHITECTURE, text), ("tests/a.rs", code)]));
            match expected {
                None => assert!(found.is_empty(), "{text}: {found:?}"),
                Some(part) => assert!(found.len() == 1 && found[0].message.contains(part), "{text}: {found:?}"),
            }
        }
    }
}
