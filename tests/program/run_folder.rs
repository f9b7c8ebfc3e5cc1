//! What a run leaves behind, for people, for their scripts, and for comparing two runs.

use serde_json::Value;

use crate::folder::Folder;

/// What scripts written for LLaMA-Factory look for.
const FILES: [&str; 10] = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "all_results.json",
    "running_log.txt",
    "runs",
    "train_results.json",
    "trainer_log.jsonl",
    "trainer_state.json",
    "training_loss.png",
];
/// What is there besides: the configuration in full, and the tokenizer beside the adapter it belongs to.
const BESIDES: [&str; 4] = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "training_args.yaml"];

#[test]
fn a_run_folder_holds_the_promised_files_and_nothing_half_written() {
    let folder = Folder::with_toy();
    folder.succeed(&["train", "run.yaml", "plot_loss=true", "max_steps=12", "logging_steps=5"]);
    let mut expected: Vec<&str> = FILES.iter().chain(&BESIDES).copied().collect();
    expected.sort_unstable();
    assert_eq!(folder.names("run"), expected);

    assert!(folder.bytes("run/training_loss.png").starts_with(b"\x89PNG\r\n\x1a\n"));
    let events = folder.names("run/runs");
    assert!(events.len() == 1 && events[0].starts_with("events.out.tfevents."), "{events:?}");
    assert!(!folder.bytes(&format!("run/runs/{}", events[0])).is_empty());
    assert_eq!(folder.bytes("run/tokenizer.json"), folder.bytes("toy/tokenizer.json"));
    let said = folder.text("run/running_log.txt");
    assert!(said.contains("step 12/12  loss ") && !said.contains('\x1b'), "{said}");
    log_lines(&folder);
    states(&folder);
}

/// Before anything is planned, read or opened: on GPUs that takes much longer.
#[test]
fn a_folder_that_may_not_be_used_is_told_first_of_all() {
    let folder = Folder::with_toy();
    std::fs::create_dir(folder.path("run")).unwrap();
    folder.write("run/adapter_model.safetensors", "the result of another run");
    for ranks in [&["train"][..], &["launch", "-n", "2", "train"]] {
        let ended = folder.run(&[ranks, &["run.yaml", "overwrite_output_dir=false"]].concat());
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        for part in ["scout-dist ", "`run` is not empty", "`overwrite_output_dir: true`"] {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("trained "), "{}", ended.stderr);
    }
    assert_eq!(folder.text("run/adapter_model.safetensors"), "the result of another run");
    assert_eq!(folder.names("run"), ["adapter_model.safetensors"]);
}

fn log_lines(folder: &Folder) {
    let log = folder.log("run");
    let steps: Vec<u64> = log.iter().map(|line| line["current_steps"].as_u64().unwrap()).collect();
    assert_eq!(steps, [5, 10, 12], "every fifth step and the last");
    let mut total_tokens = 0;
    for line in &log {
        for key in [
            "loss",
            "lr",
            "epoch",
            "grad_norm",
            "tokens",
            "step_time",
            "tok_s_gpu",
            "exposed_comm",
            "mem_peak",
            "percentage",
        ] {
            assert!(line[key].as_f64().is_some_and(|number| number >= 0.0), "{key}: {line}");
        }
        // The host has no known peak; the keys are there all the same.
        for key in ["mfu", "eval_loss"] {
            assert_eq!(line.get(key), Some(&Value::Null), "{key}: {line}");
        }
        for key in ["loss_bits", "grad_norm_bits"] {
            let bits = line[key].as_str().unwrap();
            assert!(bits.len() == 8 && u32::from_str_radix(bits, 16).is_ok(), "{line}");
        }
        assert_eq!(line["total_steps"], 12);
        total_tokens += line["tokens"].as_u64().unwrap();
        assert_eq!(line["total_tokens"], total_tokens);
    }
    assert_eq!(log[2]["percentage"], 100.0);
    // 96 rows at 4 a step are 24 steps an epoch.
    assert_eq!(log[2]["epoch"], 0.5);
}

fn states(folder: &Folder) {
    let state = folder.json("run/trainer_state.json");
    assert_eq!((&state["global_step"], &state["max_steps"]), (&Value::from(12), &Value::from(12)));
    let history = state["log_history"].as_array().unwrap();
    assert_eq!(history.len(), 4, "three lines and the summary");
    assert_eq!(history[0]["loss"], folder.log("run")[0]["loss"]);
    let results = folder.json("run/train_results.json");
    for key in
        ["epoch", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"]
    {
        assert!(results[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {results}");
    }
    assert_eq!(folder.json("run/all_results.json"), results);
}

#[test]
fn a_run_without_a_wish_for_a_picture_draws_none() {
    let folder = Folder::with_toy();
    folder.succeed(&["train", "run.yaml", "max_steps=1"]);
    assert!(!folder.path("run/training_loss.png").exists());
}

#[test]
fn the_same_run_gives_the_same_bits_whatever_the_number_of_threads() {
    let folder = Folder::with_toy();
    let run = |threads: Option<&str>| {
        let variables: Vec<(&str, &str)> = threads.map(|threads| ("RAYON_NUM_THREADS", threads)).into_iter().collect();
        let ended = folder.run_with(&variables, &["train", "run.yaml", "lora_target=all+experts", "max_steps=6"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        (folder.bits("run"), folder.bytes("run/adapter_model.safetensors"))
    };
    let first = run(None);
    assert_eq!(first.0.len(), 12, "a log of an earlier run is emptied");
    for threads in [None, Some("1"), Some("2"), Some("5")] {
        assert!(run(threads) == first, "threads {threads:?}");
    }
}

#[test]
fn the_written_configuration_repeats_the_run() {
    let folder = Folder::with_toy();
    folder.succeed(&["train", "run.yaml", "lora_target=[q_proj, experts]", "learning_rate=3e-3", "seed=7"]);
    folder.succeed(&["train", "run/training_args.yaml", "output_dir=again"]);
    assert_eq!(folder.bits("again"), folder.bits("run"));
    assert_eq!(folder.bytes("again/adapter_model.safetensors"), folder.bytes("run/adapter_model.safetensors"));
    folder.succeed(&["train", "run/training_args.yaml", "output_dir=other", "seed=8"]);
    assert_ne!(folder.bits("other"), folder.bits("run"), "another seed is another run");
}

#[test]
fn a_run_that_may_not_overwrite_leaves_what_is_there() {
    let folder = Folder::with_toy();
    folder.succeed(&["train", "run.yaml"]);
    let before = (folder.bytes("run/adapter_model.safetensors"), folder.bytes("run/trainer_log.jsonl"));
    let ended = folder.run(&["train", "run.yaml", "overwrite_output_dir=false", "seed=9"]);
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    assert!(before == (folder.bytes("run/adapter_model.safetensors"), folder.bytes("run/trainer_log.jsonl")));
}
