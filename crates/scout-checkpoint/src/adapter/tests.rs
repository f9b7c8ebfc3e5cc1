//! Adapters: the fixtures there and back, the two layouts of experts by their formulas, and hand-made bad ones.

mod layouts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use scout_core::{LoraModule, Projection};
use serde_json::{Value, json};

use super::config::CONFIG_FILE;
use super::layout::WEIGHTS_FILE;
use super::{AdapterLayout, AdapterSettings, LoadedAdapter, read_adapter, write_adapter};
use crate::error::{CheckpointError, Result};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Input, output and number of experts of each projection.
type Shapes = fn(Projection) -> (usize, usize, Option<usize>);

fn tiny_scout(projection: Projection) -> (usize, usize, Option<usize>) {
    match projection {
        Projection::Q | Projection::O => (64, 64, None),
        Projection::K | Projection::V => (64, 32, None),
        Projection::SharedGate | Projection::SharedUp => (64, 80, None),
        Projection::SharedDown => (80, 64, None),
        Projection::ExpertsGateUp => (64, 160, Some(4)),
        Projection::ExpertsDown => (80, 64, Some(4)),
    }
}

fn modules(num_layers: usize, shapes: Shapes, rank: usize, projections: &BTreeSet<Projection>) -> Vec<LoraModule> {
    let module = |layer_index, projection| {
        let (input, output, num_experts) = shapes(projection);
        LoraModule { layer_index, projection, input, output, num_experts, rank }
    };
    (0..num_layers)
        .flat_map(|layer_index| projections.iter().map(move |&projection| module(layer_index, projection)))
        .collect()
}

fn read_tiny(folder: &Path) -> Result<LoadedAdapter> {
    read_adapter(folder, &|settings, projections| modules(4, tiny_scout, settings.rank, projections))
}

fn write_again(adapter: &LoadedAdapter, layout: AdapterLayout, folder: &Path) {
    let factors = |index: usize| (adapter.factors[index].0.as_slice(), adapter.factors[index].1.as_slice());
    write_adapter(folder, layout, &adapter.settings, &adapter.modules, &factors).unwrap();
}

#[test]
fn an_adapter_read_and_written_again_equals_peft_byte_for_byte() {
    let check = |name: &str, layout: AdapterLayout, num_projections: usize| {
        let adapter = read_tiny(&fixture(name)).unwrap();
        assert_eq!(adapter.layout, layout);
        assert_eq!(adapter.projections.len(), num_projections);
        assert_eq!(adapter.settings.base_model_name.as_deref(), Some("tiny-scout"));
        assert_eq!((adapter.settings.rank, adapter.settings.alpha), (4, 8.0));
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("run/adapter");
        write_again(&adapter, layout, &out);
        for file in [WEIGHTS_FILE, CONFIG_FILE] {
            assert!(fs::read(out.join(file)).unwrap() == fs::read(fixture(name).join(file)).unwrap(), "{name}/{file}");
        }
        assert!(fs::read_to_string(out.join("README.md")).unwrap().starts_with("---\nbase_model: \"tiny-scout\"\n"));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
    };
    check("tiny-scout/adapter_attn", AdapterLayout::Text, 7);
    check("tiny-scout/adapter_attn_trained", AdapterLayout::Text, 7);
    check("tiny-scout/adapter_experts", AdapterLayout::Text, 2);
    check("tiny-scout/adapter_experts_trained", AdapterLayout::Text, 2);
    check("tiny-scout/adapter_all", AdapterLayout::Text, 9);
    check("tiny-scout/adapter_all_trained", AdapterLayout::Text, 9);
    check("tiny-scout-vision/adapter_all", AdapterLayout::Conditional, 9);
}

#[test]
fn an_adapter_of_one_class_can_be_written_for_the_other() {
    let text = read_tiny(&fixture("tiny-scout/adapter_all")).unwrap();
    let out = tempfile::tempdir().unwrap();
    write_again(&text, AdapterLayout::Conditional, out.path());
    let full = read_tiny(out.path()).unwrap();
    assert_eq!(full.layout, AdapterLayout::Conditional);
    assert!(full.factors == text.factors);
    let names = |folder: &Path| Draft::of(folder).tensors.into_keys().collect::<Vec<_>>();
    assert_eq!(names(out.path()), names(&fixture("tiny-scout-vision/adapter_all")));
    let config = |folder: &Path| fs::read(folder.join(CONFIG_FILE)).unwrap();
    assert!(config(out.path()) == config(&fixture("tiny-scout-vision/adapter_all")));
}

