//! Folders recorded in bf16 with natural routing: a small one is made of the committed f32 fixture, with errors as large as
//! bf16 makes them, and has to pass; errors of another size, or numbers that are gone, have to fail their own rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use scout_core::ExitCode;
use scout_train::verify::{Holding, Row, Status, verify, verify_on_threads};
use tempfile::TempDir;

use crate::recorded::{failing, tiny_scout};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const EXPECTED: &str = "expected.safetensors";
const ADAPTER: &str = "adapter_attn.expected.safetensors";
const F32_EXPECTED: &str = "expected.f32.safetensors";
const F32_ADAPTER: &str = "adapter_attn.expected.f32.safetensors";
const ROUTES: &str = "layer.2.router_expert";
const NUM_TOKENS: usize = 80 + 59;

/// The folder as a recorder in bf16 would have left it, before anything is off.
fn folder() -> TempDir {
    let (from, to) = (tiny_scout(), tempfile::tempdir().unwrap());
    let copy = |name: &str| fs::write(to.path().join(name), fs::read(from.join(name)).unwrap()).unwrap();
    fs::create_dir(to.path().join("adapter_attn")).unwrap();
    for entry in fs::read_dir(&from).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("model") || name.starts_with("config") {
            copy(&name);
        }
    }
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        copy(&format!("adapter_attn/{name}"));
    }
    let is_promised = |name: &str| {
        let always = ["loss", "num_target_tokens", "grad_norm"].contains(&name);
        always || name.starts_with("grad.") || name.ends_with("router_expert")
    };
    for (file, of_f32) in [(EXPECTED, F32_EXPECTED), (ADAPTER, F32_ADAPTER)] {
        let mut tensors = read(&from.join(file));
        let is_input = |name: &str| ["input_ids", "attention_mask", "labels"].contains(&name);
        tensors.retain(|name, _| is_promised(name) || is_input(name));
        write(&to.path().join(file), &tensors);
        tensors.retain(|name, _| is_promised(name));
        write(&to.path().join(of_f32), &tensors);
    }
    let manifest =
        r#"{"args": {"steps": 0, "batch": 2, "seq": 80, "trace": "losses", "dtype": "bfloat16", "f32": true}}"#;
    fs::write(to.path().join("manifest.json"), manifest).unwrap();
    to
}

fn read(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = read.tensors().into_iter();
    tensors.map(|(name, x)| (name, (x.dtype(), x.shape().to_vec(), x.data().to_vec()))).collect()
}

fn write(file: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn change(folder: &TempDir, file: &str, change: impl FnOnce(&mut Tensors)) {
    let path = folder.path().join(file);
    let mut tensors = read(&path);
    change(&mut tensors);
    write(&path, &tensors);
}

fn change_floats(tensors: &mut Tensors, name: &str, change: impl Fn(usize, f32) -> f32) {
    let words = tensors.get_mut(name).expect("the tensor is there").2.as_chunks_mut::<4>().0;
    for (index, word) in words.iter_mut().enumerate() {
        *word = change(index, f32::from_le_bytes(*word)).to_le_bytes();
    }
}

/// Sends the first tokens elsewhere.
fn reroute(tensors: &mut Tensors, num_tokens: usize) {
    let words = tensors.get_mut(ROUTES).expect("the tensor is there").2.as_chunks_mut::<8>().0;
    for word in &mut words[..num_tokens] {
        *word = ((i64::from_le_bytes(*word) + 1) % 4).to_le_bytes();
    }
}

/// A gradient that points elsewhere by about `angle`, and is as long.
fn turn(tensors: &mut Tensors, name: &str, angle: f32) {
    let values: Vec<f32> = tensors[name].2.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let size = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
    let sign = |index: usize| if index.is_multiple_of(2) { size } else { -size };
    change_floats(tensors, name, |index, value| value * angle.cos() + angle.sin() * sign(index));
}

fn a_gradient() -> String {
    read(&tiny_scout().join(ADAPTER))
        .into_keys()
        .find(|name| name.contains("layers.1.self_attn.k_proj.lora_B"))
        .unwrap()
}

fn rows(folder: &TempDir) -> Vec<Row> {
    verify(folder.path()).expect("the folder can be compared").all_rows()
}

fn failing_rows(folder: &TempDir) -> Vec<(String, String)> {
    let failed = rows(folder).into_iter().filter(|row| row.status == Status::Fail);
    failed.map(|row| (row.group, row.quantity)).collect()
}

fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(group, quantity)| (group.to_string(), quantity.to_string())).collect()
}

