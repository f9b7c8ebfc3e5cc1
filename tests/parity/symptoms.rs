//! The fixture README's table of symptoms: each mistake is made on purpose by the reference, shows the symptoms of its
//! row, and is caught by the comparison that checks this program.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use scout_tests::fixtures;
use scout_train::verify::{Group, Numbered, Numbers, Values};

use crate::recorded::{failing, group, tiny_scout};
use crate::reference::lora::{Factors, norm};
use crate::reference::{Adapter, Batch, Mistake, Reference};

/// The base model with its probe batch.
struct Subject {
    base: Reference,
    batch: Batch,
}

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| Subject {
    base: Reference::read(&tiny_scout()),
    batch: Batch::read(&tiny_scout().join("expected.safetensors")),
});

impl Subject {
    fn adapter(&self, name: &str) -> Adapter {
        let folder = tiny_scout().join(format!("adapter_{name}"));
        Adapter::new(&scout_train::load::adapter(&folder, &self.base.config).expect("the adapter is read"))
    }
}

/// A recorded group with numbers of the reference in the place of those that this program computed.
fn with_computed(name: &str, numbers: Numbered) -> Group {
    let mut group = group(name).clone();
    group.computed.extend(numbers);
    group
}

fn value(group: &Group, name: &str) -> f64 {
    f64::from(floats(&group.computed[name])[0])
}

fn floats(numbers: &Numbers) -> &[f32] {
    match &numbers.values {
        Values::Floats(values) => values,
        Values::Integers(_) => panic!("expected fractions"),
    }
}

fn largest_difference(a: &Numbers, b: &Numbers) -> f64 {
    let pairs = floats(a).iter().zip(floats(b));
    pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

/// Whether `value` reads as `text` when it is written with as many decimals.
fn reads_as(value: f64, text: &str) -> bool {
    let num_decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    format!("{value:.num_decimals$}") == text
}

/// A row of the README's table.
struct Symptom {
    mistake: Mistake,
    name: String,
    base_loss: String,
    logit_error: String,
    first_wrong_layer: String,
    adapter_loss: String,
}

/// The table as it is committed, so that no row of it can be forgotten here.
fn table() -> Vec<Symptom> {
    let text = std::fs::read_to_string(fixtures().join("README.md")).unwrap();
    let (_, table) = text.split_once("| mistake |").expect("the README has a table of symptoms");
    let by_name: BTreeMap<_, _> = Mistake::ALL.into_iter().map(|(mistake, name)| (name, mistake)).collect();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| {
        let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect();
        let [name, base_loss, logit_error, first_wrong_layer, adapter_loss] =
            cells.try_into().expect("a row has five cells");
        let mistake = *by_name.get(name.as_str()).unwrap_or_else(|| panic!("the reference cannot make: {name}"));
        Symptom { mistake, name, base_loss, logit_error, first_wrong_layer, adapter_loss }
    })
    .collect()
}

/// Entries of the table that are off by one in their last digit (6.548 became 6.55 and then 6.6), with the digits that
/// both this reference and the public implementation compute when they make the mistake.
const MISROUNDED: [(Mistake, &str, &str); 3] = [
    (Mistake::QkToUnitLength, "6.6", "6.5"),
    (Mistake::PlainCausalOnRopeLayers, "6.8893", "6.8894"),
    (Mistake::Softmax, "6.8929", "6.8928"),
];

/// Mistakes that leave the numbers of a single forward pass alone.
const OUTSIDE_THE_FORWARD_PASS: [Mistake; 2] = [Mistake::NoRouterGradient, Mistake::RowMeansAveraged];

#[test]
fn the_table_has_one_row_for_each_mistake() {
    let mut rows: Vec<String> = table().into_iter().map(|row| row.name).collect();
    let mut names: Vec<String> = Mistake::ALL.iter().map(|(_, name)| name.to_string()).collect();
    rows.sort();
    names.sort();
    assert_eq!(rows, names);
}

#[test]
fn a_reference_without_mistakes_computes_every_recorded_number() {
    let Subject { base, batch } = &*SUBJECT;
    let expected = with_computed("expected", base.expected(batch, Mistake::None));
    assert_eq!(expected.computed.len(), group("expected").computed.len(), "the reference computes all of it");
    assert_eq!(failing(&expected.compare()), Vec::<&str>::new());
    assert!(reads_as(value(&expected, "loss"), "6.913432"), "{}", value(&expected, "loss"));
    for name in ["attn", "experts", "all"] {
        let adapter = SUBJECT.adapter(name);
        let merged = adapter.merged_into(base);
        let mut numbers = merged.adapted_outputs(batch, Mistake::None);
        numbers.extend(merged.adapted_gradients(&adapter, batch, Mistake::None).1);
        let recorded = group(&format!("adapter_{name}"));
        let forgotten = recorded.promised.iter().find(|name| !numbers.contains_key(*name));
        assert_eq!(forgotten, None, "the reference computes all of it");
        let group = with_computed(&recorded.name, numbers);
        assert_eq!(failing(&group.compare()), Vec::<&str>::new(), "adapter_{name}");
        if name == "all" {
            assert!(reads_as(value(&group, "loss"), "6.824350"), "{}", value(&group, "loss"));
            assert!(reads_as(value(&group, "grad_norm"), "2.9581"), "{}", value(&group, "grad_norm"));
        }
    }
}

