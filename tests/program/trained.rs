//! The whole program against the recorded ten steps of the public implementation: same data, same start, same adapter
//! in the end.

use std::path::Path;

use scout_tests::fixtures;
use serde_json::Value;

use crate::folder::{Folder, tensors};

/// Tolerances of the fixtures' own README.
const TRAINED: f32 = 2e-5;
const LOSS: f64 = 1e-4;
const NORM: f64 = 1e-4;

#[test]
fn ten_steps_on_attention_and_the_shared_expert_end_in_the_recorded_adapter() {
    check("attn");
}

#[test]
fn ten_steps_on_the_routed_experts_end_in_the_recorded_adapter() {
    check("experts");
}

#[test]
fn ten_steps_on_everything_end_in_the_recorded_adapter() {
    check("all");
}

fn check(adapter: &str) {
    let fixture = fixtures().join("tiny-scout");
    let folder = Folder::empty();
    write_run(&folder, &fixture, adapter);
    folder.succeed(&["train", "run.yaml"]);

    let recorded: Value = serde_json::from_slice(&std::fs::read(fixture.join("training.json")).unwrap()).unwrap();
    let recorded = &recorded["runs"][adapter];
    let log = folder.log("run");
    assert_eq!(log.len(), 10);
    for (step, line) in log.iter().enumerate() {
        let near = |key: &str, expected: &Value, tolerance: f64| {
            let (found, expected) = (line[key].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() <= tolerance, "{adapter} step {step}: {key} {found}, expected {expected}");
        };
        near("loss", &recorded["loss"][step], LOSS);
        near("lr", &recorded["lr"][step], 1e-9);
        near("grad_norm", &recorded["grad_norm"][step], NORM * recorded["grad_norm"][step].as_f64().unwrap());
        for key in ["loss", "grad_norm"] {
            let bits = (line[key].as_f64().unwrap() as f32).to_bits();
            assert_eq!(line[format!("{key}_bits")], format!("{bits:08x}"), "{adapter} step {step}: {key}");
        }
    }
    same_folder(&folder, &fixture.join(format!("adapter_{adapter}_trained")));
}

/// The run that made the recorded adapter, told in the keys of a user.
fn write_run(folder: &Folder, fixture: &Path, adapter: &str) {
    let rows = std::fs::read_to_string(fixture.join("train_data.jsonl")).unwrap();
    // The first two rows are the probe batch, which is not trained on.
    let rows: Vec<&str> = rows.lines().filter(|row| !row.starts_with("{\"step\": -1,")).collect();
    assert_eq!(rows.len(), 20);
    folder.write("rows.jsonl", rows.join("\n"));
    let fixture = fixture.display();
    let text = format!(
        "model_name_or_path: {fixture}\nadapter_name_or_path: {fixture}/adapter_{adapter}\n\
         stage: sft\ndo_train: true\ntemplate: llama4\ncutoff_len: 4096\n\
         dataset: rows.jsonl\ndisable_shuffling: true\nper_device_train_batch_size: 2\nmax_steps: 10\n\
         learning_rate: 1e-3\nweight_decay: 0.01\nwarmup_steps: 2\nlr_scheduler_type: cosine\nmax_grad_norm: 1.0\n\
         logging_steps: 1\noutput_dir: run\ndevice: cpu\n"
    );
    folder.write("run.yaml", text);
}

/// The adapter's own files: names, keys in their order, tensors with shapes and values.
fn same_folder(folder: &Folder, expected: &Path) {
    for entry in std::fs::read_dir(expected).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(folder.path("run").join(&name).is_file(), "{} is not there", name.display());
    }
    let text = std::fs::read_to_string(expected.join("adapter_config.json")).unwrap();
    let expected_config: Value = serde_json::from_str(&text).unwrap();
    let config = folder.json("run/adapter_config.json");
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&config), keys(&expected_config));
    for (key, value) in expected_config.as_object().unwrap() {
        if key != "base_model_name_or_path" {
            assert_eq!(config[key], *value, "{key}");
        }
    }
    let base = fixtures().join("tiny-scout");
    assert_eq!(config["base_model_name_or_path"], base.display().to_string());

    let expected = tensors(&expected.join("adapter_model.safetensors"));
    let found = tensors(&folder.path("run/adapter_model.safetensors"));
    let shapes = |tensors: &std::collections::BTreeMap<String, (Vec<usize>, Vec<f32>)>| {
        tensors.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect::<Vec<_>>()
    };
    assert_eq!(shapes(&found), shapes(&expected));
    let mut worst = (0.0, "");
    for (name, (_, expected)) in &expected {
        for (value, expected) in found[name].1.iter().zip(expected) {
            let error = (value - expected).abs();
            assert!(error.is_finite(), "{name} holds {value}");
            if error > worst.0 {
                worst = (error, name);
            }
        }
    }
    assert!(worst.0 <= TRAINED, "{worst:?}");
}
