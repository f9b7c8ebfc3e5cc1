//! Which known key an unknown one was meant to be. Who is told nothing reads the table; who is told the name of another
//! key may well write that, and train something else. So a name far from every key is answered with nothing, and one
//! between two keys as well.

use crate::key::{Key, Treatment};
use crate::keys::KEYS;

/// More make another name: three lead from `use_dora` to `use_rslora`, and from `data_seed` to `dataset`.
const MAX_SLIPS: usize = 2;

/// The known key that an unknown one was probably meant to be: by spelling, else by a part of its name (`batch_size`).
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    const MAX_NAME: usize = 64;
    let name = name.trim().to_lowercase().replace(['-', ' '], "_");
    if name.len() > MAX_NAME {
        return None;
    }
    by_spelling(&name).or_else(|| by_part(&name))
}

fn by_spelling(name: &str) -> Option<&'static str> {
    let slips: Vec<(usize, &'static str)> =
        KEYS.iter().filter_map(|key| Some((slips_between(name, key.name)?, key.name))).collect();
    let fewest = slips.iter().map(|(slips, _)| *slips).min()?;
    let closest = only_one(slips.iter().filter(|(slips, _)| *slips == fewest).map(|(_, key)| *key))?;
    // A short name is soon another one.
    let allowed = match closest.len() {
        ..4 => 0,
        4..9 => 1,
        _ => MAX_SLIPS,
    };
    (fewest <= allowed).then_some(closest)
}

/// The one key that ends with these words, or begins with them where they are at least two; keys that are honoured come
/// before all others. `disable_shuffling` means the opposite of `shuffling`, so it is none of them.
fn by_part(name: &str) -> Option<&'static str> {
    if name.len() < 4 {
        return None;
    }
    let has_part = |key: &&Key| {
        let ends = key.name.strip_suffix(name).is_some_and(|rest| rest.ends_with('_'));
        let begins = key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'));
        (ends || begins && name.contains('_')) && !key.name.starts_with("disable_")
    };
    let (honoured, others): (Vec<&Key>, Vec<&Key>) =
        KEYS.iter().filter(has_part).partition(|key| key.treatment == Treatment::Honoured);
    let candidates = if honoured.is_empty() { others } else { honoured };
    only_one(candidates.into_iter().map(|key| key.name))
}

fn only_one(mut names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let first = names.next()?;
    names.next().is_none().then_some(first)
}

/// How many insertions, deletions, substitutions and swaps of neighbours turn `a` into `b`, if at most `MAX_SLIPS`.
fn slips_between(a: &str, b: &str) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > MAX_SLIPS {
        return None;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
        // A file may hold thousands of unknown keys. A swap reaches over one row, so two rows past the limit end it.
        if rows[i - 1..].iter().flatten().all(|slips| *slips > MAX_SLIPS) {
            return None;
        }
    }
    Some(rows[a.len()][b.len()]).filter(|slips| *slips <= MAX_SLIPS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::find;

    #[test]
    fn one_slip_in_any_key_is_answered_with_that_key_or_with_nothing_between_two() {
        for Key { name, .. } in KEYS.iter().filter(|key| key.name.len() >= 4) {
            for at in 0..name.len() {
                let (head, tail) = name.split_at(at);
                let mut slips = vec![format!("{head}{}", &tail[1..]), format!("{head}q{}", &tail[1..])];
                if let Some(next) = tail.chars().nth(1) {
                    slips.push(format!("{head}{next}{}{}", &tail[..1], &tail[2..]));
                }
                for slip in slips.into_iter().filter(|slip| find(slip).is_none()) {
                    let mut others = KEYS.iter().filter(|key| key.name != *name);
                    let is_between_two = others.any(|other| slips_between(&slip, other.name) == Some(1));
                    assert_eq!(by_spelling(&slip), (!is_between_two).then_some(*name), "{slip}");
                }
            }
        }
    }

    #[test]
    fn unknown_keys_are_answered_with_what_was_meant() {
        for (unknown, expected) in [
            ("learnin_rate", "learning_rate"),
            ("lerning_rat", "learning_rate"),
            ("Learning-Rate", "learning_rate"),
            ("lora-rang", "lora_rank"),
            ("use_rs_lora", "use_rslora"),
            ("lr_scheduler", "lr_scheduler_type"),
            ("model_name", "model_name_or_path"),
            ("batch_size", "per_device_train_batch_size"),
            ("train_batch_size", "per_device_train_batch_size"),
            ("epochs", "num_train_epochs"),
            ("dropout", "lora_dropout"),
        ] {
            assert_eq!(nearest(unknown), Some(expected), "{unknown}");
        }
    }

    #[test]
    fn unknown_keys_that_could_mean_other_training_are_answered_with_nothing() {
        let near = ["use_xyora", "data_set_seed", "lora_bias", "max_epochs", "adam_beta", "f16"];
        let parts = ["shuffling", "steps", "layers", "dir", "rate_", "lora", "a_rank"];
        for unknown in near.into_iter().chain(parts).chain(["", "wibble", "fsdp_transformer_layer_cls"]) {
            assert_eq!(nearest(unknown), None, "{unknown}");
        }
        for (unknown, key) in [("use_dora", "use_rslora"), ("data_seed", "dataset")] {
            assert_eq!(slips_between(unknown, key), None, "{unknown}");
        }
    }
}
