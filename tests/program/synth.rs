//! Model folders out of nothing: what `synth` writes must train, repeat, and never lie over something.

use crate::folder::Folder;

#[test]
fn a_model_of_f32_or_bf16_trains_with_the_configuration_written_beside_it() {
    for (dtype, written) in [("f32", "float32"), ("bf16", "bfloat16")] {
        let folder = Folder::empty();
        let said =
            folder.succeed(&["synth", "--shape", "tiny", "--layers", "1", "--dtype", dtype, "--out", "toy"]).stdout;
        assert!(said.contains("scout-dist train toy/scout-dist.yaml"), "{said}");
        assert_eq!(folder.json("toy/config.json")["dtype"], written);
        folder.succeed(&["train", "toy/scout-dist.yaml", "max_steps=24", "logging_steps=4"]);
        let losses = folder.losses("toy/run");
        assert!(losses[losses.len() - 1] < losses[0] - 1.0, "{dtype}: {losses:?}");
    }
}

#[test]
fn both_data_sets_of_a_toy_hold_the_same_conversations() {
    let folder = Folder::with_toy();
    let counted = |dataset: &str| {
        let said = folder.succeed(&["preprocess", "run.yaml", dataset, "--show", "0"]).stdout;
        said.lines().last().unwrap().to_string()
    };
    assert_eq!(counted("dataset=toy_alpaca"), counted("dataset=toy_messages"));
    let both = counted("dataset=toy_alpaca,toy/data/toy_messages.jsonl");
    assert!(both.starts_with("192 rows"), "names and paths may be mixed: {both}");
}

#[test]
fn the_same_seed_writes_the_same_bytes_and_another_does_not() {
    let folder = Folder::empty();
    for (name, seed) in [("a", "7"), ("b", "7"), ("c", "8")] {
        folder.succeed(&["synth", "--shape", "tiny", "--layers", "2", "--seed", seed, "--out", name]);
    }
    for file in ["model.safetensors", "config.json", "tokenizer.json", "data/toy_messages.jsonl"] {
        assert_eq!(folder.bytes(&format!("a/{file}")), folder.bytes(&format!("b/{file}")), "{file}");
    }
    assert_ne!(folder.bytes("a/model.safetensors"), folder.bytes("c/model.safetensors"));
    assert_eq!(folder.json("a/config.json")["num_hidden_layers"], 2);
}

#[test]
fn a_model_that_is_there_is_not_overwritten_in_any_part() {
    let folder = Folder::with_toy();
    folder.write("toy/scout-dist.yaml", "seed: 5 # mine\n");
    let before: Vec<Vec<u8>> =
        folder.names("toy").iter().filter(|n| *n != "data").map(|n| folder.bytes(&format!("toy/{n}"))).collect();
    let ended = folder.run(&["synth", "--shape", "tiny", "--layers", "2", "--seed", "9", "--out", "toy"]);
    assert_eq!(ended.code, Some(73), "{}", ended.stderr);
    let after: Vec<Vec<u8>> =
        folder.names("toy").iter().filter(|n| *n != "data").map(|n| folder.bytes(&format!("toy/{n}"))).collect();
    assert!(before == after, "a file changed");
}

#[test]
fn a_shape_without_files_trains_on_random_weights() {
    let folder = Folder::with_toy();
    std::fs::remove_file(folder.path("toy/model.safetensors")).unwrap();
    folder.succeed(&["train", "run.yaml", "--synthetic"]);
    let bits = folder.bits("run");
    folder.succeed(&["train", "run.yaml", "random_weights=true"]);
    assert_eq!(folder.bits("run"), bits);
}
