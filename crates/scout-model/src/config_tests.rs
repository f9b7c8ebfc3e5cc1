//! Spellings that must mean the same, values that mean something else, and files that are refused with the key named.

use serde_json::json;

use super::*;
use crate::units::{NameStyle, UnitPlan};

/// A flat file that holds what a file must hold, in no particular spelling's favour.
fn flat() -> Value {
    json!({
        "model_type": "llama4_text",
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 80,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_local_experts": 4, "num_experts_per_tok": 1,
        "rms_norm_eps": 1e-5, "use_qk_norm": true, "attention_chunk_size": 32,
        "attn_temperature_tuning": true, "floor_scale": 16, "attn_scale": 0.1,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
        },
    })
}

fn vision() -> Value {
    json!({
        "model_type": "llama4_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 128, "num_channels": 3, "image_size": 28, "patch_size": 7, "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 48, "projector_output_dim": 48, "vision_output_dim": 48,
    })
}

fn parse(value: &Value) -> Result<ModelConfig> {
    ModelConfig::parse(Path::new("config.json"), &value.to_string())
}

/// The flat file with some keys set; `a.b` reaches into the object `a`.
fn changed(changes: &[(&str, Value)]) -> Value {
    let mut file = flat();
    for (key, value) in changes {
        let place = match key.split_once('.') {
            Some((outer, key)) => &mut file[outer][key],
            None => &mut file[*key],
        };
        *place = value.clone();
    }
    file
}

fn without(key: &str) -> Value {
    let mut file = flat();
    let (object, key) = match key.split_once('.') {
        Some((outer, key)) => (&mut file[outer], key),
        None => (&mut file, key),
    };
    object.as_object_mut().unwrap().remove(key).unwrap();
    file
}

fn expect_refusal(file: &Value, key: &str) {
    let error = parse(file).map(|config| panic!("{key}: {config:?}")).unwrap_err();
    assert!(matches!(&error, ModelError::Config { key: found, .. } if found == key), "{key}: {error}");
    assert_eq!(error.exit_code(), scout_core::ExitCode::BadData);
    assert!(error.to_string().starts_with(&format!("`config.json`: `{key}` ")), "{error}");
}

fn fixture(name: &str) -> ModelConfig {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    ModelConfig::read(&fixtures.join(name)).unwrap()
}

#[test]
fn both_spellings_of_a_recorded_model_are_the_same_model() {
    let expected = parse(&flat()).unwrap();
    assert_eq!(fixture("tiny-scout/config.json"), expected);
    assert_eq!(fixture("tiny-scout/config_hub_style.json"), expected);
    assert_eq!(expected.rope_layers, [true, true, true, false]);
    assert_eq!(expected.temperature, Some(Temperature { attn_scale: 0.1, floor_scale: 16.0 }));
    let bands = RopeBands { factor: 16.0, low_freq_factor: 1.0, high_freq_factor: 1.0, original_max_position: 64.0 };
    assert_eq!(expected.rope, RopeConfig { theta: 500_000.0, bands: Some(bands) });
    assert_eq!(expected.vision, None);
}

#[test]
fn both_spellings_of_a_recorded_multimodal_model_are_the_same_model() {
    let [new, old] = ["config.json", "config_hub_style.json"].map(|name| fixture(&format!("tiny-scout-vision/{name}")));
    assert_eq!(new, old);
    assert!(new.vision.is_some());
}

#[test]
fn scouts_own_file_in_the_hubs_spelling_is_the_built_in_shape() {
    let mut text = changed(&[
        ("vocab_size", json!(202_048)),
        ("hidden_size", json!(5120)),
        ("intermediate_size", json!(8192)),
        ("intermediate_size_mlp", json!(16_384)),
        ("num_hidden_layers", json!(48)),
        ("num_attention_heads", json!(40)),
        ("num_key_value_heads", json!(8)),
        ("head_dim", json!(128)),
        ("num_local_experts", json!(16)),
        ("interleave_moe_layer_step", json!(1)),
        ("attention_chunk_size", json!(8192)),
        ("attn_temperature_tuning", json!(4)),
        ("no_rope_layers", json!([])),
        ("rope_scaling.original_max_position_embeddings", json!(8192)),
        ("max_position_embeddings", json!(10_485_760)),
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("tie_word_embeddings", json!(false)),
        ("for_llm_compressor", json!(false)),
    ]);
    // Absent from Scout's file: the reader's own values are the ones of the model.
    for key in ["floor_scale", "attn_scale"] {
        text.as_object_mut().unwrap().remove(key).unwrap();
    }
    let file = json!({
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "torch_dtype": "bfloat16",
        "text_config": text, "vision_config": vision(),
    });
    let found = parse(&file).unwrap();
    assert_eq!(found.num_params(), 107_769_861_120);
    assert_eq!(ModelConfig { vision: None, ..found }, ModelConfig::scout());
}

