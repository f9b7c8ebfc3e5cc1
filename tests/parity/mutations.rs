//! Whether the comparison notices what it is there for: every recorded or computed number is changed, spoilt, taken away
//! or exchanged, and the row of that very name has to fail. All in memory; damaged files are the business of `damage`.

use std::collections::BTreeSet;

use scout_checkpoint::TensorFile;
use scout_train::verify::{Group, Numbers, Status, Values, compare_all};

use crate::recorded::{failing, tiny_scout, verdict};

/// Share of a tensor's range by which a single value is changed.
const CHANGE: f32 = 1e-3;

#[derive(Debug, Clone, Copy)]
enum Side {
    Recorded,
    Computed,
}

const SIDES: [Side; 2] = [Side::Recorded, Side::Computed];

/// A group whose numbers are changed and put back.
struct Subject(Group);

impl Subject {
    fn numbers(&self, side: Side, name: &str) -> &Numbers {
        match side {
            Side::Recorded => self.0.recorded[name].as_ref().expect("the fixture is whole"),
            Side::Computed => &self.0.computed[name],
        }
    }

    fn put(&mut self, side: Side, name: &str, numbers: Numbers) -> Numbers {
        let name = name.to_string();
        let before = match side {
            Side::Recorded => self.0.recorded.insert(name, Ok(numbers)).map(|before| before.expect("readable")),
            Side::Computed => self.0.computed.insert(name, numbers),
        };
        before.expect("only names that are there are replaced")
    }

    /// The row of one name, without the work of all others.
    fn fails(&self, name: &str) -> bool {
        let Group { name: group, recorded, computed, rules, .. } = &self.0;
        compare_all(group, &[name.to_string()], recorded, computed, rules)[0].status == Status::Fail
    }
}

fn subjects() -> impl Iterator<Item = Subject> {
    verdict().groups.iter().cloned().map(Subject)
}

/// The first place, the last, the one of the largest value, and one that the name picks.
fn places(name: &str, values: &[f32]) -> BTreeSet<usize> {
    let largest = (0..values.len()).fold(0, |best, i| if values[i].abs() > values[best].abs() { i } else { best });
    let picked = name.bytes().fold(17_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
    [0, values.len() - 1, largest, picked % values.len()].into()
}

/// The change that has to be noticed: a share of the range, or of the value where there is only one.
fn smallest_change(values: &[f32]) -> f32 {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
    CHANGE * if values.len() == 1 { largest.abs() } else { largest - smallest }
}

#[test]
fn the_untouched_fixture_passes_row_by_row() {
    let names: Vec<_> = verdict().groups.iter().map(|group| group.name.as_str()).collect();
    let adapters =
        ["adapter_attn", "training_attn", "adapter_experts", "training_experts", "adapter_all", "training_all"];
    assert_eq!(names, [&["expected"], &adapters[..]].concat());
    assert_eq!(failing(&verdict().all_rows()), Vec::<&str>::new());
}

#[test]
fn every_recorded_tensor_but_the_inputs_has_a_row() {
    let rows = verdict().all_rows();
    let files = [("expected", "expected"), ("nf4.expected", "nf4")].map(|(f, g)| (f.to_string(), g.to_string()));
    let adapters = ["attn", "experts", "all"];
    let with_adapter = adapters.map(|name| (format!("adapter_{name}.expected"), format!("adapter_{name}")));
    let trained = adapters.map(|name| (format!("adapter_{name}_trained/adapter_model"), format!("training_{name}")));
    for (file, group) in files.into_iter().chain(with_adapter).chain(trained) {
        let tensors = TensorFile::open(&tiny_scout().join(format!("{file}.safetensors"))).unwrap();
        for entry in tensors.entries() {
            let is_input = ["input_ids", "attention_mask", "labels"].contains(&entry.name.as_str());
            let trained = format!("trained.{}", entry.name);
            let is_row = |quantity: &str| quantity == entry.name || quantity == trained;
            let num_rows = rows.iter().filter(|row| row.group == group && is_row(&row.quantity)).count();
            assert_eq!(num_rows, usize::from(!is_input), "{file}: {}", entry.name);
        }
    }
}

#[test]
fn a_change_of_a_thousandth_in_any_recorded_number_fails_its_own_row_alone() {
    let mut num_changes = 0;
    for mut subject in subjects() {
        for name in subject.0.promised.clone() {
            for side in SIDES {
                let Values::Floats(values) = subject.numbers(side, &name).values.clone() else { continue };
                let change = smallest_change(&values);
                for (number, place) in places(&name, &values).into_iter().enumerate() {
                    for change in [change, -change] {
                        let mut changed = subject.numbers(side, &name).clone();
                        set_float(&mut changed, place, values[place] + change);
                        let before = subject.put(side, &name, changed);
                        assert!(subject.fails(&name), "{} {name} {side:?} [{place}] {change:+e}", subject.0.name);
                        if number == 0 && change > 0.0 {
                            assert_eq!(failing(&subject.0.compare()), [name.as_str()], "{}", subject.0.name);
                        }
                        subject.put(side, &name, before);
                        num_changes += 1;
                    }
                }
            }
        }
    }
    assert!(num_changes > 4_000, "only {num_changes} changes were tried");
}

#[test]
fn a_value_that_is_not_a_number_fails_its_row() {
    for mut subject in subjects() {
        for name in subject.0.promised.clone() {
            for side in SIDES {
                let Values::Floats(values) = subject.numbers(side, &name).values.clone() else { continue };
                for place in places(&name, &values) {
                    for spoilt in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut changed = subject.numbers(side, &name).clone();
                        set_float(&mut changed, place, spoilt);
                        let before = subject.put(side, &name, changed);
                        assert!(subject.fails(&name), "{} {name} {side:?} [{place}] {spoilt}", subject.0.name);
                        subject.put(side, &name, before);
                    }
                }
                // The same on both sides is no agreement either.
                let mut spoilt = subject.numbers(side, &name).clone();
                set_float(&mut spoilt, 0, f32::NAN);
                let before = SIDES.map(|side| subject.put(side, &name, spoilt.clone()));
                assert!(subject.fails(&name), "{} {name}, NaN on both sides", subject.0.name);
                for (side, numbers) in SIDES.into_iter().zip(before) {
                    subject.put(side, &name, numbers);
                }
            }
        }
    }
}

