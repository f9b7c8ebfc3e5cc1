//! Model folders whose `config.json` cannot be meant.

use serde_json::json;

use crate::case::{case, check};
use crate::place::Place;

const FILE: &str = "model/config.json";

#[test]
fn a_model_folder_that_is_none_is_one_clear_error() {
    check(&[
        case("no folder of that name", 66, &["nowhere", "model_name_or_path"], |p| {
            p.set("model_name_or_path", "nowhere")
        }),
        case("a file in place of the folder", 66, &["model/config.json"], |p| p.set("model_name_or_path", FILE)),
        case("an empty folder", 66, &["empty", "config.json"], |p| {
            p.make_folder("empty");
            p.set("model_name_or_path", "empty");
        }),
        case("Scout's own name without the folder", 66, &["meta-llama/Llama-4-Scout-17B-16E"], |p| {
            p.set("model_name_or_path", "meta-llama/Llama-4-Scout-17B-16E");
        }),
        case("a plan for no folder of that name", 66, &["nowhere"], |p| p.set("model_name_or_path", "nowhere"))
            .on(&["plan", "run.yaml"]),
    ]);
}

#[test]
fn a_config_json_that_is_not_one_object_is_one_clear_error() {
    check(&[
        case("not JSON", 65, &[FILE, "line 1"], |p| p.write(FILE, "hidden_size: 64")),
        case("nothing", 65, &[FILE], |p| p.write(FILE, "")),
        case("cut off", 65, &[FILE], |p| p.truncate(FILE, |length| length / 2)),
        case("not UTF-8", 65, &[FILE], |p| p.write(FILE, b"{\"model_type\":\"\xff\xfe\"}")),
        case("a list", 65, &[FILE, "object"], |p| p.write(FILE, "[]")),
        case("text after the object", 65, &[FILE], |p| p.append(FILE, "{}")),
        case("nested without end", 65, &[FILE], |p| p.write(FILE, "{\"a\":".repeat(100_000))),
        case("a folder", 65, &[FILE], |p| p.make_folder_of_file(FILE)),
        case("a pipe that nobody writes to", 65, &[FILE], |p| p.make_pipe_of_file(FILE)),
        case("a link out of the folder", 65, &[FILE, "link"], |p| p.make_link_out_of_file(FILE)),
        case("a key twice", 65, &[FILE, "hidden_size"], |p| {
            p.replace(FILE, "\"hidden_size\": 64,", "\"hidden_size\": 64, \"hidden_size\": 128,");
        }),
        case("a key twice further in", 65, &[FILE, "rope_theta"], |p| {
            p.replace(FILE, "\"rope_theta\": 500000.0,", "\"rope_theta\": 500000.0, \"rope_theta\": 1.0,");
        }),
        case("a plan for what is not JSON", 65, &[FILE], |p| p.write(FILE, "{")).on(&["plan", "run.yaml"]),
        case("rows shown with a config that is not JSON", 65, &[FILE], |p| p.write(FILE, "{"))
            .on(&["preprocess", "run.yaml"]),
    ]);
}

