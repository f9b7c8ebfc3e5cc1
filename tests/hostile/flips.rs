//! Damage that nobody designed: single bytes changed all over the files of a run. Asks only that the program ends in one
//! sentence, with a code that speaks of the input.

use std::panic::{AssertUnwindSafe, catch_unwind};

use scout_tests::run_in;

use crate::place::{Good, LIMIT};

/// Each with how far from its start bytes are changed: of weights, the header and the numbers right behind it.
const FILES: [(&str, usize); 8] = [
    ("model/config.json", usize::MAX),
    ("model/model.safetensors", 3000),
    ("model/tokenizer.json", usize::MAX),
    ("model/tokenizer_config.json", usize::MAX),
    ("model/data/dataset_info.json", usize::MAX),
    ("model/data/toy_messages.jsonl", usize::MAX),
    ("adapter/adapter_config.json", usize::MAX),
    ("adapter/adapter_model.safetensors", 3000),
];
const FLIPS: usize = 10;

#[test]
fn a_changed_byte_anywhere_ends_in_a_code_that_speaks_of_the_input() {
    let good = Good::make();
    let mut wrong = Vec::new();
    for (name, reach) in FILES {
        let place = good.copy();
        place.set("adapter_name_or_path", "adapter");
        place.set("overwrite_output_dir", "true");
        let whole = std::fs::read(place.path(name)).unwrap();
        for flip in 0..FLIPS {
            // Spread over the file, and over the eight bits of a byte.
            let at = whole.len().min(reach) * (2 * flip + 1) / (2 * FLIPS);
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (flip * 3 % 8);
            place.write(name, bytes);
            let what = format!("{name}, byte {at}, bit {}", flip * 3 % 8);
            let ended = catch_unwind(AssertUnwindSafe(|| run_in(place.folder(), &["train", "run.yaml"], LIMIT)));
            let Ok(ended) = ended else {
                wrong.push(format!("{what}: did not end"));
                continue;
            };
            // Many changes are sound: another word in a row, another number in a weight. 79 is a weight gone huge.
            let is_known = matches!(ended.code, Some(0 | 65 | 66 | 79));
            let errors = ended.stderr.lines().filter(|line| line.starts_with("error: ")).count();
            if !is_known || errors != usize::from(ended.code != Some(0)) {
                wrong.push(format!("{what}: {:?}\n{}", ended.code, ended.stderr));
            }
        }
    }
    assert!(wrong.is_empty(), "{} changes:\n\n{}", wrong.len(), wrong.join("\n\n"));
}
