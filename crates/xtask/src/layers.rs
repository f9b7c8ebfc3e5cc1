//! Refuses every edge between crates that the design does not allow. The table below is the rule;
//! `crates/ARCHITECTURE.md` says why.

use anyhow::Result;

use crate::workspace::{Edge, Workspace};

/// What each crate may depend on. A crate that is not in this table may not be depended on and may depend on nothing.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("scout-core", &[]),
    ("scout-telemetry", &["scout-core"]),
    ("scout-data", &["scout-core"]),
    ("scout-config", &["scout-core"]),
    ("scout-device", &["scout-core"]),
    ("scout-launch", &["scout-core"]),
    ("scout-kernels", &["scout-core", "scout-device"]),
    ("scout-comm", &["scout-core", "scout-device"]),
    ("scout-model", &["scout-core", "scout-device", "scout-kernels"]),
    ("scout-shard", &["scout-core", "scout-device", "scout-comm"]),
    ("scout-checkpoint", &["scout-core", "scout-device", "scout-shard"]),
    ("scout-train", &TRAINER_PARTS),
    ("scout-cli", &PROGRAM_PARTS),
];

const TRAINER_PARTS: [&str; 10] = [
    "scout-core",
    "scout-telemetry",
    "scout-data",
    "scout-config",
    "scout-device",
    "scout-kernels",
    "scout-comm",
    "scout-model",
    "scout-shard",
    "scout-checkpoint",
];

const PROGRAM_PARTS: [&str; 12] = [
    "scout-core",
    "scout-telemetry",
    "scout-data",
    "scout-config",
    "scout-device",
    "scout-kernels",
    "scout-comm",
    "scout-model",
    "scout-shard",
    "scout-checkpoint",
    "scout-train",
    "scout-launch",
];

/// They look at the finished program from outside and may see everything.
const FREE: [&str; 3] = ["scout-tests", "scout-benches", "xtask"];

pub fn check(workspace: &Workspace) -> Result<bool> {
    let findings = refusals(&workspace.crates, &workspace.edges);
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("layers: {} edges between {} crates, all allowed", workspace.edges.len(), workspace.crates.len());
    }
    Ok(findings.is_empty())
}

fn refusals(crates: &[String], edges: &[Edge]) -> Vec<String> {
    let allowed = |name: &str| ALLOWED.iter().find(|(from, _)| *from == name).map(|(_, to)| *to);
    let mut findings: Vec<String> = crates
        .iter()
        .filter(|name| allowed(name).is_none() && !FREE.contains(&name.as_str()))
        .map(|name| format!("layers: crate `{name}` has no row in the table{RULE}"))
        .collect();
    for Edge { from, to, kind } in edges {
        let tests_itself = kind == "dev" && from == to;
        if FREE.contains(&from.as_str()) || tests_itself {
            continue;
        }
        let may = allowed(from).unwrap_or_default();
        if !may.contains(&to.as_str()) {
            let may = if may.is_empty() { "nothing".to_string() } else { may.join(", ") };
            findings
                .push(format!("layers: {kind} edge `{from}` -> `{to}` is not allowed, `{from}` may use {may}{RULE}"));
        }
    }
    findings
}

const RULE: &str = " (the table is in crates/xtask/src/layers.rs, its reasons are in crates/ARCHITECTURE.md)";

#[cfg(test)]
mod tests {
    use super::*;

    /// Edges as `from -> to` with an optional `dev` or `build` in front, and a part of the refusal or none.
    fn check(rows: &[(&str, Option<&str>)]) {
        for (row, expected) in rows {
            let mut words: Vec<&str> = row.split_whitespace().filter(|word| *word != "->").collect();
            let kind = if words.len() == 3 { words.remove(0) } else { "normal" };
            let edge = Edge { from: words[0].to_string(), to: words[1].to_string(), kind: kind.to_string() };
            let found = refusals(&[], &[edge]);
            match expected {
                None => assert!(found.is_empty(), "{row}: {found:?}"),
                Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{row}: {found:?}"),
            }
        }
    }

    #[test]
    fn only_the_edges_of_the_table_are_allowed() {
        check(&[
            ("scout-model -> scout-kernels", None),
            ("scout-train -> scout-config", None),
            ("scout-cli -> scout-launch", None),
            ("scout-launch -> scout-core", None),
            ("scout-model -> scout-shard", Some("`scout-model` -> `scout-shard`")),
            ("scout-shard -> scout-model", Some("scout-shard")),
            ("scout-data -> scout-model", Some("may use scout-core")),
            ("scout-core -> scout-device", Some("may use nothing")),
            ("scout-train -> scout-cli", Some("ARCHITECTURE.md")),
            ("scout-train -> scout-launch", Some("scout-launch")),
            ("scout-launch -> scout-telemetry", Some("scout-telemetry")),
            ("scout-device -> xtask", Some("xtask")),
        ]);
    }

    #[test]
    fn build_and_dev_edges_count_and_a_crate_may_test_itself() {
        check(&[
            ("build scout-kernels -> scout-comm", Some("build edge")),
            ("dev scout-model -> scout-data", Some("dev edge")),
            ("dev scout-model -> scout-device", None),
            ("dev scout-comm -> scout-comm", None),
            ("normal scout-comm -> scout-comm", Some("normal edge")),
        ]);
    }

    #[test]
    fn tests_benches_and_xtask_are_free() {
        check(&[
            ("scout-tests -> scout-cli", None),
            ("scout-benches -> scout-shard", None),
            ("xtask -> scout-core", None),
        ]);
    }

    #[test]
    fn a_crate_without_a_row_is_refused() {
        let found = refusals(&["scout-core".to_string(), "scout-extras".to_string(), "xtask".to_string()], &[]);
        assert!(found.len() == 1 && found[0].contains("`scout-extras` has no row"), "{found:?}");
    }

    #[test]
    fn edges_are_read_from_cargos_own_words() {
        let metadata = serde_json::json!({
            "workspace_root": "/made-up", "target_directory": "/made-up/target",
            "packages": [
                {"name": "scout-core", "dependencies": [{"name": "serde", "kind": null}]},
                {"name": "scout-data", "dependencies": [
                    {"name": "scout-core", "kind": null}, {"name": "scout-model", "kind": "dev", "rename": "model"}]},
                {"name": "scout-model", "dependencies": []},
            ]
        });
        let workspace = Workspace::from_metadata(&metadata).unwrap();
        assert_eq!(workspace.edges.len(), 2, "foreign crates are no edges: {:?}", workspace.edges);
        let found = refusals(&workspace.crates, &workspace.edges);
        assert!(found.len() == 1 && found[0].contains("dev edge `scout-data` -> `scout-model`"), "{found:?}");
    }
}
