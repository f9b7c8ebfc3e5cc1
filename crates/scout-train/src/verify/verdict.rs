//! Everything there is to say about a folder: recorded files beside what was computed for them, and rows that are settled.

use std::collections::BTreeMap;

use super::compare::{Kind, Numbered, Numbers, Precision, Row, Rule, compare_all};
use super::held::Held;
use super::recording::Recording;

/// One recorded file beside what was computed for it: enough to compare again with other numbers.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    pub promised: Vec<String>,
    pub recorded: Recording,
    pub computed: Numbered,
    /// Rules that the names alone do not tell.
    pub rules: BTreeMap<String, Rule>,
}

impl Group {
    pub fn new(name: &str, promised: Vec<String>, recorded: Recording, computed: Numbered) -> Group {
        Group { name: name.to_string(), promised, recorded, computed, rules: BTreeMap::new() }
    }

    /// The same group, computed in this arithmetic.
    pub fn under(mut self, precision: Precision) -> Group {
        if precision != Precision::Host {
            let rule = |name: &String| (name.clone(), Kind::of_name(name).rule(precision));
            self.rules = self.promised.iter().map(rule).collect();
        }
        self
    }

    pub fn add(&mut self, name: &str, rule: Rule, recorded: std::result::Result<Numbers, String>, computed: Numbers) {
        self.promised.push(name.to_string());
        self.recorded.insert(name.to_string(), recorded);
        self.computed.insert(name.to_string(), computed);
        self.rules.insert(name.to_string(), rule);
    }

    pub fn compare(&self) -> Vec<Row> {
        compare_all(&self.name, &self.promised, &self.recorded, &self.computed, &self.rules)
    }
}

/// Everything there is to say about a folder.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Numbers against numbers.
    pub groups: Vec<Group>,
    /// Rows that are settled without a comparison of tensors.
    pub rows: Vec<Row>,
    /// What each rank held and read; empty where nothing could be computed.
    pub ranks: Vec<Held>,
}

impl Verdict {
    pub fn all_rows(&self) -> Vec<Row> {
        self.groups.iter().flat_map(Group::compare).chain(self.rows.iter().cloned()).collect()
    }

    pub fn fail(mut self, group: &str, quantity: &str, detail: impl Into<String>) -> Verdict {
        self.rows.push(Row::fail(group, quantity, detail));
        self
    }
}