#[test]
fn a_vision_tower_is_read_beside_the_text_model() {
    let found = parse(&json!({ "model_type": "llama4", "text_config": flat(), "vision_config": vision() })).unwrap();
    let expected = VisionConfig {
        hidden_size: 32,
        num_layers: 2,
        intermediate_size: 128,
        num_channels: 3,
        image_size: 28,
        patch_size: 7,
        pixel_shuffle_ratio: 0.5,
        projector_input_dim: 48,
        projector_output_dim: 48,
        vision_output_dim: 48,
    };
    assert_eq!(found, ModelConfig { vision: Some(expected), ..parse(&flat()).unwrap() });
    let mut broken = vision();
    broken.as_object_mut().unwrap().remove("patch_size").unwrap();
    expect_refusal(&json!({ "text_config": flat(), "vision_config": broken }), "vision_config.patch_size");
}

#[test]
fn any_number_but_zero_switches_the_temperature_on_and_so_does_silence() {
    let on = Some(Temperature { attn_scale: 0.1, floor_scale: 16.0 });
    for (value, expected) in [
        (json!(true), on),
        (json!(4), on),
        (json!(1.5), on),
        (json!(null), on),
        (json!(false), None),
        (json!(0), None),
        (json!(0.0), None),
    ] {
        let found = parse(&changed(&[("attn_temperature_tuning", value.clone())])).unwrap();
        assert_eq!(found.temperature, expected, "{value}");
    }
    assert_eq!(parse(&without("attn_temperature_tuning")).unwrap().temperature, on);
    let defaults = changed(&[("floor_scale", json!(null)), ("attn_scale", json!(null))]);
    let expected = Temperature { attn_scale: 0.1, floor_scale: 8192.0 };
    assert_eq!(parse(&defaults).unwrap().temperature, Some(expected));
    expect_refusal(&changed(&[("attn_temperature_tuning", json!("yes"))]), "attn_temperature_tuning");
    for floor_scale in [json!(0), json!(-3), json!("16")] {
        expect_refusal(&changed(&[("floor_scale", floor_scale)]), "floor_scale");
    }
}

#[test]
fn layers_rotate_as_written_and_by_the_interval_where_nothing_is_written() {
    const CHUNKED: &str = "chunked_attention";
    const FULL: &str = "full_attention";
    for (changes, expected) in [
        (&[][..], [true, true, true, false]),
        (&[("no_rope_layers", json!([]))], [true, true, true, false]),
        (&[("no_rope_layers", json!(null)), ("layer_types", json!(null))], [true, true, true, false]),
        // 1 means that the layer does rotate, whatever the key's name says.
        (&[("no_rope_layers", json!([1, 0, 0, 1]))], [true, false, false, true]),
        (&[("no_rope_layers", json!([0, 0, 0, 0]))], [false; 4]),
        (&[("no_rope_layer_interval", json!(2))], [true, false, true, false]),
        (&[("no_rope_layers", json!([])), ("no_rope_layer_interval", json!(3))], [true, true, false, true]),
        (&[("no_rope_layers", json!([1, 1, 0, 1])), ("no_rope_layer_interval", json!(2))], [true, true, false, true]),
        (&[("layer_types", json!([FULL, CHUNKED, CHUNKED, FULL]))], [false, true, true, false]),
        (
            &[("layer_types", json!([FULL, FULL, FULL, CHUNKED])), ("no_rope_layers", json!([0, 0, 0, 1]))],
            [false, false, false, true],
        ),
        (
            &[("layer_types", json!([FULL, FULL, FULL, CHUNKED])), ("no_rope_layers", json!([]))],
            [false, false, false, true],
        ),
    ] {
        assert_eq!(parse(&changed(changes)).unwrap().rope_layers, expected, "{changes:?}");
    }
    for (key, value) in [
        ("no_rope_layers", json!([1, 1, 0])),
        ("no_rope_layers", json!([1, 1, 1, 0, 1])),
        ("no_rope_layers", json!([1, 1, 1, 2])),
        ("no_rope_layers", json!([true, true, true, false])),
        ("no_rope_layers", json!(4)),
        ("no_rope_layer_interval", json!(0)),
        ("layer_types", json!([CHUNKED])),
        ("layer_types", json!([CHUNKED, CHUNKED, CHUNKED, "sliding_attention"])),
        ("layer_types", json!({})),
    ] {
        expect_refusal(&changed(&[(key, value)]), key);
    }
    let contradiction = [("layer_types", json!([FULL, FULL, FULL, CHUNKED])), ("no_rope_layers", json!([1, 1, 1, 1]))];
    expect_refusal(&changed(&contradiction), "layer_types");
    // The other list is judged as well where one would do.
    let too_short = [("layer_types", json!([CHUNKED, CHUNKED, CHUNKED, FULL])), ("no_rope_layers", json!([1, 1]))];
    expect_refusal(&changed(&too_short), "no_rope_layers");
}