#[test]
fn each_mistake_of_the_forward_pass_shows_its_symptoms_and_is_caught() {
    let Subject { base, batch } = &*SUBJECT;
    let merged = SUBJECT.adapter("all").merged_into(base);
    for row in table().iter().filter(|row| !OUTSIDE_THE_FORWARD_PASS.contains(&row.mistake)) {
        let expected = with_computed("expected", base.expected(batch, row.mistake));
        let adapted = with_computed("adapter_all", merged.adapted_outputs(batch, row.mistake));

        let right = group("expected").recorded["logits"].as_ref().expect("the fixture is whole");
        let symptoms = [
            (value(&expected, "loss"), &row.base_loss),
            (largest_difference(right, &expected.computed["logits"]), &row.logit_error),
            (value(&adapted, "loss"), &row.adapter_loss),
        ];
        for (found, written) in symptoms {
            let misrounded = MISROUNDED
                .iter()
                .find(|(mistake, as_written, _)| (*mistake, as_written) == (row.mistake, &written.as_str()));
            let digits = misrounded.map_or(written.as_str(), |(.., digits)| digits);
            assert!(reads_as(found, digits), "{}: {found}, the table says {written}", row.name);
        }

        for group in [&expected, &adapted] {
            let rows = group.compare();
            let failing = failing(&rows);
            let is_wrong = |layer_index: &usize| failing.contains(&format!("layer.{layer_index}.out").as_str());
            let first_wrong = (0..base.layers.len()).find(is_wrong).map(|layer| layer.to_string());
            assert_eq!(first_wrong.as_ref(), Some(&row.first_wrong_layer), "{}: {failing:?}", row.name);
            assert!(failing.contains(&"logits"), "{}: {failing:?}", row.name);
        }
    }
}

#[test]
fn a_forgotten_gradient_through_the_router_score_is_caught() {
    let Subject { base, batch } = &*SUBJECT;
    let row = table().into_iter().find(|row| row.mistake == Mistake::NoRouterGradient).expect("stands in the table");
    assert_eq!([row.base_loss.as_str(), &row.logit_error, &row.first_wrong_layer], ["exact", "0", "none"]);
    let adapter = SUBJECT.adapter("all");
    let merged = adapter.merged_into(base);
    let (gradients, numbers) = merged.adapted_gradients(&adapter, batch, row.mistake);
    let norm = format!("{:.4}", norm(&gradients));
    let group = with_computed("adapter_all", numbers);
    let rows = group.compare();
    let worst = rows.iter().filter(|row| row.quantity.starts_with("grad.")).map(|row| row.error).fold(0.0, f64::max);
    let worst = format!("{:.0}", worst * 10.0);
    let found = format!("exact; gradient norm {norm}, tensors off by up to {worst}0 %");
    assert_eq!(found, row.adapter_loss);

    let failing = failing(&rows);
    assert!(failing.contains(&"grad_norm"), "{failing:?}");
    assert!(failing.iter().all(|quantity| quantity.starts_with("grad")), "the forward pass is exact: {failing:?}");
}

#[test]
fn the_gradient_of_the_reference_is_the_slope_of_its_loss() {
    let Subject { base, batch } = &*SUBJECT;
    let adapter = SUBJECT.adapter("all");
    let slope_along = |direction: &Factors| {
        let step = 1e-4 / norm(direction);
        let [ahead, behind] = [step, -step].map(|step| adapter.moved(direction, step).merged_into(base).loss(batch));
        (ahead - behind) / 2e-4
    };
    for (mistake, is_slope) in [(Mistake::None, true), (Mistake::NoRouterGradient, false)] {
        let (gradients, _) = adapter.merged_into(base).adapted_gradients(&adapter, batch, mistake);
        let error = (slope_along(&gradients) / norm(&gradients) - 1.0).abs();
        assert_eq!(error < 1e-5, is_slope, "{mistake:?}: off by {error:e}");
    }
}

#[test]
fn averaging_the_means_of_rows_is_caught() {
    let Subject { base, batch } = &*SUBJECT;
    let row = table().into_iter().find(|row| row.mistake == Mistake::RowMeansAveraged).expect("stands in the table");
    assert_eq!([&row.base_loss, &row.logit_error, &row.first_wrong_layer], ["–"; 3]);
    let merged = SUBJECT.adapter("all").merged_into(base);
    let group = with_computed("adapter_all", merged.adapted_outputs(batch, row.mistake));
    assert!(reads_as(value(&group, "accum_loss"), &row.adapter_loss), "{}", value(&group, "accum_loss"));
    assert_eq!(failing(&group.compare()), ["accum_loss"]);
}
