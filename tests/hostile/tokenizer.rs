//! Tokenizers that are damaged or belong to another model.

use serde_json::json;

use crate::case::{case, check};

const FILE: &str = "model/tokenizer.json";
const CONFIG: &str = "model/tokenizer_config.json";

#[test]
fn a_tokenizer_that_is_none_of_this_model_is_one_clear_error() {
    check(&[
        case("it is missing", 66, &[FILE], |p| p.remove(FILE)),
        case("not JSON", 65, &[FILE], |p| p.write(FILE, "tokens")),
        case("nothing", 65, &[FILE], |p| p.write(FILE, "")),
        case("not UTF-8", 65, &[FILE], |p| p.write(FILE, b"{\"version\":\"\xff\"}")),
        case("JSON of something else", 65, &[FILE], |p| p.write(FILE, "{\"hello\": [1, 2]}")),
        case("cut off", 65, &[FILE], |p| p.truncate(FILE, |length| length - 10)),
        case("a folder", 65, &[FILE], |p| p.make_folder_of_file(FILE)),
        case("a pipe that nobody writes to", 65, &[FILE], |p| p.make_pipe_of_file(FILE)),
        case("a link out of the folder", 65, &[FILE, "link"], |p| p.make_link_out_of_file(FILE)),
        case("bigger than the vocabulary", 65, &[FILE, "512", "300"], |p| {
            // Random weights have any shape, so that only the tokenizer is left to complain about.
            p.set("random_weights", "true");
            p.set_json("model/config.json", "vocab_size", 300);
        }),
        case("an id past the vocabulary", 65, &[FILE, "7000"], |p| {
            p.edit_json(FILE, |tokenizer| tokenizer["model"]["vocab"]["The"] = json!(70_000));
        }),
        case("without the end of a turn", 65, &["<|eot|>"], |p| p.replace(FILE, "\"<|eot|>\"", "\"<|end|>\"")),
        case("without the beginning of a text", 65, &["<|begin_of_text|>"], |p| {
            let text = std::fs::read_to_string(p.path(FILE)).unwrap();
            p.write(FILE, text.replace("<|begin_of_text|>", "<|begin|>"));
        }),
        case("settings that are not JSON", 65, &[CONFIG], |p| p.write(CONFIG, "{")),
        case("settings that are not UTF-8", 65, &[CONFIG], |p| p.write(CONFIG, b"{\"bos_token\":\"\xff\"}")),
        case("a key twice in the settings", 65, &[CONFIG, "bos_token"], |p| {
            p.replace(CONFIG, "\"bos_token\":", "\"bos_token\": \"<|eot|>\", \"bos_token\":");
        }),
        case("settings that name an unknown beginning", 65, &["<s>"], |p| p.set_json(CONFIG, "bos_token", "<s>")),
        case("a plan with a tokenizer that is not JSON", 65, &[FILE], |p| p.write(FILE, "{")).on(&["plan", "run.yaml"]),
    ]);
}
