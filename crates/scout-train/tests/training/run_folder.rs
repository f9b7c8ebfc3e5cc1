//! The folder a run leaves behind: lines of the log, result files, and that nobody's files are overwritten unasked.

use std::path::Path;

use scout_config::RunConfig;
use scout_core::{ByteCount, ExitCode};
use scout_telemetry::Progress;
use scout_train::prepare::prepare;
use scout_train::recorder::Recorder;
use scout_train::run;
use serde_json::Value;

use crate::bench::{Bench, on_every_rank, run_alone};

fn lines(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("trainer_log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bits_of(line: &Value, key: &str) -> u32 {
    let text = line[key].as_str().unwrap();
    assert_eq!(text.len(), 8, "{key}: {text}");
    u32::from_str_radix(text, 16).unwrap()
}

#[test]
fn every_logged_step_has_a_line_whose_loss_is_its_bits() {
    let bench = Bench::new();
    let outcome = run_alone(&bench.config(&["max_steps=5", "warmup_steps=2"])).unwrap();
    assert_eq!(outcome.losses.len(), 5);
    let lines = lines(&outcome.output_dir);
    assert_eq!(lines.len(), 5);
    let mut total_tokens = 0;
    for (step, (line, loss)) in lines.iter().zip(&outcome.losses).enumerate() {
        assert_eq!(line["current_steps"], step + 1);
        assert_eq!(line["total_steps"], 5);
        assert_eq!(bits_of(line, "loss_bits"), loss.to_bits(), "step {step}");
        assert_eq!(line["loss"].as_f64().unwrap() as f32, *loss, "step {step}");
        let norm = line["grad_norm"].as_f64().unwrap();
        assert_eq!(bits_of(line, "grad_norm_bits"), (norm as f32).to_bits());
        assert!(norm > 0.0);
        let peak = 1e-2;
        let expected = match step {
            0 => 0.0,
            1 => peak / 2.0,
            _ => peak * 0.5 * (1.0 + (std::f64::consts::PI * (step - 2) as f64 / 3.0).cos()),
        };
        assert!((line["lr"].as_f64().unwrap() - expected).abs() < 1e-12, "step {step}");
        assert!((line["epoch"].as_f64().unwrap() - (step + 1) as f64 / 24.0).abs() < 1e-12);
        total_tokens += line["tokens"].as_u64().unwrap();
        assert_eq!(line["total_tokens"], total_tokens);
        for key in ["step_time", "tok_s_gpu"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key}");
        }
        for key in ["mfu", "exposed_comm", "busiest_experts", "mem_peak"] {
            assert!(line.get(key).is_some(), "{key}");
        }
    }
    assert_eq!(outcome.summary.train.num_input_tokens_seen, total_tokens);
}

#[test]
fn a_line_is_the_mean_since_the_last_one_and_the_last_step_always_has_one() {
    let bench = Bench::new();
    let outcome = run_alone(&bench.config(&["max_steps=7", "logging_steps=3"])).unwrap();
    let lines = lines(&outcome.output_dir);
    let steps: Vec<u64> = lines.iter().map(|line| line["current_steps"].as_u64().unwrap()).collect();
    assert_eq!(steps, [3, 6, 7]);
    for (line, losses) in lines.iter().zip([&outcome.losses[..3], &outcome.losses[3..6], &outcome.losses[6..]]) {
        let mean = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
        assert!((line["loss"].as_f64().unwrap() / mean - 1.0).abs() < 1e-6, "{line}");
    }
    let mean = outcome.losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / 7.0;
    let results = json(&outcome.output_dir.join("train_results.json"));
    assert!((results["train_loss"].as_f64().unwrap() / mean - 1.0).abs() < 1e-9);
}

#[test]
fn evaluation_lines_stand_between_and_carry_no_loss() {
    let bench = Bench::new();
    let overrides = ["max_steps=5", "val_size=6", "eval_strategy=steps", "eval_steps=2"];
    let outcome = run_alone(&bench.config(&overrides)).unwrap();
    let lines = lines(&outcome.output_dir);
    let kinds: Vec<(u64, bool)> = lines
        .iter()
        .map(|line| (line["current_steps"].as_u64().unwrap(), line["eval_loss"].as_f64().is_some()))
        .collect();
    let expected = [(1, false), (2, false), (2, true), (3, false), (4, false), (4, true), (5, false), (5, true)];
    assert_eq!(kinds, expected);
    for line in &lines {
        assert_eq!(line.get("loss").is_none(), line["eval_loss"].is_number(), "{line}");
        assert_eq!(line.get("loss_bits").is_none(), line["eval_loss"].is_number(), "{line}");
    }
    let last = lines.last().unwrap()["eval_loss"].as_f64().unwrap();
    let eval = outcome.summary.eval.unwrap();
    assert_eq!(last as f32, eval.eval_loss as f32);
    let results = json(&outcome.output_dir.join("all_results.json"));
    assert!((results["eval_loss"].as_f64().unwrap() - eval.eval_loss).abs() < 1e-9);
    assert!(results["train_loss"].is_number());
}