#[test]
fn frequencies_are_read_from_either_place_and_must_make_sense() {
    let bands = |factor, low_freq_factor, high_freq_factor, original_max_position| {
        Some(RopeBands { factor, low_freq_factor, high_freq_factor, original_max_position })
    };
    let old_numbers = [("rope_scaling.factor", json!(8)), ("rope_scaling.high_freq_factor", json!(4.0))];
    let parameters = json!({
        "rope_type": "llama3", "rope_theta": 10_000, "factor": 2.5, "low_freq_factor": 1,
        "high_freq_factor": 3.5, "original_max_position_embeddings": 128,
    });
    let plain = json!({ "rope_type": "default", "rope_theta": 9.0 });
    for (changes, theta, expected) in [
        (&[][..], 500_000.0, bands(16.0, 1.0, 1.0, 64.0)),
        (&old_numbers, 500_000.0, bands(8.0, 1.0, 4.0, 64.0)),
        // The newer place wins, its own theta with it.
        (&[("rope_parameters", parameters)], 10_000.0, bands(2.5, 1.0, 3.5, 128.0)),
        (&[("rope_parameters", plain)], 9.0, None),
        (&[("rope_scaling", json!(null))], 500_000.0, None),
    ] {
        assert_eq!(parse(&changed(changes)).unwrap().rope, RopeConfig { theta, bands: expected }, "{changes:?}");
    }
    for (key, value) in [
        ("rope_scaling.rope_type", json!("yarn")),
        ("rope_scaling.rope_type", json!(3)),
        ("rope_scaling.factor", json!("16")),
        ("rope_scaling.high_freq_factor", json!(0.5)),
    ] {
        expect_refusal(&changed(&[(key, value)]), key);
    }
    let no_theta = json!({ "rope_type": "default" });
    expect_refusal(&changed(&[("rope_parameters", no_theta)]), "rope_parameters.rope_theta");
}

#[test]
fn frequencies_that_cannot_be_meant_are_refused_under_their_own_key() {
    for (key, value) in [
        ("rope_scaling.factor", json!(0)),
        ("rope_scaling.factor", json!(-16.0)),
        ("rope_scaling.low_freq_factor", json!(0.0)),
        ("rope_scaling.original_max_position_embeddings", json!(0)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-500_000.0)),
    ] {
        expect_refusal(&changed(&[(key, value)]), key);
    }
}

#[test]
fn a_key_that_the_model_needs_is_named_when_it_is_missing() {
    for key in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_local_experts",
        "num_experts_per_tok",
        "rms_norm_eps",
        "use_qk_norm",
        "attention_chunk_size",
        "rope_theta",
        "rope_scaling.rope_type",
        "rope_scaling.factor",
        "rope_scaling.low_freq_factor",
        "rope_scaling.high_freq_factor",
        "rope_scaling.original_max_position_embeddings",
    ] {
        let file = without(key);
        expect_refusal(&file, key);
        expect_refusal(&json!({ "model_type": "llama4", "text_config": file }), &format!("text_config.{key}"));
    }
    let found = parse(&without("num_key_value_heads")).unwrap();
    assert_eq!(found.num_kv_heads, found.num_heads);
    assert_eq!(parse(&without("head_dim")).unwrap().head_dim, 64 / 4);
}

