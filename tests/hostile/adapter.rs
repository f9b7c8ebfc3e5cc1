//! Adapters to start from that are damaged, hostile or made for another model.

use serde_json::{Value, json};

use crate::case::{Case, case, check};
use crate::place::Place;
use crate::surgery::edit;

const CONFIG: &str = "adapter/adapter_config.json";
const WEIGHTS: &str = "adapter/adapter_model.safetensors";
const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const Q_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

#[test]
fn an_adapter_that_cannot_be_the_start_is_one_clear_error() {
    check(&[
        from("no such folder", 66, &["nowhere"], |p| p.set("adapter_name_or_path", "nowhere")),
        from("an empty folder", 66, &["empty"], |p| {
            p.make_folder("empty");
            p.set("adapter_name_or_path", "empty");
        }),
        from("settings are missing", 65, &["adapter", "adapter_config.json"], |p| p.remove(CONFIG)),
        from("weights are missing", 65, &["adapter", "adapter_model.safetensors"], |p| p.remove(WEIGHTS)),
        from("a pickle and nothing else", 65, &["adapter_model.bin", "can run code"], |p| {
            std::fs::rename(p.path(WEIGHTS), p.path("adapter/adapter_model.bin")).unwrap();
        }),
        from("a link out of the folder", 65, &[WEIGHTS, "link"], |p| p.make_link_out_of_file(WEIGHTS)),
        from("settings that are a link out of the folder", 65, &[CONFIG, "link"], |p| p.make_link_out_of_file(CONFIG)),
        from("the last byte is missing", 65, &["adapter_model.safetensors", "cut short", "(1 missing)"], |p| {
            p.truncate(WEIGHTS, |length| length - 1);
        }),
        from("a factor of another shape", 65, &["1 misshapen", Q_A, "[64, 2]", "expected [2, 64]"], |p| {
            edit(&p.path(WEIGHTS), |file| file.header[Q_A]["shape"] = json!([64, 2]));
        }),
        from("a factor is missing", 65, &["1 missing", Q_B], |p| edit(&p.path(WEIGHTS), |file| file.remove(Q_B))),
        from("a layer that the model has not", 65, &["1 unexpected", "layers.7"], |p| {
            edit(&p.path(WEIGHTS), |file| file.add(&Q_A.replace("layers.0", "layers.7"), "F32", &[2, 64], &[0; 512]));
        }),
        from("whole numbers", 65, &["1 mistyped", Q_A, "I32"], |p| {
            edit(&p.path(WEIGHTS), |file| file.header[Q_A]["dtype"] = json!("I32"));
        }),
        from("NaN", 65, &[Q_B, "NaN at index 5"], |p| edit(&p.path(WEIGHTS), |file| file.set_f32(Q_B, 5, f32::NAN))),
        from("infinity", 65, &[Q_A, "inf at index 127"], |p| {
            edit(&p.path(WEIGHTS), |file| file.set_f32(Q_A, 127, f32::INFINITY));
        }),
        from("of no decoder layer", 65, &["decoder layer"], |p| {
            edit(&p.path(WEIGHTS), |file| {
                file.names().iter().for_each(|name| file.remove(name));
                file.add("vision_model.q", "F32", &[1], &[0; 4]);
            });
        }),
    ]);
}

#[test]
fn settings_of_an_adapter_that_cannot_be_met_are_one_clear_error() {
    check(&[
        from("another rank than the factors have", 65, &["misshapen"], |p| set(p, "r", json!(4))),
        from("another kind of adapter", 65, &["`peft_type`", "LOHA"], |p| set(p, "peft_type", json!("LOHA"))),
        from("DoRA", 65, &["`use_dora`", "DoRA"], |p| set(p, "use_dora", json!(true))),
        from("trained biases", 65, &["`bias`", "all"], |p| set(p, "bias", json!("all"))),
        from("no rank", 65, &["`r`", "0"], |p| set(p, "r", json!(0))),
        from("a rank past counting", 65, &["`r`"], |p| set(p, "r", json!(1_u64 << 60))),
        from("a text for alpha", 65, &["`lora_alpha`"], |p| set(p, "lora_alpha", json!("8"))),
        from("modules trained in full", 65, &["`modules_to_save`"], |p| set(p, "modules_to_save", json!(["lm_head"]))),
        from("a rank for each module", 65, &["`rank_pattern`"], |p| set(p, "rank_pattern", json!({"q_proj": 8}))),
        from("a start that changes the base", 65, &["`init_lora_weights`", "pissa"], |p| {
            set(p, "init_lora_weights", json!("pissa"));
        }),
        from("an unknown module", 65, &["`target_modules`", "wq"], |p| set(p, "target_modules", json!(["wq"]))),
        from("dropout on routed experts", 65, &["`lora_dropout`"], |p| set(p, "lora_dropout", json!(0.1))),
        from("settings that are not JSON", 65, &["adapter_config.json"], |p| p.write(CONFIG, "r: 2")),
        from("a key twice in the settings", 65, &["adapter_config.json", "`r`"], |p| {
            p.replace(CONFIG, "\"r\": 2,", "\"r\": 2, \"r\": 4,");
        }),
        from("two adapters", 78, &["run.yaml:", "adapter_name_or_path", "one adapter"], |p| {
            p.set("adapter_name_or_path", "adapter,adapter");
        }),
        from("a plan for no such folder", 66, &["nowhere"], |p| p.set("adapter_name_or_path", "nowhere"))
            .on(&["plan", "run.yaml"]),
    ]);
}

/// A case that starts from the adapter.
fn from(name: &'static str, code: i32, says: &'static [&'static str], damage: impl Fn(&Place) + 'static) -> Case {
    case(name, code, says, move |place| {
        place.set("adapter_name_or_path", "adapter");
        damage(place);
    })
}

fn set(place: &Place, key: &str, value: Value) {
    place.set_json(CONFIG, key, value);
}
