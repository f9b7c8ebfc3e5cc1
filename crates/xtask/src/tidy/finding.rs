//! What a rule is and what it finds.

use crate::tree::Tree;

/// A place that breaks a rule.
#[derive(Debug)]
pub struct Finding {
    pub path: String,
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    pub message: String,
}

impl Finding {
    pub fn new(path: &str, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: path.to_string(), line, message: message.into() }
    }
}

/// Looks at the whole tree.
pub type Rule = fn(&Tree) -> Vec<Finding>;

/// Checks one rule against rows of `(path, text, expected)`, where `expected` is a part of the only finding or none.
#[cfg(test)]
pub fn check_rows(rule: Rule, rows: &[(&str, &str, Option<&str>)]) {
    for (path, text, expected) in rows {
        let found = rule(&Tree::of(&[(path, text)]));
        match expected {
            None => assert!(found.is_empty(), "{path} {text:?}: {found:?}"),
            Some(part) => {
                assert!(found.len() == 1 && found[0].message.contains(part), "{path} {text:?}: {found:?}");
                assert_eq!(found[0].path, *path);
            }
        }
    }
}