#[test]
fn what_is_not_built_is_refused_and_named() {
    for (key, value) in [
        ("model_type", json!("llama")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("attention_dropout", json!(0.5)),
        ("quantization_config", json!({ "quant_method": "fp8" })),
        ("tie_word_embeddings", json!(true)),
        ("num_experts_per_tok", json!(2)),
        ("interleave_moe_layer_step", json!(2)),
        ("moe_layers", json!([1, 3])),
        ("moe_layers", json!([0, 1, 2])),
    ] {
        expect_refusal(&changed(&[(key, value)]), key);
    }
    for (key, value) in [
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("tie_word_embeddings", json!(false)),
        ("interleave_moe_layer_step", json!(1)),
        ("moe_layers", json!([0, 1, 2, 3])),
        ("moe_layers", json!(null)),
        ("output_router_logits", json!(true)),
        ("never_heard_of", json!({ "a": [1] })),
    ] {
        assert_eq!(parse(&changed(&[(key, value)])).unwrap(), parse(&flat()).unwrap(), "{key}");
    }
}

#[test]
fn numbers_that_contradict_each_other_or_are_no_counts_are_refused() {
    for (key, value) in [
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(15)),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!("small")),
        ("vocab_size", json!(0)),
        ("hidden_size", json!(-64)),
        ("hidden_size", json!(64.5)),
        ("hidden_size", json!("64")),
        ("num_hidden_layers", json!(0)),
        ("num_local_experts", json!([4])),
        ("use_qk_norm", json!("true")),
        ("attention_chunk_size", json!(0)),
        ("intermediate_size", json!(u64::MAX)),
        ("vocab_size", json!(1_u64 << 32)),
        ("num_hidden_layers", json!(1e300)),
    ] {
        expect_refusal(&changed(&[(key, value)]), key);
    }
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_made_of_them() {
    const LARGE: u64 = 1 << 31;
    for changes in [
        // Their product is more than a machine counts.
        &[("hidden_size", json!(LARGE)), ("intermediate_size", json!(LARGE)), ("num_local_experts", json!(LARGE))][..],
        &[("num_attention_heads", json!(LARGE)), ("head_dim", json!(LARGE)), ("hidden_size", json!(LARGE))],
        // One list entry a layer would fill the memory before the plan could say so.
        &[("num_hidden_layers", json!(LARGE))],
    ] {
        let file = changed(changes);
        let error = parse(&file).map(|_| panic!("{changes:?} is a model")).unwrap_err();
        assert_eq!(error.exit_code(), scout_core::ExitCode::BadData);
    }
    let mut tower = vision();
    for key in ["num_channels", "patch_size", "image_size"] {
        tower[key] = json!(LARGE);
    }
    assert!(parse(&json!({ "text_config": flat(), "vision_config": tower })).is_err());
}

#[test]
fn a_vision_tower_of_impossible_numbers_is_refused_before_shapes_are_made_of_it() {
    for (key, value) in [
        ("pixel_shuffle_ratio", json!(0.0)),
        ("pixel_shuffle_ratio", json!(-0.5)),
        ("patch_size", json!(29)),
        ("patch_size", json!(0)),
    ] {
        let mut tower = vision();
        tower[key] = value;
        expect_refusal(&json!({ "text_config": flat(), "vision_config": tower }), &format!("vision_config.{key}"));
    }
}

#[test]
fn text_that_is_no_json_object_is_an_error_that_names_the_file() {
    for text in ["", "{", "[]", "3", "null", "{\"text_config\": 3}", "{\"text_config\": {}, \"vision_config\": []}"] {
        let error = ModelConfig::parse(Path::new("some/config.json"), text).map(|_| panic!("{text}")).unwrap_err();
        assert!(error.to_string().contains("`some/config.json`"), "{text}: {error}");
        assert_eq!(error.exit_code(), scout_core::ExitCode::BadData, "{text}");
    }
    let error = ModelConfig::read(Path::new("no-such-folder/config.json")).unwrap_err();
    assert_eq!(error.exit_code(), scout_core::ExitCode::MissingInput);
}

#[test]
fn every_tensor_of_the_recorded_multimodal_model_has_a_name_and_a_shape() {
    let config = fixture("tiny-scout-vision/config.json");
    let params = UnitPlan::new(&config, NameStyle::Conditional).checkpoint_params(&config, NameStyle::Conditional);
    let with_tower = params.iter().filter(|param| param.name.starts_with("vision_model.")).count();
    assert!(with_tower > 0);
    assert!(params.iter().all(|param| param.num_elements() > 0));
}