#[test]
fn a_lone_expert_matrix_sits_outside_and_two_nest() {
    let check = |projections: &[Projection], linear: Value, expected: &[&str]| {
        let projections: BTreeSet<_> = projections.iter().copied().collect();
        let modules = modules(1, tiny_scout, 2, &projections);
        let zeros = vec![0.0; 4096];
        let factors = |index: usize| {
            let module: &LoraModule = &modules[index];
            (&zeros[..module.a_shape().num_elements()], &zeros[..module.b_shape().num_elements()])
        };
        let settings = AdapterSettings { rank: 2, alpha: 3.5, dropout: 0.0, use_rslora: true, base_model_name: None };
        let out = tempfile::tempdir().unwrap();
        write_adapter(out.path(), AdapterLayout::Conditional, &settings, &modules, &factors).unwrap();
        let draft = Draft::of(out.path());
        let start = "base_model.model.language_model.model.layers.0.";
        let found: Vec<_> = draft.tensors.keys().map(|name| name.strip_prefix(start).unwrap()).collect();
        assert_eq!(found, expected);
        assert_eq!(draft.config["target_modules"], linear);
        assert_eq!(draft.config["lora_alpha"], json!(3.5));
        assert_eq!(draft.config["base_model_name_or_path"], Value::Null);
        let read = read_adapter(out.path(), &|settings, found| {
            assert_eq!(*found, projections);
            assert!(settings.use_rslora);
            self::modules(1, tiny_scout, 2, found)
        });
        assert_eq!(read.unwrap().modules, modules);
    };
    let outer = ["feed_forward.experts.lora_A.weight", "feed_forward.experts.lora_B.weight"];
    check(&[Projection::ExpertsGateUp], json!([]), &outer);
    check(&[Projection::ExpertsDown], json!([]), &outer);
    check(
        &[Projection::ExpertsDown, Projection::ExpertsGateUp],
        json!([]),
        &[
            "feed_forward.experts.base_layer.lora_A.weight",
            "feed_forward.experts.base_layer.lora_B.weight",
            outer[0],
            outer[1],
        ],
    );
    check(
        &[Projection::ExpertsDown, Projection::V, Projection::Q],
        json!(r"language_model\..*\.(q_proj|v_proj)"),
        &[
            outer[0],
            outer[1],
            "self_attn.q_proj.lora_A.weight",
            "self_attn.q_proj.lora_B.weight",
            "self_attn.v_proj.lora_A.weight",
            "self_attn.v_proj.lora_B.weight",
        ],
    );
}

