//! Every way to train that the configuration offers: it runs, its adapter says what it is, and the adapter loads again.

use serde_json::{Value, json};

use crate::folder::{Folder, tensors};

const PREFIX: &str = "base_model.model.model.layers.0.";

#[test]
fn every_choice_of_targets_trains_and_loads_again() {
    let folder = Folder::with_toy();
    let routed = ["feed_forward.experts.down_proj", "feed_forward.experts.gate_up_proj"];
    let check = |target: &str, modules: Value, parameters: Value, name: &str| {
        folder.succeed(&["train", "run.yaml", &format!("lora_target={target}")]);
        let config = folder.json("run/adapter_config.json");
        assert_eq!((&config["target_modules"], &config["target_parameters"]), (&modules, &parameters), "{target}");
        let tensors = tensors(&folder.path("run/adapter_model.safetensors"));
        assert!(tensors.contains_key(&format!("{PREFIX}{name}.lora_A.weight")), "{target}: {:?}", tensors.keys());
        loads_again(&folder, target);
    };
    check("[q_proj, v_proj]", json!(["q_proj", "v_proj"]), json!(null), "self_attn.q_proj");
    check("gate_proj", json!(["gate_proj"]), json!(null), "feed_forward.shared_expert.gate_proj");
    check("experts", json!([]), json!(routed), "feed_forward.experts.base_layer");
    check("experts.down_proj", json!([]), json!(routed[..1]), "feed_forward.experts");
    check("[o_proj, experts.gate_up_proj]", json!(["o_proj"]), json!(routed[1..]), "feed_forward.experts");
    let all = json!(["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]);
    check("all+experts", all, json!(routed), "feed_forward.experts");
}

#[test]
fn every_setting_of_the_adapter_is_written_and_read_again() {
    let folder = Folder::with_toy();
    for (changes, key, expected) in [
        (["use_rslora=true", "lora_alpha=6"], "use_rslora", json!(true)),
        (["use_rslora=true", "lora_alpha=6"], "lora_alpha", json!(6)),
        (["lora_dropout=0.25", "lora_target=all"], "lora_dropout", json!(0.25)),
        (["lora_rank=7", "lora_target=all+experts"], "r", json!(7)),
        (["lora_rank=7", "lora_target=all+experts"], "lora_alpha", json!(14)),
    ] {
        folder.succeed(&["train", "run.yaml", changes[0], changes[1]]);
        assert_eq!(folder.json("run/adapter_config.json")[key], expected, "{changes:?}");
        loads_again(&folder, changes[0]);
    }
}

/// Going on from an adapter begins where it ended: with steps of no size the adapter stays what it was.
fn loads_again(folder: &Folder, what: &str) {
    let start = "adapter_name_or_path=run";
    let ended = folder.succeed(&["train", "run.yaml", start, "output_dir=again", "learning_rate=1e-30", "max_steps=1"]);
    assert!(ended.stderr.contains("going on from the adapter's own rank"), "{what}: {}", ended.stderr);
    let [before, after] = ["run", "again"].map(|run| folder.json(&format!("{run}/adapter_config.json")));
    assert_eq!(before, after, "{what}");
    let [before, after] = ["run", "again"].map(|run| folder.bytes(&format!("{run}/adapter_model.safetensors")));
    assert!(before == after, "{what}: the adapter changed on the way");
}

#[test]
fn a_dropout_changes_the_steps_and_its_seed_repeats_them() {
    let folder = Folder::with_toy();
    let run = |output: &str, changes: &[&str]| {
        let output = format!("output_dir={output}");
        // Without weight in B nothing is dropped that could be seen, so the first step is like any other.
        folder.succeed(&[&["train", "run.yaml", "warmup_steps=0", &output], changes].concat());
    };
    run("plain", &[]);
    run("dropped", &["lora_dropout=0.5"]);
    run("again", &["lora_dropout=0.5"]);
    assert_eq!(folder.bits("dropped"), folder.bits("again"));
    assert_ne!(folder.bits("dropped"), folder.bits("plain"));
}

#[test]
fn rows_may_be_packed_accumulated_and_weighed_in_either_way() {
    let folder = Folder::with_toy();
    let epoch = ["max_steps=null", "num_train_epochs=1", "learning_rate=1e-3"];
    let run = |changes: &[&str]| {
        folder.succeed(&[&["train", "run.yaml"], &epoch[..], changes].concat());
        folder.losses("run")
    };
    let whole = run(&["per_device_train_batch_size=4"]);
    assert_eq!(whole.len(), 24);
    // Which rows make an update depends on the product alone, and so does the loss by tokens.
    let halves = run(&["per_device_train_batch_size=2", "gradient_accumulation_steps=2"]);
    assert_eq!(halves.len(), 24);
    assert!((whole[0] - halves[0]).abs() < 1e-5 && (whole[23] - halves[23]).abs() < 1e-3, "{whole:?} {halves:?}");
    // The mean of micro-batch means is another number, but not by much.
    let means =
        run(&["per_device_train_batch_size=2", "gradient_accumulation_steps=2", "loss_reduction=micro_batch_mean"]);
    assert!(means[0] != halves[0] && (means[0] - halves[0]).abs() < 0.5, "{means:?} {halves:?}");
    // 96 rows of up to 39 tokens into micro-batches of 4 x 128.
    for key in ["packing=true", "neat_packing=true"] {
        let packed = run(&["per_device_train_batch_size=4", key]);
        assert!((6..=8).contains(&packed.len()), "{key}: {} steps", packed.len());
    }
}

#[test]
fn rows_held_back_are_scored_and_never_learned() {
    let folder = Folder::with_toy();
    let keys = ["val_size=0.25", "eval_strategy=steps", "eval_steps=2", "max_steps=5", "logging_steps=1"];
    let ended = folder.succeed(&[&["train", "run.yaml"], &keys[..]].concat());
    assert!(ended.stderr.contains("steps      5 (72 rows, 18 updates an epoch"), "{}", ended.stderr);
    let log = folder.log("run");
    let scored: Vec<&Value> = log.iter().filter(|line| !line["eval_loss"].is_null()).collect();
    let at: Vec<u64> = scored.iter().map(|line| line["current_steps"].as_u64().unwrap()).collect();
    assert_eq!((at, log.len()), (vec![2, 4, 5], 8));
    for line in &scored {
        assert!(line.get("loss").is_none() && line.get("loss_bits").is_none(), "{line}");
        assert!(line["eval_loss"].as_f64().unwrap() > 0.0, "{line}");
    }
    let eval = folder.json("run/eval_results.json");
    assert!((eval["eval_loss"].as_f64().unwrap() - scored[2]["eval_loss"].as_f64().unwrap()).abs() < 1e-5);
    let all = folder.json("run/all_results.json");
    assert_eq!((&all["eval_loss"], all["train_loss"].is_number()), (&eval["eval_loss"], true));
}

#[test]
fn a_whole_copy_and_a_shard_give_the_same_bits() {
    let folder = Folder::with_toy();
    folder.succeed(&["train", "run.yaml", "weights=zero3", "lora_target=all+experts"]);
    let sharded = folder.bits("run");
    folder.succeed(&["train", "run.yaml", "weights=resident", "lora_target=all+experts"]);
    assert_eq!(folder.bits("run"), sharded);
}

#[test]
fn every_schedule_moves_the_learning_rate_as_its_name_says() {
    let folder = Folder::with_toy();
    for (schedule, warmup, expected) in [
        ("linear", "warmup_steps=0", [1.0, 0.75, 0.5, 0.25]),
        ("constant", "warmup_steps=0", [1.0, 1.0, 1.0, 1.0]),
        ("constant_with_warmup", "warmup_steps=2", [0.0, 0.5, 1.0, 1.0]),
        ("cosine", "warmup_ratio=0.5", [0.0, 0.5, 1.0, 0.5]),
    ] {
        let kind = format!("lr_scheduler_type={schedule}");
        folder.succeed(&["train", "run.yaml", "max_steps=4", "learning_rate=1e-3", &kind, warmup]);
        let rates: Vec<f64> = folder.log("run").iter().map(|line| line["lr"].as_f64().unwrap()).collect();
        for (rate, share) in rates.iter().zip(expected) {
            assert!((rate - 1e-3 * share).abs() < 1e-12, "{schedule}: {rates:?}");
        }
    }
}

#[test]
fn the_names_in_an_adapter_follow_the_checkpoint_or_the_wish() {
    const TEXT: &str = "base_model.model.model.layers.";
    const CONDITIONAL: &str = "base_model.model.language_model.model.layers.";
    let folder = Folder::with_toy();
    let vision = format!("model_name_or_path={}", scout_tests::fixtures().join("tiny-scout-vision").display());
    for (changes, prefix) in [
        (vec!["adapter_layout=auto"], TEXT),
        (vec!["adapter_layout=conditional"], CONDITIONAL),
        (vec!["adapter_layout=conditional", "lora_target=all+experts"], CONDITIONAL),
        (vec![vision.as_str(), "adapter_layout=auto"], CONDITIONAL),
        (vec![vision.as_str(), "adapter_layout=text"], TEXT),
    ] {
        folder.succeed(&[&["train", "run.yaml", "max_steps=1"], &changes[..]].concat());
        let names: Vec<String> = tensors(&folder.path("run/adapter_model.safetensors")).into_keys().collect();
        assert!(names.iter().all(|name| name.starts_with(prefix)), "{changes:?}: {names:?}");
        let modules = &folder.json("run/adapter_config.json")["target_modules"];
        // Bare names would also wrap the vision tower of the full class.
        let by_pattern = modules.as_str().is_some_and(|pattern| pattern.starts_with(r"language_model\..*\.("));
        assert_eq!(by_pattern, prefix == CONDITIONAL, "{modules}");
        folder.succeed(
            &[&["train", "run.yaml", "adapter_name_or_path=run", "output_dir=again", "max_steps=1"], &changes[..]]
                .concat(),
        );
    }
}
