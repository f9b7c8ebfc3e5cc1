//! Model folders whose weights are damaged, hostile or not those of the model.

use serde_json::json;

use crate::case::{Case, case, check};
use crate::place::Place;
use crate::surgery::{edit, edit_header_text, write_raw};

const FILE: &str = "model/model.safetensors";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const K: &str = "model.layers.0.self_attn.k_proj.weight";

#[test]
fn a_weight_file_that_breaks_the_format_is_one_clear_error() {
    check(&[
        case("the last byte is missing", 65, &["model.safetensors", "cut short", "(1 missing)"], |p| {
            p.truncate(FILE, |length| length - 1);
        }),
        case("the second half is missing", 65, &["model.safetensors", "cut short"], |p| p.truncate(FILE, |n| n / 2)),
        case("cut inside the header", 65, &["model.safetensors", "cut short"], |p| p.truncate(FILE, |_| 100)),
        case("cut inside the length", 65, &["model.safetensors", "cut short"], |p| p.truncate(FILE, |_| 5)),
        case("an empty file", 65, &["model.safetensors", "cut short"], |p| p.truncate(FILE, |_| 0)),
        case("one byte too many", 65, &["model.safetensors", "1 bytes after the last tensor"], |p| {
            p.append(FILE, "x");
        }),
        case("overlapping offsets", 65, &[Q, "overlaps"], |p| offsets(p, Q, -4)),
        case("a hole between tensors", 65, &[Q, "hole"], |p| offsets(p, Q, 4)),
        case("a tensor that ends before it begins", 65, &[Q, "before it begins"], |p| {
            edit(&p.path(FILE), |file| file.header[Q]["data_offsets"] = json!([8, 4]));
        }),
        case("offsets past the end of the file", 65, &["model.safetensors"], |p| {
            edit(&p.path(FILE), |file| file.header[Q]["data_offsets"] = json!([u64::MAX - 1, u64::MAX]));
        }),
        case("bytes that do not fit the shape", 65, &[Q, "expected"], |p| {
            edit(&p.path(FILE), |file| file.header[Q]["shape"] = json!([64, 63]));
        }),
        case("a shape too large to count", 65, &[Q, "too large"], |p| {
            edit(&p.path(FILE), |file| file.header[Q]["shape"] = json!([u64::MAX, u64::MAX]));
        }),
        case("a header of absurd length", 65, &["model.safetensors", "header of 18446744073709551615 bytes"], |p| {
            p.write(FILE, [0xff; 64]);
        }),
        case("a header longer than the file", 65, &["model.safetensors", "cut short"], |p| {
            p.write(FILE, [&90_000_000_u64.to_le_bytes()[..], b"{}"].concat());
        }),
        case("a header that is not JSON", 65, &["model.safetensors"], |p| write_raw(&p.path(FILE), "{not JSON", &[])),
        case("a header that is a list", 65, &["model.safetensors", "does not begin with"], |p| {
            write_raw(&p.path(FILE), "[]", &[]);
        }),
        case("a header nested without end", 65, &["model.safetensors"], |p| {
            write_raw(&p.path(FILE), &"{\"a\":".repeat(100_000), &[]);
        }),
        case("a header without tensors", 65, &["missing"], |p| write_raw(&p.path(FILE), "{}", &[])),
        case("a tensor named twice", 65, &["model.safetensors", "twice", Q], |p| {
            edit_header_text(&p.path(FILE), |text| {
                let (_, entry) = text.split_once(&format!("\"{Q}\":")).unwrap();
                let (entry, _) = entry.split_once('}').unwrap();
                format!("{{\"{Q}\":{entry}}},{}", &text[1..])
            });
        }),
        case("a key twice in one tensor's entry", 65, &["model.safetensors", "dtype"], |p| {
            edit_header_text(&p.path(FILE), |text| text.replacen("\"dtype\":", "\"dtype\":\"F32\",\"dtype\":", 1));
        }),
        case("an unknown element type", 65, &[Q, "F99"], |p| {
            edit(&p.path(FILE), |file| file.header[Q]["dtype"] = json!("F99"));
        }),
        case("a name that would write on the terminal", 65, &["\\u{1b}"], |p| {
            edit(&p.path(FILE), |file| file.add("\u{1b}[2Jgone", "F32", &[1], &[0; 4]));
        }),
    ]);
}

/// Moves where the first tensor after `name` begins, by a few bytes, and keeps its length.
fn offsets(place: &Place, name: &str, by: i64) {
    edit(&place.path(FILE), |file| {
        let range = file.range(name);
        let moved = |offset: usize| (offset as i64 + by) as u64;
        file.header[name]["data_offsets"] = json!([moved(range.start), moved(range.end)]);
    });
}