/// An adapter folder in pieces that can be bent: the settings, and the tensors as f32.
struct Draft {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Draft {
    fn of(folder: &Path) -> Draft {
        let config = serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap();
        let bytes = fs::read(folder.join(WEIGHTS_FILE)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let values = |view: &TensorView| {
            view.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect::<Vec<_>>()
        };
        let tensors =
            file.iter().map(|(name, view)| (name.to_string(), (view.shape().to_vec(), values(&view)))).collect();
        Draft { config, tensors }
    }

    fn save(&self, folder: &Path) {
        fs::write(folder.join(CONFIG_FILE), self.config.to_string()).unwrap();
        let bytes: Vec<Vec<u8>> = self
            .tensors
            .values()
            .map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let views = self
            .tensors
            .iter()
            .zip(&bytes)
            .map(|((name, (shape, _)), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        fs::write(folder.join(WEIGHTS_FILE), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn take(&mut self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.tensors.remove(name).unwrap()
    }

    /// Exchanges the layout of one adapted expert matrix by the rule of the two releases.
    fn make_old(&mut self, wrapper: &str, num_experts: usize) {
        let [name_a, name_b] = ["A", "B"].map(|factor| format!("{wrapper}.lora_{factor}.weight"));
        let ((shape_a, a), (shape_b, b)) = (self.take(&name_a), self.take(&name_b));
        let (rows, output, input) = (shape_a[0], shape_a[1], shape_b[0]);
        let rank = rows / num_experts;
        let (mut old_a, mut old_b) = (vec![0.0; rows * input], vec![0.0; output * rows]);
        for expert in 0..num_experts {
            for k in 0..rank {
                let (row, column) = (expert * rank + k, k * num_experts + expert);
                (0..input).for_each(|i| old_a[row * input + i] = b[i * rows + column]);
                (0..output).for_each(|o| old_b[o * rows + column] = a[row * output + o]);
            }
        }
        self.tensors.insert(name_a, (vec![rows, input], old_a));
        self.tensors.insert(name_b, (vec![output, rows], old_b));
    }
}

const EXPERTS: &str = "base_model.model.model.layers.0.feed_forward.experts";
const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

fn wrappers(num_layers: usize) -> impl Iterator<Item = String> {
    let of_layer = |layer: usize| {
        let outer = EXPERTS.replace("layers.0", &format!("layers.{layer}"));
        [format!("{outer}.base_layer"), outer]
    };
    (0..num_layers).flat_map(of_layer)
}

fn error_of(folder: &Path) -> CheckpointError {
    read_tiny(folder).map(|_| ()).expect_err("the adapter was read")
}

#[test]
fn an_adapter_that_would_not_take_effect_whole_is_refused() {
    let check = |expected: &str, bend: &dyn Fn(&mut Draft)| {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Draft::of(&fixture("tiny-scout/adapter_all"));
        bend(&mut draft);
        draft.save(folder.path());
        let error = error_of(folder.path());
        assert!(error.to_string().contains(expected), "found: {error}\n  expected: {expected}");
        assert_eq!(error.exit_code().code(), 65, "{error}");
    };
    let q_a = || Q_A.to_string();
    check("1 missing (`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`)", &|draft| {
        drop(draft.take(Q_A))
    });
    check("1 unexpected (`base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight`)", &|draft| {
        let tensor = draft.tensors[Q_A].clone();
        draft.tensors.insert(Q_A.replace("layers.0", "layers.9"), tensor);
    });
    check("1 unexpected (`base_model.model.vision_model.q_proj.lora_A.weight`)", &|draft| {
        draft.tensors.insert("base_model.model.vision_model.q_proj.lora_A.weight".into(), (vec![1], vec![0.0]));
    });
    check("lora_A.weight` is [64, 4], expected [4, 64])", &|draft| {
        let (_, values) = draft.take(Q_A);
        draft.tensors.insert(q_a(), (vec![64, 4], values));
    });
    check("holds NaN at index 5", &|draft| draft.tensors.get_mut(Q_A).unwrap().1[5] = f32::NAN);
    check("72 misshapen", &|draft| draft.config["r"] = json!(2));
    check("mixes the names of two classes", &|draft| {
        let tensor = draft.take(Q_A);
        draft.tensors.insert(Q_A.replace("model.layers", "language_model.model.layers"), tensor);
    });
    check("holds no adapter of a decoder layer: found `lora_A`", &|draft| {
        draft.tensors = [("lora_A".to_string(), (vec![1], vec![0.0]))].into();
    });
    check("holds no adapter of a decoder layer: found nothing", &|draft| draft.tensors.clear());
    check("mixes two layouts of experts", &|draft| draft.make_old(EXPERTS, 4));
    check("experts.lora_B.weight` is [64, 16], expected [80, 16] (from a peft before 0.19.1: [64, 16])", &|draft| {
        let name = format!("{EXPERTS}.lora_A.weight");
        let current = draft.tensors[&name].clone();
        draft.make_old(EXPERTS, 4);
        draft.tensors.insert(name, current);
    });
    // Settings and tensors that do not belong together.
    check("16 unexpected", &|draft| draft.config["target_parameters"] = Value::Null);
    check("8 unexpected", &|draft| {
        let names = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"];
        draft.config["target_modules"] = json!(names);
    });
    check("8 unexpected", &|draft| draft.config["target_parameters"] = json!(["experts.down_proj"]));
    check("holds no tensor that its settings target", &|draft| {
        draft.config["target_parameters"] = Value::Null;
        draft.config["target_modules"] = json!([]);
    });
}

#[test]
fn a_setting_that_changes_the_arithmetic_is_refused_by_name() {
    let check = |key: &str, value: Value, expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Draft::of(&fixture("tiny-scout/adapter_all"));
        draft.config[key] = value;
        draft.save(folder.path());
        let error = error_of(folder.path());
        let start = format!("`{key}` of `");
        assert!(error.to_string().starts_with(&start), "{error}");
        assert!(error.to_string().contains(expected), "found: {error}\n  expected: {expected}");
        assert_eq!(error.exit_code().code(), 65);
    };
    check("peft_type", json!("LOHA"), "is \"LOHA\", and only `LORA` adapters are supported");
    check("peft_type", Value::Null, "only `LORA`");
    check("use_dora", json!(true), "is true, and DoRA is not supported");
    check("lora_bias", json!(true), "biases in the adapter");
    check("bias", json!("lora_only"), "trained biases");
    check("fan_in_fan_out", json!(true), "no such layers");
    check("rank_pattern", json!({"q_proj": 8}), r#"is {"q_proj":8}, and one rank"#);
    check("alpha_pattern", json!({"q_proj": 8}), "one alpha");
    check("modules_to_save", json!(["lm_head"]), "trained in full");
    check("trainable_token_indices", json!([1]), "token embeddings");
    check("layers_to_transform", json!([0]), "some of the layers");
    check("layers_to_transform", json!(0), "some of the layers");
    check("layer_replication", json!([[0, 1]]), "replicated");
    check("exclude_modules", json!("vision"), "excluded");
    check("use_qalora", json!(true), "QA-LoRA");
    check("alora_invocation_tokens", json!([1]), "activated LoRA");
    check("init_lora_weights", json!("pissa_niter_4"), "changes the base weights");
    check("init_lora_weights", json!("loftq"), "changes the base weights");
    check("r", json!(0), "from 1 to 65536");
    check("r", json!(-4), "from 1 to 65536");
    check("r", json!(1e9), "from 1 to 65536");
    check("r", json!("4"), "from 1 to 65536");
    check("lora_alpha", json!("8"), "a number is expected");
    check("lora_alpha", Value::Null, "is null, and a number is expected");
    check("lora_dropout", json!(1.0), "from 0 to below 1");
    check("lora_dropout", json!(0.1), "is 0.1, and the adapters of routed experts cannot have dropout");
    check("use_rslora", json!("yes"), "true or false");
    check("target_modules", json!(["router"]), "`router` is no module");
    check("target_modules", json!(["experts.down_proj"]), "`experts.down_proj` is no module");
    check("target_modules", json!([""]), "`` is no module");
    check("target_modules", json!([1]), "names are expected");
    check("target_modules", json!(1), "a list of names or a pattern");
    check("target_parameters", json!(["q_proj.weight"]), "`q_proj.weight` is no parameter");
    check("target_parameters", json!("experts.down_proj"), "a list of names");
}

#[test]
fn other_spellings_of_the_same_targets_are_read() {
    let check = |key: &str, value: Value| {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Draft::of(&fixture("tiny-scout/adapter_all"));
        draft.config[key] = value;
        draft.config.as_object_mut().unwrap().remove("kasa_config");
        draft.config["a_key_of_tomorrow"] = json!({"x": 1});
        draft.save(folder.path());
        assert_eq!(read_tiny(folder.path()).unwrap().projections.len(), 9);
    };
    let leaves = ["q_proj", "self_attn.k_proj", "v_proj", "o_proj", "shared_expert.gate_proj", "up_proj", "down_proj"];
    check("target_modules", json!(leaves));
    check("target_modules", json!("^(?!.*vision).*(?:proj).*"));
    check("target_modules", Value::Null);
    check("target_parameters", json!(["gate_up_proj", "model.layers.0.feed_forward.experts.down_proj"]));
    check("init_lora_weights", json!("gaussian"));
    check("modules_to_save", json!([]));
    check("layers_pattern", json!(""));
    check("lora_alpha", json!(8.0));
}

#[test]
fn a_bad_adapter_folder_is_refused_with_its_code() {
    let check = |expected: &str, code: u8, build: &dyn Fn(&Path)| {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("adapter");
        fs::create_dir(&folder).unwrap();
        for file in [WEIGHTS_FILE, CONFIG_FILE] {
            fs::copy(fixture("tiny-scout/adapter_attn").join(file), folder.join(file)).unwrap();
        }
        build(&folder);
        let error = error_of(&folder);
        assert!(error.to_string().contains(expected), "found: {error}\n  expected: {expected}");
        assert_eq!(error.exit_code().code(), code, "{error}");
    };
    let remove = |folder: &Path, file: &str| fs::remove_file(folder.join(file)).unwrap();
    check("there is no adapter folder", 66, &|folder| fs::remove_dir_all(folder).unwrap());
    check("holds no adapter: `adapter_model.safetensors` is not there", 66, &|folder| {
        remove(folder, WEIGHTS_FILE);
        remove(folder, CONFIG_FILE);
    });
    check("it holds `adapter_config.json` and no `adapter_model.safetensors`", 65, &|folder| {
        remove(folder, WEIGHTS_FILE)
    });
    check("it holds `adapter_model.safetensors` and no `adapter_config.json`", 65, &|folder| {
        remove(folder, CONFIG_FILE)
    });
    check("holds its weights as `adapter_model.bin`", 65, &|folder| {
        fs::rename(folder.join(WEIGHTS_FILE), folder.join("adapter_model.bin")).unwrap();
    });
    check("outside of the folder", 65, &|folder| {
        fs::rename(folder.join(CONFIG_FILE), folder.with_file_name("config")).unwrap();
        std::os::unix::fs::symlink("../config", folder.join(CONFIG_FILE)).unwrap();
    });
    check("is not the JSON it should be", 65, &|folder| {
        fs::write(folder.join(CONFIG_FILE), r#"{"r":4,"r":8}"#).unwrap()
    });
    check("is not a JSON object", 65, &|folder| fs::write(folder.join(CONFIG_FILE), "[]").unwrap());
    check("(1 missing)", 65, &|folder| {
        let bytes = fs::read(folder.join(WEIGHTS_FILE)).unwrap();
        fs::write(folder.join(WEIGHTS_FILE), &bytes[..bytes.len() - 1]).unwrap();
    });
}

#[test]
fn damaged_settings_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let attn = fixture("tiny-scout/adapter_attn");
    fs::copy(attn.join(WEIGHTS_FILE), folder.path().join(WEIGHTS_FILE)).unwrap();
    let valid = fs::read(attn.join(CONFIG_FILE)).unwrap();
    let mut state = 99u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % bound as u64) as usize
    };
    let mut num_refused = 0;
    for _ in 0..500 {
        let mut bytes = valid.clone();
        let at = below(bytes.len());
        bytes[at] = b"0123456789\"[]{},:xn\\\n"[below(21)];
        fs::write(folder.path().join(CONFIG_FILE), bytes).unwrap();
        num_refused += usize::from(read_tiny(folder.path()).is_err());
    }
    assert!((50..450).contains(&num_refused), "{num_refused}");
}

#[test]
fn an_adapter_that_peft_would_not_load_is_not_written() {
    let check = |expected: &str, bend: &dyn Fn(&mut AdapterSettings, &mut Vec<LoraModule>)| {
        let mut adapter = read_tiny(&fixture("tiny-scout/adapter_all")).unwrap();
        bend(&mut adapter.settings, &mut adapter.modules);
        let out = tempfile::tempdir().unwrap();
        let factors = |index: usize| (adapter.factors[index].0.as_slice(), adapter.factors[index].1.as_slice());
        let written = write_adapter(out.path(), AdapterLayout::Text, &adapter.settings, &adapter.modules, &factors);
        let error = written.unwrap_err();
        assert!(error.to_string().contains(expected), "found: {error}\n  expected: {expected}");
        assert_eq!(error.exit_code().code(), 70);
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    };
    check("dropout 0.1 for an adapter of routed experts", &|settings, _| settings.dropout = 0.1);
    check("alpha NaN", &|settings, _| settings.alpha = f64::NAN);
    check("rank 4 for Q, and 8 for the adapter", &|settings, _| settings.rank = 8);
    check("an adapter without modules", &|_, modules| modules.clear());
    check("ExpertsDown with None experts", &|_, modules| modules.last_mut().unwrap().num_experts = None);
    check("is declared twice", &|_, modules| modules[1] = modules[0].clone());
    check("is [4, 65] and got 256 values", &|_, modules| modules[0].input = 65);
}