#[test]
fn a_whole_number_that_is_off_by_one_fails_its_row() {
    let mut num_tensors = 0;
    for mut subject in subjects() {
        for name in subject.0.promised.clone() {
            let original = subject.numbers(Side::Recorded, &name).clone();
            let Values::Integers(values) = &original.values else { continue };
            num_tensors += 1;
            for place in [0, values.len() / 3, values.len() - 1] {
                for change in [1, -1] {
                    let mut changed = values.clone();
                    changed[place] += change;
                    subject.put(Side::Recorded, &name, Numbers::integers(&original.shape, changed));
                    assert_eq!(failing(&subject.0.compare()), [name.as_str()], "{} [{place}]", subject.0.name);
                }
            }
            subject.put(Side::Recorded, &name, original);
        }
    }
    assert_eq!(num_tensors, 4 * 5, "experts of four layers and a count, in four files");
}

#[test]
fn a_promised_tensor_that_is_missing_unreadable_or_not_computed_fails_its_row() {
    for subject in subjects() {
        for name in &subject.0.promised {
            let mut group = subject.0.clone();
            let recorded = group.recorded.insert(name.clone(), Err("is cut short".to_string()));
            assert_eq!(failing(&group.compare()), [name.as_str()], "unreadable in {}", group.name);
            group.recorded.remove(name);
            assert_eq!(failing(&group.compare()), [name.as_str()], "missing in {}", group.name);
            group.recorded.insert(name.clone(), recorded.expect("the fixture is whole"));
            group.computed.remove(name);
            assert_eq!(failing(&group.compare()), [name.as_str()], "not computed in {}", group.name);
        }
    }
}

#[test]
fn two_exchanged_tensors_fail_both_rows() {
    let mut subjects: Vec<Subject> = subjects().collect();
    let tensors: Vec<(usize, String)> = subjects
        .iter()
        .enumerate()
        .flat_map(|(index, subject)| subject.0.promised.iter().map(move |name| (index, name.clone())))
        .collect();
    let mut unnoticed = Vec::new();
    for (first, (a, name_a)) in tensors.iter().enumerate() {
        for (b, name_b) in &tensors[first + 1..] {
            let of_a = subjects[*a].numbers(Side::Recorded, name_a).clone();
            let of_b = subjects[*b].numbers(Side::Recorded, name_b);
            if of_a.shape != of_b.shape || of_a == *of_b {
                continue;
            }
            let of_b = subjects[*b].put(Side::Recorded, name_b, of_a);
            let of_a = subjects[*a].put(Side::Recorded, name_a, of_b);
            let are_noticed = [subjects[*a].fails(name_a), subjects[*b].fails(name_b)];
            let of_b = subjects[*a].put(Side::Recorded, name_a, of_a);
            subjects[*b].put(Side::Recorded, name_b, of_b);
            if are_noticed != [true; 2] {
                unnoticed.push(format!("{}.{name_a} and {}.{name_b}", subjects[*a].0.name, subjects[*b].0.name));
            }
        }
    }
    // One loss recorded twice, whole and in two parts: the two differ by the rounding of their last bit alone.
    assert_eq!(unnoticed, ["adapter_attn.loss and adapter_attn.accum_loss"]);
}

fn set_float(numbers: &mut Numbers, place: usize, value: f32) {
    match &mut numbers.values {
        Values::Floats(values) => values[place] = value,
        Values::Integers(_) => panic!("expected fractions"),
    }
}