#[test]
fn a_config_json_with_impossible_values_is_one_clear_error() {
    check(&[
        case("a missing key", 65, &[FILE, "`hidden_size` is missing"], |p| p.remove_json(FILE, "hidden_size")),
        case("null for a number", 65, &[FILE, "`vocab_size`"], |p| p.set_json(FILE, "vocab_size", json!(null))),
        case("a text for a number", 65, &["`hidden_size` is \"64\"", "expected"], |p| {
            p.set_json(FILE, "hidden_size", "64");
        }),
        case("a fraction of heads", 65, &["`num_attention_heads` is 4.5"], |p| {
            p.set_json(FILE, "num_attention_heads", 4.5);
        }),
        case("no layers", 65, &["`num_hidden_layers` is 0"], |p| p.set_json(FILE, "num_hidden_layers", 0)),
        case("a negative width", 65, &["`intermediate_size` is -80"], |p| p.set_json(FILE, "intermediate_size", -80)),
        case("a width past counting", 65, &["`hidden_size`"], |p| p.set_json(FILE, "hidden_size", 1_u64 << 60)),
        case("a width past any machine", 65, &["hidden_size", "2147483648"], |p| {
            p.set_json(FILE, "hidden_size", 1_u64 << 31);
            p.set_json(FILE, "intermediate_size", 1_u64 << 31);
        }),
        case("experts past any machine", 65, &["2147483648"], |p| p.set_json(FILE, "num_local_experts", 1_u64 << 31)),
        case("a vocabulary past any machine", 65, &["2147483648"], |p| p.set_json(FILE, "vocab_size", 1_u64 << 31)),
        case("layers past any machine", 65, &["num_hidden_layers"], |p| layers_without_lists(p, 1 << 31)),
        case("another model", 65, &["`model_type` is \"llama\"", "llama4_text"], |p| {
            p.set_json(FILE, "model_type", "llama");
        }),
        case("no model type", 65, &["model_type"], |p| p.remove_json(FILE, "model_type")),
        case("heads that do not divide", 65, &["num_key_value_heads"], |p| p.set_json(FILE, "num_key_value_heads", 3)),
        case("an odd head size", 65, &["head_dim"], |p| p.set_json(FILE, "head_dim", 15)),
        case("two experts a token", 65, &["num_experts_per_tok"], |p| p.set_json(FILE, "num_experts_per_tok", 2)),
        case("another activation", 65, &["hidden_act", "gelu"], |p| p.set_json(FILE, "hidden_act", "gelu")),
        case("biases", 65, &["attention_bias"], |p| p.set_json(FILE, "attention_bias", true)),
        case("a tied head", 65, &["tie_word_embeddings"], |p| p.set_json(FILE, "tie_word_embeddings", true)),
        case("layers without experts", 65, &["moe_layers"], |p| p.set_json(FILE, "moe_layers", json!([]))),
        case("too few kinds of layers", 65, &["layer_types"], |p| p.set_json(FILE, "layer_types", json!([]))),
        case("an unknown kind of layer", 65, &["layer_types", "sliding"], |p| {
            p.set_json(FILE, "layer_types", json!(["sliding"]));
        }),
        case("unknown positions", 65, &["rope_parameters.rope_type", "yarn"], |p| {
            p.edit_json(FILE, |config| config["rope_parameters"]["rope_type"] = json!("yarn"));
        }),
        case("no base of positions", 65, &["rope_theta"], |p| {
            p.edit_json(FILE, |config| config["rope_parameters"]["rope_theta"] = json!(null));
        }),
        case("a zero base of positions", 65, &["rope_theta"], |p| {
            p.edit_json(FILE, |config| config["rope_parameters"]["rope_theta"] = json!(0.0));
        }),
        case("norms without an epsilon", 65, &["rms_norm_eps"], |p| p.set_json(FILE, "rms_norm_eps", -1.0)),
        case("a temperature that divides by nothing", 65, &["floor_scale"], |p| p.set_json(FILE, "floor_scale", 0)),
        case("a chunk of no tokens", 65, &["attention_chunk_size"], |p| p.set_json(FILE, "attention_chunk_size", 0)),
        case("a long value", 65, &["model_type"], |p| p.set_json(FILE, "model_type", "x".repeat(100_000))),
        case("a value that would write on the terminal", 65, &["model_type"], |p| {
            p.set_json(FILE, "model_type", "\u{1b}[2Jgone\nerror: no");
        }),
    ]);
}

/// Without the lists that would betray it.
fn layers_without_lists(place: &Place, num_layers: u64) {
    for key in ["layer_types", "no_rope_layers", "moe_layers"] {
        place.remove_json(FILE, key);
    }
    place.set_json(FILE, "num_hidden_layers", num_layers);
}