#[test]
fn errors_as_bf16_makes_them_pass_and_a_row_says_whose_rounding_they_are() {
    let (folder, gradient) = (folder(), a_gradient());
    change(&folder, EXPECTED, |tensors| change_floats(tensors, "loss", |_, loss| loss - 1.5e-3));
    change(&folder, ADAPTER, |tensors| {
        change_floats(tensors, "loss", |_, loss| loss + 1.5e-3);
        change_floats(tensors, "grad_norm", |_, norm| 1.01 * norm);
        turn(tensors, &gradient, 0.1);
        reroute(tensors, NUM_TOKENS / 20);
    });
    let rows = rows(&folder);
    assert_eq!(failing(&rows), Vec::<&str>::new());
    let of = |group: &str, quantity: &str| {
        rows.iter().find(|row| row.group == group && row.quantity == quantity).unwrap_or_else(|| panic!("{quantity}"))
    };
    assert!((of("adapter_attn", &gradient).error - 5e-3).abs() < 1e-3, "{:?}", of("adapter_attn", &gradient));
    assert!((of("adapter_attn", ROUTES).error - 6.0 / NUM_TOKENS as f64).abs() < 1e-9);
    assert!(of("adapter_attn_f32", &gradient).error < 1e-5);
    let said = &of("adapter_attn", "distance from f32").detail;
    for part in ["1.5e-3 recorded", "5.0e-3 recorded", "4.3e-2 recorded", "elsewhere 0.0e0 computed"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let on_two = verify_on_threads(folder.path(), 2, Holding::default()).unwrap().all_rows();
    assert_eq!(failing(&on_two), Vec::<&str>::new());
    assert_eq!(on_two.len(), rows.len());
}

#[test]
fn errors_of_another_size_fail_their_own_rows() {
    let (folder, gradient) = (folder(), a_gradient());
    change(&folder, EXPECTED, |tensors| change_floats(tensors, "loss", |_, loss| loss - 2.5e-3));
    change(&folder, F32_EXPECTED, |tensors| change_floats(tensors, "loss", |_, loss| loss - 5e-5));
    change(&folder, ADAPTER, |tensors| {
        change_floats(tensors, "grad_norm", |_, norm| 1.03 * norm);
        turn(tensors, &gradient, 0.2);
        reroute(tensors, NUM_TOKENS / 20 + 1);
    });
    change(&folder, F32_ADAPTER, |tensors| {
        turn(tensors, &gradient, 1e-2);
        reroute(tensors, 1);
    });
    let expected = [
        ("expected", "loss"),
        ("expected_f32", "loss"),
        ("adapter_attn", ROUTES),
        ("adapter_attn", &gradient),
        ("adapter_attn", "grad_norm"),
        ("adapter_attn_f32", ROUTES),
        ("adapter_attn_f32", &gradient),
    ];
    assert_eq!(failing_rows(&folder), named(&expected));
}

#[test]
fn what_the_manifest_promises_and_a_file_lacks_fails() {
    let (folder, gradient) = (folder(), a_gradient());
    for (file, name) in [
        (EXPECTED, "layer.0.router_expert"),
        (F32_EXPECTED, "num_target_tokens"),
        (ADAPTER, gradient.as_str()),
        (F32_ADAPTER, "grad_norm"),
    ] {
        change(&folder, file, |tensors| drop(tensors.remove(name).expect("the tensor is there")));
    }
    let expected = [
        ("expected", "layer.0.router_expert"),
        ("expected_f32", "num_target_tokens"),
        ("adapter_attn", gradient.as_str()),
        ("adapter_attn_f32", "grad_norm"),
    ];
    assert_eq!(failing_rows(&folder), named(&expected));

    fs::remove_file(folder.path().join(F32_ADAPTER)).unwrap();
    let without_file = failing_rows(&folder);
    let lost = without_file.iter().filter(|(group, _)| group == "adapter_attn_f32").count();
    assert_eq!(lost, read(&folder.path().join(ADAPTER)).len() + 1, "each tensor, and the one that was lost before");

    fs::remove_dir_all(folder.path().join("adapter_attn")).unwrap();
    let without_adapter = failing_rows(&folder);
    assert!(without_adapter.contains(&("adapter_attn".to_string(), "all".to_string())), "{without_adapter:?}");
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let folder = folder();
    let path = folder.path().join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to) in [("bfloat16", "float32"), ("losses", "full"), ("\"steps\"", "\"nf4\": true, \"steps\"")] {
        fs::write(&path, text.replace(from, to)).unwrap();
        let error = verify(folder.path()).expect_err("there is no such folder");
        assert_eq!(error.exit_code(), ExitCode::BadData, "{to}: {error}");
    }
}