#[test]
fn weights_that_are_not_those_of_the_model_are_one_clear_error() {
    let mut cases = vec![
        case("a tensor is missing", 65, &["1 missing", Q], |p| edit(&p.path(FILE), |file| file.remove(Q))),
        case("many tensors are missing", 65, &["missing", "…"], |p| {
            edit(&p.path(FILE), |file| file.names().iter().skip(2).for_each(|name| file.remove(name)));
        }),
        case("a tensor too many", 65, &["1 unexpected", "model.layers.1.self_attn.q_proj.weight"], |p| {
            edit(&p.path(FILE), |file| file.add("model.layers.1.self_attn.q_proj.weight", "F32", &[1], &[0; 4]));
        }),
        case("a tensor of another shape", 65, &["1 misshapen", K, "[64, 32]", "expected [32, 64]"], |p| {
            edit(&p.path(FILE), |file| file.header[K]["shape"] = json!([64, 32]));
        }),
        case("a tensor of whole numbers", 65, &["1 mistyped", Q, "I32", "expected"], |p| {
            edit(&p.path(FILE), |file| file.header[Q]["dtype"] = json!("I32"));
        }),
        case("a tensor of another model's width", 65, &["misshapen", "expected [512, 32]"], |p| {
            p.set_json("model/config.json", "hidden_size", 32);
        }),
        case("more layers than weights", 65, &["missing", "model.layers.1."], |p| {
            for (key, value) in [
                ("num_hidden_layers", json!(2)),
                ("layer_types", json!(["chunked_attention", "chunked_attention"])),
                ("no_rope_layers", json!([1, 1])),
                ("moe_layers", json!([0, 1])),
            ] {
                p.set_json("model/config.json", key, value);
            }
        }),
        case("NaN as the first weight", 65, &[Q, "NaN at index 0"], |p| set(p, Q, 0, f32::NAN)),
        case("NaN as the last weight", 65, &["model.norm.weight", "NaN at index 63"], |p| {
            set(p, "model.norm.weight", 63, f32::NAN);
        }),
        case("infinity in a routed expert", 65, &["experts.gate_up_proj", "inf at index 40959"], |p| {
            set(p, "model.layers.0.feed_forward.experts.gate_up_proj", 40_959, f32::INFINITY);
        }),
        case("negative infinity in the head", 65, &["lm_head.weight", "-inf at index 1000"], |p| {
            set(p, "lm_head.weight", 1000, f32::NEG_INFINITY);
        }),
        case("NaN in a tensor of bf16", 65, &[K, "NaN at index 2047"], |p| {
            edit(&p.path(FILE), |file| {
                let mut bytes = vec![0; 2 * 32 * 64];
                bytes.splice(2 * 2047.., 0x7fc0_u16.to_le_bytes());
                file.remove(K);
                file.add(K, "BF16", &[32, 64], &bytes);
            });
        }),
    ];
    // What headers alone can tell must not wait for a GPU.
    cases.extend([
        case("a plan for a missing tensor", 65, &["1 missing", Q], |p| edit(&p.path(FILE), |file| file.remove(Q)))
            .on(&["plan", "run.yaml"]),
        case("a plan for another shape", 65, &["1 misshapen", K], |p| {
            edit(&p.path(FILE), |file| file.header[K]["shape"] = json!([64, 32]));
        })
        .on(&["plan", "run.yaml"]),
    ]);
    check(&cases);
}

fn set(place: &Place, tensor: &str, index: usize, value: f32) {
    edit(&place.path(FILE), |file| file.set_f32(tensor, index, value));
}

#[test]
fn weights_that_are_not_plain_files_of_the_folder_are_one_clear_error() {
    let pickle = |name, damage: fn(&Place)| -> Case { case(name, 65, &["can run code", "safetensors"], damage) };
    check(&[
        pickle("a pickle and nothing else", |p| rename(p, "pytorch_model.bin")),
        pickle("pickle shards and nothing else", |p| rename(p, "pytorch_model-00001-of-00002.bin")),
        pickle("Meta's own checkpoint and nothing else", |p| rename(p, "consolidated.00.pth")),
        case("no weights at all", 66, &["model", "model.safetensors"], |p| p.remove(FILE)),
        case("a link out of the folder", 65, &["model/model.safetensors", "link", "outside"], |p| {
            p.make_link_out_of_file(FILE);
        }),
        case("a folder in place of the file", 65, &["model/model.safetensors", "not a regular file"], |p| {
            p.make_folder_of_file(FILE);
        }),
        case("a pipe that nobody writes to", 65, &["model/model.safetensors", "not a regular file"], |p| {
            p.make_pipe_of_file(FILE);
        }),
        case("a pickle under the name of safetensors", 65, &["model.safetensors"], |p| {
            p.write(FILE, b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.");
        }),
    ]);
}

fn rename(place: &Place, name: &str) {
    std::fs::rename(place.path(FILE), place.path("model").join(name)).unwrap();
}