#[test]
fn a_finished_run_leaves_every_file_that_scripts_look_for() {
    let bench = Bench::new();
    let outcome = run_alone(&bench.config(&["max_steps=2", "plot_loss=true"])).unwrap();
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "train_results.json",
        "all_results.json",
        "training_loss.png",
        "running_log.txt",
        "training_args.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        let metadata =
            std::fs::metadata(outcome.output_dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(metadata.len() > 0, "{name} is empty");
    }
    assert_eq!(std::fs::read_dir(outcome.output_dir.join("runs")).unwrap().count(), 1);
    let state = json(&outcome.output_dir.join("trainer_state.json"));
    assert_eq!(state["global_step"], 2);
    let history = state["log_history"].as_array().unwrap();
    assert_eq!(history.len(), 3, "two steps and the end: {history:?}");
    let adapter = json(&outcome.output_dir.join("adapter_config.json"));
    assert_eq!((&adapter["r"], &adapter["lora_alpha"]), (&Value::from(4), &Value::from(8)));
    // The file beside the results is the whole recipe: it loads as the configuration it was written from.
    let text = std::fs::read_to_string(outcome.output_dir.join("training_args.yaml")).unwrap();
    let loaded = scout_config::RunConfig::from_text("training_args.yaml", &text, &[], &[]).unwrap();
    assert_eq!(loaded.config, bench.config(&["max_steps=2", "plot_loss=true"]));
}

#[test]
fn a_folder_that_holds_something_is_refused_unless_it_may_be_overwritten() {
    let bench = Bench::new();
    let run = bench.path("run");
    std::fs::create_dir(&run).unwrap();
    run_alone(&bench.config(&["max_steps=3"])).expect("an empty folder is as good as none");
    let before = std::fs::read(run.join("adapter_model.safetensors")).unwrap();
    let error = run_alone(&bench.config(&["max_steps=1"])).map(|_| panic!("overwritten")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::BadConfig);
    assert_eq!(error.exit_code().code(), 78);
    assert!(error.to_string().contains(&run.display().to_string()), "{error}");
    assert!(error.hint().unwrap().contains("overwrite_output_dir"));
    assert!(std::fs::read(run.join("adapter_model.safetensors")).unwrap() == before);
    assert_eq!(lines(&run).len(), 3);

    run_alone(&bench.config(&["max_steps=1", "overwrite_output_dir=true", "seed=5"])).unwrap();
    assert_eq!(lines(&run).len(), 1, "the log of a fresh run starts empty");
    assert!(std::fs::read(run.join("adapter_model.safetensors")).unwrap() != before);
}

/// A run that came to no end, of which nothing but its beginnings is left.
fn begin(config: &RunConfig, result: ByteCount) -> scout_train::Result<Recorder> {
    let recorder = Recorder::create(config, result, &mut Progress::silent())?;
    recorder.begin(config)?;
    Ok(recorder)
}

#[test]
fn a_job_that_came_to_no_end_may_begin_again_in_its_folder() {
    let bench = Bench::new();
    let config = bench.config(&["max_steps=2"]);
    drop(begin(&config, ByteCount(0)).unwrap());
    // Left where it was killed while it wrote its adapter.
    std::fs::write(bench.path("run").join(".adapter_model.safetensors.77-0.tmp"), "half").unwrap();
    run_alone(&config).unwrap();
    assert_eq!(lines(&bench.path("run")).len(), 2);
    run_alone(&config).map(|_| panic!("a result was overwritten")).unwrap_err();
    // Nothing but events may be another program's.
    let folder = bench.path("other");
    std::fs::create_dir_all(folder.join("runs")).unwrap();
    std::fs::write(folder.join("runs").join("events.out.tfevents.1"), "mine").unwrap();
    let into_other = format!("output_dir={}", folder.display());
    begin(&bench.config(&[&into_other]), ByteCount(0)).map(|_| panic!("taken")).unwrap_err();
    assert!(folder.join("runs").join("events.out.tfevents.1").is_file());
}

#[test]
fn the_result_of_an_earlier_run_stays_until_training_begins() {
    let bench = Bench::new();
    run_alone(&bench.config(&["max_steps=1"])).unwrap();
    let config = bench.config(&["overwrite_output_dir=true", "lora_rank=2"]);
    let adapter = || std::fs::read(bench.path("run").join("adapter_model.safetensors")).ok();
    let arguments = || std::fs::read_to_string(bench.path("run").join("training_args.yaml")).unwrap();
    let before = (adapter(), arguments());
    assert!(before.0.is_some());
    Recorder::create(&config, ByteCount(u64::MAX), &mut Progress::silent()).map(|_| panic!("no room")).unwrap_err();
    let recorder = Recorder::create(&config, ByteCount(0), &mut Progress::silent()).unwrap();
    assert!((adapter(), arguments()) == before);
    recorder.begin(&config).unwrap();
    assert!(adapter().is_none() && arguments() != before.1);
}

