//! Whether the program itself, started on a damaged copy of a fixture folder, ends with exit code 1 and names on stdout
//! the rows that the damage reaches, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use scout_core::ExitCode;
use scout_tests::{Ended, fixtures, run_in};
use tempfile::TempDir;

use crate::recorded::tiny_scout;

const LIMIT: Duration = Duration::from_secs(60);

/// What happens to a file.
enum Damage {
    CutOneByte,
    CutInHalf,
    Deleted,
    /// The first occurrence of a text becomes another one.
    Text(&'static str, &'static str),
    /// A number of a JSON file, found by its path, grows by this much.
    Number(&'static str, f64),
    WithoutTensor(&'static str),
    NotANumber(&'static str),
    /// The last value of a tensor changes by a thousandth of the tensor's range.
    Changed(&'static str),
    Exchanged(&'static str, &'static str),
}

use Damage::*;

/// The files that are damaged in one run, and the rows that have to fail: `group quantity`, where `*` at the end means
/// every row that begins like this. The rows of all other names have to stay as they are.
struct Case<'a> {
    damage: &'a [(&'a str, Damage)],
    failing: &'a [&'a str],
}

fn check(case: &Case) {
    let folder = copy_of(&tiny_scout());
    for (file, damage) in case.damage {
        damage.inflict(&folder.path().join(file));
    }
    let ended = verify(folder.path());
    let files: Vec<_> = case.damage.iter().map(|(file, _)| file).collect();
    assert_eq!(ended.code, Some(ExitCode::CheckFailed.code()), "{files:?}\n{}{}", ended.stdout, ended.stderr);
    let rows = printed(&ended.stdout);
    let expected = |row: &str| {
        case.failing.iter().any(|name| name.strip_suffix('*').map_or(row == *name, |start| row.starts_with(start)))
    };
    for (row, fails) in &rows {
        assert_eq!(*fails, expected(row), "{files:?}: {row}\n{}", ended.stdout);
    }
    for name in case.failing {
        let is_named = rows.iter().any(|(row, _)| row.starts_with(name.trim_end_matches('*')));
        assert!(is_named, "{files:?}: no row is named {name}\n{}", ended.stdout);
    }
}

fn verify(folder: &Path) -> Ended {
    run_in(folder, &["verify", "."], LIMIT)
}

/// `group quantity` of every printed line, and whether it says FAIL. Rows of a kind that pass share a line.
fn printed(stdout: &str) -> Vec<(String, bool)> {
    let lines = stdout.lines().skip(1).take_while(|line| !line.ends_with(" later"));
    lines
        .filter_map(|line| {
            let (group, rest) = line.split_once(' ')?;
            let (quantity, rest) = rest.trim_start().split_once("  ")?;
            Some((format!("{group} {quantity}"), rest.contains("  FAIL")))
        })
        .collect()
}

#[test]
fn a_damaged_weight_file_is_named() {
    let shards = ["model-00001-of-00003", "model-00002-of-00003", "model-00003-of-00003"];
    for shard in shards.map(|shard| format!("{shard}.safetensors")) {
        for damage in [CutOneByte, CutInHalf, Deleted] {
            check(&Case { damage: &[(&shard, damage)], failing: &["model weights"] });
        }
    }
    let head = "model-00003-of-00003.safetensors";
    for damage in [WithoutTensor("model.norm.weight"), NotANumber("lm_head.weight")] {
        check(&Case { damage: &[(head, damage)], failing: &["model weights"] });
    }
    check(&Case { damage: &[("model.safetensors.index.json", CutInHalf)], failing: &["model weights"] });
    check(&Case { damage: &[("config.json", CutInHalf)], failing: &["config.json all"] });
}

#[test]
fn a_recording_without_its_batch_fails() {
    for damage in [CutOneByte, CutInHalf, Deleted, WithoutTensor("input_ids"), WithoutTensor("labels")] {
        check(&Case { damage: &[("expected.safetensors", damage)], failing: &["expected batch"] });
    }
}
