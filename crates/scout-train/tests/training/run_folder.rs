//! The folder a run leaves behind: lines of the log, result files, and that nobody's files are overwritten unasked.

use std::path::Path;

use scout_core::ExitCode;
use scout_telemetry::Progress;
use scout_train::prepare::prepare;
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