#[test]
fn a_run_that_overwrites_leaves_no_result_of_the_earlier_one_though_it_came_to_no_end() {
    let bench = Bench::new();
    let run = bench.path("run");
    run_alone(&bench.config(&["max_steps=2", "val_size=0.2", "eval_strategy=epoch", "plot_loss=true"])).unwrap();
    std::fs::write(run.join("notes.txt"), "mine").unwrap();
    let config = bench.config(&["lora_rank=2", "overwrite_output_dir=true"]);
    drop(begin(&config, ByteCount(0)).unwrap());
    let mut left: Vec<String> =
        std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.retain(|name| !name.contains("token") && name != "chat_template.jinja");
    left.sort_unstable();
    assert_eq!(left, ["README.md", "notes.txt", "running_log.txt", "runs", "trainer_log.jsonl", "training_args.yaml"]);
    assert_eq!(std::fs::read_dir(run.join("runs")).unwrap().count(), 1, "two runs would be one curve");
    let lines = std::fs::read_to_string(run.join("trainer_log.jsonl")).unwrap();
    assert_eq!(lines, "");
}

#[test]
fn a_run_that_goes_on_from_an_adapter_keeps_it_until_it_has_another() {
    let bench = Bench::new();
    run_alone(&bench.config(&["max_steps=2"])).unwrap();
    let run = bench.path("run").display().to_string();
    let goes_on = bench.config(&["overwrite_output_dir=true", &format!("adapter_name_or_path={run}")]);
    drop(begin(&goes_on, ByteCount(0)).unwrap());
    assert!(bench.path("run").join("adapter_model.safetensors").is_file());
    assert!(!bench.path("run").join("train_results.json").exists());
}

#[test]
fn two_runs_do_not_write_to_one_folder() {
    let bench = Bench::new();
    let config = bench.config(&["max_steps=1", "overwrite_output_dir=true"]);
    let first = begin(&config, ByteCount(0)).unwrap();
    let error = run_alone(&config).map(|_| panic!("wrote beside another")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::CannotCreate, "{error}");
    assert!(error.to_string().starts_with("another run writes to") && error.hint().is_some(), "{error}");
    drop(first);
    run_alone(&config).unwrap();
}

#[test]
fn a_disk_without_room_for_the_result_is_found_before_the_first_step() {
    let bench = Bench::new();
    let error = begin(&bench.config(&[]), ByteCount(u64::MAX)).map(|_| panic!("no disk is that large")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::InputOutput);
    assert!(error.to_string().contains("left, and the result takes"), "{error}");
}

#[test]
fn a_log_that_finds_no_room_ends_no_run() {
    let bench = Bench::new();
    let run = bench.path("run");
    std::fs::create_dir(&run).unwrap();
    std::os::unix::fs::symlink("/dev/full", run.join("trainer_log.jsonl")).unwrap();
    let outcome = run_alone(&bench.config(&["max_steps=2", "overwrite_output_dir=true"])).unwrap();
    assert_eq!(outcome.losses.len(), 2);
    assert!(run.join("adapter_model.safetensors").is_file() && run.join("trainer_state.json").is_file());
}

#[test]
fn a_run_never_writes_into_the_folder_of_its_model() {
    let bench = Bench::new();
    let model = bench.path("model");
    std::os::unix::fs::symlink(&model, bench.path("link")).unwrap();
    let tokenizer = || std::fs::read(model.join("tokenizer.json")).unwrap();
    let before = tokenizer();
    for name in ["model", "link"] {
        let words = [format!("output_dir={}", bench.path(name).display()), "overwrite_output_dir=true".to_string()];
        let config = bench.config(&words.each_ref().map(String::as_str));
        let error = prepare(&config, 1).map(|_| panic!("{name} was taken")).unwrap_err();
        assert!(error.to_string().contains("is the folder of the base model"), "{error}");
    }
    // A link among the files of a run folder is replaced, and nothing is written through it.
    let run = bench.path("run");
    std::fs::create_dir(&run).unwrap();
    std::os::unix::fs::symlink(model.join("tokenizer.json"), run.join("tokenizer.json")).unwrap();
    run_alone(&bench.config(&["max_steps=1", "overwrite_output_dir=true"])).unwrap();
    assert!(tokenizer() == before && !before.is_empty());
    assert!(std::fs::read(run.join("tokenizer.json")).unwrap() == before);
    assert!(!run.join("tokenizer.json").is_symlink());
}

#[test]
fn what_ends_one_rank_ends_the_others_with_its_reason() {
    let bench = Bench::new();
    let config = bench.config(&[]);
    std::fs::create_dir_all(bench.path("run")).unwrap();
    std::fs::write(bench.path("run").join("something"), "in the way").unwrap();
    let begun = std::time::Instant::now();
    let errors = on_every_rank(3, |job| {
        let prepared = prepare(&config, 3).unwrap();
        run::run(&config, prepared, &job, &mut Progress::silent()).unwrap_err().with_causes()
    });
    assert!(errors[0].ends_with("is not empty"), "{}", errors[0]);
    for error in &errors[1..] {
        assert!(error.contains("the ranks were ended: rank 0: ") && error.ends_with("is not empty"), "{error}");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "nobody waits for the deadline");
}
