//! The two layouts of stacked experts, held against the formulas of the releases that write them.

use scout_core::{LoraModule, Projection};
use serde_json::{Value, json};

use super::{Draft, Shapes, fixture, modules, read_tiny, tiny_scout, wrappers, write_again};
use crate::adapter::{AdapterLayout, read_adapter};

/// A model in which the shapes of expert adapters are the same in both layouts.
fn square(_: Projection) -> (usize, usize, Option<usize>) {
    (6, 6, Some(3))
}

#[test]
fn an_adapter_of_an_older_peft_is_the_same_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = Draft::of(&fixture("tiny-scout/adapter_all"));
    wrappers(4).for_each(|wrapper| draft.make_old(&wrapper, 4));
    // Shapes decide before the release does.
    for version in [json!("0.18.1"), json!("0.21.2"), Value::Null] {
        draft.config["peft_version"] = version;
        draft.save(folder.path());
        let old = read_tiny(folder.path()).unwrap();
        assert!(old.factors == read_tiny(&fixture("tiny-scout/adapter_all")).unwrap().factors);
    }
}

/// ΔW of one expert without the scale, by the formulas of the two releases on the tensors of the file.
fn delta_of_file(draft: &Draft, wrapper: &str, module: &LoraModule, expert: usize, is_old: bool) -> Vec<f32> {
    let a = &draft.tensors[&format!("{wrapper}.lora_A.weight")].1;
    let b = &draft.tensors[&format!("{wrapper}.lora_B.weight")].1;
    let (rank, num_experts) = (module.rank, module.num_experts.unwrap());
    let rows = rank * num_experts;
    let mut delta = vec![0.0; module.input * module.output];
    for (index, value) in delta.iter_mut().enumerate() {
        let (i, o) = (index / module.output, index % module.output);
        for k in 0..rank {
            let (row, column) = (expert * rank + k, k * num_experts + expert);
            *value += match is_old {
                true => b[o * rows + column] * a[row * module.input + i],
                false => b[i * rows + column] * a[row * module.output + o],
            };
        }
    }
    delta
}

fn delta_of_memory(factors: &(Vec<f32>, Vec<f32>), module: &LoraModule, expert: usize) -> Vec<f32> {
    let (a, b) = factors;
    let (rank, input, output) = (module.rank, module.input, module.output);
    let mut delta = vec![0.0; input * output];
    for (index, value) in delta.iter_mut().enumerate() {
        let (i, o) = (index / output, index % output);
        for k in 0..rank {
            *value += b[(expert * input + i) * rank + k] * a[(expert * rank + k) * output + o];
        }
    }
    delta
}

/// Random factors in the file's shapes, filled by the layout of either release.
fn random_experts(shapes: Shapes, is_old: bool, version: Value) -> Draft {
    let mut draft = Draft::of(&fixture("tiny-scout/adapter_experts"));
    draft.config["peft_version"] = version;
    draft.config["r"] = json!(2);
    draft.tensors.clear();
    let mut state = 7u32;
    let mut fill = |len: usize| {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect::<Vec<f32>>()
    };
    for (wrapper, projection) in
        wrappers(2).zip([Projection::ExpertsGateUp, Projection::ExpertsDown].into_iter().cycle())
    {
        let (input, output, num_experts) = shapes(projection);
        let rows = 2 * num_experts.unwrap();
        let (of_a, of_b) = if is_old { (input, output) } else { (output, input) };
        draft.tensors.insert(format!("{wrapper}.lora_A.weight"), (vec![rows, of_a], fill(rows * of_a)));
        draft.tensors.insert(format!("{wrapper}.lora_B.weight"), (vec![of_b, rows], fill(rows * of_b)));
    }
    draft
}

#[test]
fn both_layouts_of_experts_mean_the_matrices_of_their_formulas() {
    let check = |shapes: Shapes, is_old: bool, version: Value| {
        let folder = tempfile::tempdir().unwrap();
        let draft = random_experts(shapes, is_old, version);
        draft.save(folder.path());
        let adapter = read_adapter(folder.path(), &|settings, found| modules(2, shapes, settings.rank, found)).unwrap();
        assert_eq!(adapter.modules.len(), 4);
        for ((module, factors), wrapper) in adapter.modules.iter().zip(&adapter.factors).zip(wrappers(2)) {
            for expert in 0..module.num_experts.unwrap() {
                let expected = delta_of_file(&draft, &wrapper, module, expert, is_old);
                assert!(delta_of_memory(factors, module, expert) == expected, "{module:?} {expert}");
            }
        }
        // Writing gives the current layout, whatever was read.
        let out = tempfile::tempdir().unwrap();
        write_again(&adapter, AdapterLayout::Text, out.path());
        let (written, module) = (Draft::of(out.path()), &adapter.modules[0]);
        let wrapper = wrappers(1).next().unwrap();
        let delta = delta_of_file(&written, &wrapper, module, 1, false);
        assert!(delta == delta_of_file(&draft, &wrapper, module, 1, is_old));
    };
    check(tiny_scout, false, Value::Null);
    check(tiny_scout, true, Value::Null);
    // Square matrices: only the release can tell.
    check(square, false, json!("0.19.1"));
    check(square, true, json!("0.19.0"));
}

#[test]
fn a_square_adapter_of_an_unknown_release_is_refused() {
    let check = |version: Value, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        random_experts(square, false, version).save(folder.path());
        let read = read_adapter(folder.path(), &|settings, found| modules(2, square, settings.rank, found));
        let error = read.unwrap_err();
        assert!(error.to_string().contains("`peft_version` of"), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code().code(), 65);
    };
    check(Value::Null, "is absent, and the shapes alone do not tell");
    check(json!("0.19.1.dev0"), "is `0.19.1.dev0`, and");
    check(json!("0.16.0"), "is `0.16.0`, and");
}
