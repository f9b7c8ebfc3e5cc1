//! The same run twice gives the same bits, on one thread and on several. Thread pools are made once in a process, so the
//! test starts itself again and compares what the copies print.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;

use crate::bench::{Bench, bits, run_alone};

const TEST: &str = "reproducible::no_bit_depends_on_the_number_of_threads";
/// Set in the copies, which print instead of comparing.
const IS_COPY: &str = "SCOUT_DIST_TEST_PRINTS_HASHES";
const MARK: &str = "bits of ";

/// Every kind of adapter, and a run with dropout, which PEFT allows without routed experts only.
const RECIPES: [&[&str]; 2] = [
    &["max_steps=4", "per_device_train_batch_size=8"],
    &[
        "max_steps=4",
        "lora_target=all",
        "lora_dropout=0.1",
        "gradient_accumulation_steps=2",
        "val_size=5",
        "eval_strategy=steps",
        "eval_steps=2",
    ],
];

/// Loss bits of every step, and the bytes of the adapter.
fn bits_of_run(bench: &Bench, recipe: &[&str], output: &str) -> (Vec<u32>, Vec<u8>) {
    let output_dir = bench.path(output);
    let output_override = format!("output_dir={}", output_dir.display());
    let overrides: Vec<&str> = recipe.iter().copied().chain([output_override.as_str()]).collect();
    let outcome = run_alone(&bench.config(&overrides)).unwrap();
    let adapter = std::fs::read(output_dir.join("adapter_model.safetensors")).unwrap();
    (bits(&outcome.losses), adapter)
}

#[test]
fn two_runs_have_the_same_losses_and_adapters_to_the_last_bit() {
    let bench = Bench::new();
    for (index, recipe) in RECIPES.iter().enumerate() {
        let [first, second] = ["a", "b"].map(|name| bits_of_run(&bench, recipe, &format!("{name}{index}")));
        assert_eq!(first.0, second.0, "{recipe:?}");
        assert!(first.1 == second.1, "{recipe:?}: adapters differ");
        let other_seed: Vec<&str> = recipe.iter().copied().chain(["seed=7"]).collect();
        let other = bits_of_run(&bench, &other_seed, &format!("c{index}"));
        assert_ne!(other.0, first.0, "{recipe:?}: another seed is another run");
        assert!(other.1 != first.1, "{recipe:?}: another seed is another adapter");
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    if std::env::var_os(IS_COPY).is_some() {
        let bench = Bench::new();
        for (index, recipe) in RECIPES.iter().enumerate() {
            let (losses, adapter) = bits_of_run(&bench, recipe, &format!("run{index}"));
            let mut hasher = DefaultHasher::new();
            adapter.hash(&mut hasher);
            println!("{MARK}{index}: {losses:08x?} {:016x}", hasher.finish());
        }
        return;
    }
    let [one, two, three] = ["1", "2", "3"].map(printed_with_threads);
    assert_eq!(one.len(), RECIPES.len());
    assert_eq!(one, two);
    assert_eq!(one, three);
}

fn printed_with_threads(num_threads: &str) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env("RAYON_NUM_THREADS", num_threads)
        .env(IS_COPY, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    // The harness may have begun a line of its own before the first one.
    lines.lines().filter_map(|line| line.split_once(MARK)).map(|(_, bits)| bits.to_string()).collect()
}
