//! Indexes of sharded weights that lie about where a tensor is.

use serde_json::{Value, json};

use crate::case::{case, check};
use crate::place::Place;
use crate::surgery::{Opened, edit};

const INDEX: &str = "model/model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const HEAD: &str = "lm_head.weight";

#[test]
fn an_index_that_does_not_tell_the_truth_is_one_clear_error() {
    check(&[
        case("a file above the folder", 65, &["../model.safetensors", HEAD], |p| {
            point_head_to(p, "../model.safetensors")
        }),
        case("an absolute path", 65, &["/etc/passwd", HEAD], |p| point_head_to(p, "/etc/passwd")),
        case("an absolute path of weights", 65, &["/tmp/model.safetensors"], |p| {
            point_head_to(p, "/tmp/model.safetensors")
        }),
        case("a folder below", 65, &["more/model.safetensors"], |p| point_head_to(p, "more/model.safetensors")),
        case("a name with a line break", 65, &["\\n"], |p| point_head_to(p, "model\nerror: none.safetensors")),
        case("a pickle", 65, &["weights.bin", "can run code"], |p| point_head_to(p, "weights.bin")),
        case("a number for a file name", 65, &[HEAD, "7"], |p| point_head_to(p, 7)),
        case("a shard that is a link out of the folder", 65, &[SECOND, "link", "outside"], |p| {
            shard(p);
            p.make_link_out_of_file("model/model-00002-of-00002.safetensors");
        }),
        case("a shard that is not there", 65, &[SECOND, "missing"], |p| {
            shard(p);
            p.remove("model/model-00002-of-00002.safetensors");
        }),
        case("a shard cut short by one byte", 65, &[SECOND, "cut short", "(1 missing)"], |p| {
            shard(p);
            p.truncate("model/model-00002-of-00002.safetensors", |length| length - 1);
        }),
        case("a tensor in the other shard", 65, &[HEAD, FIRST, SECOND], |p| point_head_to(p, SECOND)),
        case("a tensor that no shard holds", 65, &["model.layers.9.q", SECOND], |p| {
            shard(p);
            p.edit_json(INDEX, |index| index["weight_map"]["model.layers.9.q"] = json!(SECOND));
        }),
        case("a tensor that the index does not name", 65, &[HEAD, FIRST], |p| {
            shard(p);
            p.edit_json(INDEX, |index| {
                index["weight_map"].as_object_mut().unwrap().shift_remove(HEAD);
            });
        }),
        case("a tensor in both shards", 65, &[HEAD, SECOND], |p| {
            shard(p);
            edit(&p.path("model").join(SECOND), |file| file.add(HEAD, "F32", &[1], &[0; 4]));
        }),
    ]);
}

#[test]
fn an_index_that_is_no_index_is_one_clear_error() {
    check(&[
        case("a total that is not the sum", 65, &["total_size", "12"], |p| {
            shard(p);
            p.set_json(INDEX, "metadata", json!({"total_size": 12}));
        }),
        case("two models in one folder", 65, &["model.safetensors", "two models"], |p| {
            let whole = std::fs::read(p.path("model/model.safetensors")).unwrap();
            shard(p);
            p.write("model/model.safetensors", whole);
        }),
        case("no map", 65, &["index.json", "weight_map"], |p| p.write(INDEX, "{}")),
        case("an empty map", 65, &["index.json", "weight_map"], |p| p.write(INDEX, r#"{"weight_map":{}}"#)),
        case("a key twice", 65, &["index.json", HEAD], |p| {
            shard(p);
            p.replace(INDEX, "\"weight_map\": {", &format!("\"weight_map\": {{\"{HEAD}\": \"{SECOND}\","));
        }),
        case("not JSON", 65, &["index.json"], |p| p.write(INDEX, "weight_map:")),
        case("nothing", 65, &["index.json"], |p| p.write(INDEX, "")),
        case("not UTF-8", 65, &["index.json"], |p| p.write(INDEX, b"{\"weight_map\":\"\xff\"}")),
        case("nested without end", 65, &["index.json"], |p| p.write(INDEX, "[".repeat(1_000_000))),
        case("a folder", 65, &["index.json", "not a regular file"], |p| p.make_folder(INDEX)),
    ]);
}

/// Cuts the one weight file into two with an index; the head is in the first.
fn shard(place: &Place) {
    let whole = Opened::read(&place.path("model/model.safetensors"));
    let names = whole.names();
    let (first, second) = names.split_at(names.len() / 2);
    let mut weight_map = serde_json::Map::new();
    for (file, names) in [(FIRST, first), (SECOND, second)] {
        whole.part(names).write(&place.path("model").join(file));
        weight_map.extend(names.iter().map(|name| (name.clone(), json!(file))));
    }
    let index = json!({"metadata": {"total_size": whole.data.len()}, "weight_map": weight_map});
    place.write(INDEX, serde_json::to_string_pretty(&index).unwrap());
    place.remove("model/model.safetensors");
}

fn point_head_to(place: &Place, file: impl Into<Value>) {
    shard(place);
    let file = file.into();
    place.edit_json(INDEX, |index| index["weight_map"][HEAD] = file.clone());
}
