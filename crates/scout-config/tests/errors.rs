//! Every mistake is one line that names the place, what was found and what was expected, and ends with code 78.

use scout_config::{Accepts, ConfigError, KEYS, RunConfig, Treatment};
use scout_core::ExitCode;

fn error_of(text: &str, overrides: &[&str], environment: &[(&str, &str)]) -> ConfigError {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    let environment: Vec<(String, String)> =
        environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    match RunConfig::from_text("run.yaml", text, &overrides, &environment) {
        Ok(_) => panic!("{text:?} {overrides:?} {environment:?} was accepted"),
        Err(error) => error,
    }
}

fn check_message(error: &ConfigError, expected: &str) {
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.exit_code(), ExitCode::BadConfig, "{expected}");
}

/// One line of a file that is otherwise good, and the message about it without the name of the file.
fn check(line: &str, expected: &str) {
    check_message(&error_of(&format!("random_weights: true\n{line}\n"), &[], &[]), &format!("run.yaml:{expected}"));
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    check("learnin_rate: 1e-4", "2:1: unknown key learnin_rate, did you mean learning_rate?");
    check("Lora-Rank: 8", "2:1: unknown key Lora-Rank, did you mean lora_rank?");
    check("wibble: 8", "2:1: unknown key wibble");
    check("max_epochs: 8", "2:1: unknown key max_epochs");
    check("shuffling: false", "2:1: unknown key shuffling");
    check("\"a\\nb\": 8", "2:1: unknown key a\\nb");
    check("1: 8", "2:1: unknown key 1");
}

#[test]
fn all_keys_that_are_unknown_or_refused_are_told_at_once() {
    let text = "lora_rang: 8\nuse_dora: true\nseed:\nrandom_weights: true\nwibble: 1\noptim: sgd\nstage: dpo\n";
    let error = error_of(text, &["learnin_rate=1", "seed="], &[("SCOUT_DIST__LORA_RANC", "8")]);
    let lines = [
        "run.yaml:1:1: unknown key lora_rang, did you mean lora_rank?",
        "run.yaml:2:11: use_dora: found true, expected false: DoRA is not built yet",
        "run.yaml:3:5: seed: found no value, expected one (`null` asks for the default 42)",
        "run.yaml:5:1: unknown key wibble",
        "run.yaml:6:8: optim: found \"sgd\", expected adamw_torch, adamw_torch_fused or adamw_hf: AdamW is the only \
         optimizer that is built",
        "run.yaml:7:8: stage: found \"dpo\", expected sft: supervised fine-tuning is the only stage that is built",
        "environment SCOUT_DIST__LORA_RANC: unknown key lora_ranc, did you mean lora_rank?",
        "override learnin_rate=1: unknown key learnin_rate, did you mean learning_rate?",
        "override seed=: found no value, expected one (`null` asks for the default)",
    ];
    check_message(&error, &lines.join("\n"));
    assert_eq!(error.hint(), None);
}

#[test]
fn a_file_that_is_no_run_fills_no_terminal() {
    let keys: String = (0..9_000).map(|index| format!("some_key_{index}: 1\n")).collect();
    let start = std::time::Instant::now();
    let error = error_of(&keys, &[], &[]);
    assert_eq!(error.to_string().lines().count(), 20);
    assert_eq!(error.hint().as_deref(), Some("8980 more mistakes are not shown"));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn an_empty_place_is_no_wish_where_the_default_is_a_value() {
    check("lora_rank:", "2:10: lora_rank: found no value, expected one (`null` asks for the default 8)");
    check(
        "learning_rate: # later",
        "2:14: learning_rate: found no value, expected one (`null` asks for the default 5e-5)",
    );
    let loaded =
        RunConfig::from_text("run.yaml", "random_weights: true\nmax_samples:\nuse_dora:\nlogging_dir:\n", &[], &[]);
    assert!(loaded.unwrap().notes.is_empty());
}

#[test]
fn wrong_values_name_what_was_found_and_what_is_allowed() {
    check("learning_rate: fast", "2:16: learning_rate: found \"fast\", expected a number greater than 0");
    check("learning_rate: -1e-4", "2:16: learning_rate: found -1e-4, expected a number greater than 0");
    check("learning_rate: .nan", "2:16: learning_rate: found .nan, expected a number greater than 0");
    check("learning_rate: 1e999", "2:16: learning_rate: found 1e999, expected a number greater than 0");
    check("learning_rate: [1]", "2:16: learning_rate: found [1], expected a number greater than 0");
    check("num_train_epochs: 0", "2:19: num_train_epochs: found 0, expected a number greater than 0");
    check("lora_rank: 0", "2:12: lora_rank: found 0, expected a whole number of at least 1");
    check("lora_rank: 8.5", "2:12: lora_rank: found 8.5, expected a whole number of at least 1");
    check("lora_rank: yes", "2:12: lora_rank: found yes, expected a whole number of at least 1");
    check("cutoff_len: 3e9", "2:13: cutoff_len: found 3e9, expected a whole number of at least 1");
    check("cutoff_len: 3000000000", "2:13: cutoff_len: found 3000000000, expected a whole number from 1 to 2147483647");
    check(
        "seed: 010",
        "2:7: seed: found 010, expected a whole number of at least 0, without a leading 0, which some readers take for \
         octal",
    );
    check("max_steps: 0", "2:12: max_steps: found 0, expected -1, or a whole number from 1 to 2147483647");
    check("lora_dropout: 1", "2:15: lora_dropout: found 1, expected a number from 0 up to, but without 1");
    check("warmup_ratio: 1.5", "2:15: warmup_ratio: found 1.5, expected a number from 0 to 1");
    check("packing: maybe", "2:10: packing: found \"maybe\", expected true or false");
    check("packing: 1", "2:10: packing: found 1, expected true or false");
    check("template: llama3", "2:11: template: found \"llama3\", expected llama4");
    check("device: gpu", "2:9: device: found \"gpu\", expected auto, cpu or cuda");
    check(
        "resident_layers: some",
        "2:18: resident_layers: found \"some\", expected auto or a whole number of at least 0",
    );
    check("resident_layers: -1", "2:18: resident_layers: found -1, expected auto or a whole number of at least 0");
    check(
        "lr_scheduler_type: polynomial",
        "2:20: lr_scheduler_type: found \"polynomial\", expected linear, cosine, constant or constant_with_warmup",
    );
    check(
        "device_memory: lots",
        "2:16: device_memory: found \"lots\", expected a number of bytes such as `80GiB`, `512MiB` or `1048576`",
    );
    check(
        "max_row_bytes: 010",
        "2:16: max_row_bytes: found 010, expected a number of bytes such as `80GiB`, `512MiB` or `1048576`",
    );
    check("init_timeout: 0", "2:15: init_timeout: found 0, expected a number greater than 0");
    check("init_timeout: 1e10", "2:15: init_timeout: found 1e10, expected a number of seconds up to 1e9");
    check(
        "val_size: 10.5",
        "2:11: val_size: found 10.5, expected 0, a share below 1, or a whole number of rows above 1",
    );
    check("output_dir: {a: b}", "2:13: output_dir: found a map, expected a path");
    check("output_dir: ''", "2:13: output_dir: found \"\", expected a text on one line, not empty");
    check(
        "output_dir: ${HOME}/out",
        "2:13: output_dir: found \"${HOME}/out\", expected the value itself, `${…}` is not replaced",
    );
    check("output_dir: ~/out", "2:13: output_dir: found \"~/out\", expected the whole path, `~` is not replaced");
    check("dataset_dir: '~'", "2:14: dataset_dir: found \"~\", expected the whole path, `~` is not replaced");
    check(
        "model_name_or_path: ~/m",
        "2:21: model_name_or_path: found \"~/m\", expected the whole path, `~` is not replaced",
    );
    check("dataset: [a, ~/b.json]", "2:10: dataset: found \"~/b.json\", expected the whole path, `~` is not replaced");
    check(
        "dataset: a,,b",
        "2:10: dataset: found \"a,,b\", expected names separated by commas, or a list of names, none of them empty",
    );
    check(
        "dataset:\n  - a\n  - {b: c}",
        "3:3: dataset: found [\"a\", a map], expected names separated by commas, or a list of names",
    );
    check("adapter_name_or_path: a,b", "2:23: adapter_name_or_path: found \"a,b\", expected the folder of one adapter");
    check("template: \"a\\nb\"", "2:11: template: found \"a\\nb\", expected a text on one line, not empty");
}

#[test]
fn unknown_targets_name_the_known_ones() {
    let allowed = "all, all+experts, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, experts, \
                   experts.gate_up_proj or experts.down_proj";
    check("lora_target: q_proj,qproj", &format!("2:14: lora_target: found \"qproj\", expected {allowed}"));
    check(
        "lora_target: [router]",
        &format!("2:14: lora_target: found \"router\", expected {allowed}: routers get no adapter"),
    );
}

#[test]
fn modules_that_freeze_does_not_know_are_answered_with_those_it_knows() {
    let inside = "all, self_attn, feed_forward, input_layernorm, post_attention_layernorm, q_proj, k_proj, v_proj, o_proj, \
                  router, experts or shared_expert";
    check(
        "freeze_trainable_modules: self_attn,mlp",
        &format!("2:27: freeze_trainable_modules: found \"mlp\", expected {inside}"),
    );
    check(
        "freeze_extra_modules: [vision_model]",
        "2:23: freeze_extra_modules: found \"vision_model\", expected embed_tokens, norm or lm_head",
    );
    let layers = "a whole number: the last so many layers, or the first so many below 0";
    for wrong in ["two", "1.5", "1e12"] {
        let found = if wrong == "two" { "\"two\"" } else { wrong };
        check(
            &format!("freeze_trainable_layers: {wrong}"),
            &format!("2:26: freeze_trainable_layers: found {found}, expected {layers}"),
        );
    }
}

#[test]
fn an_adapter_to_start_from_belongs_to_lora() {
    for kind in ["full", "freeze"] {
        let message =
            error_of("random_weights: true\nadapter_name_or_path: a", &[&format!("finetuning_type={kind}")], &[]);
        let expected = format!(
            "run.yaml:2:23: adapter_name_or_path: found \"a\" with finetuning_type \"{kind}\", expected finetuning_type lora"
        );
        check_message(&message, &expected);
    }
}

#[test]
fn what_is_not_built_is_refused_with_the_reason() {
    check("finetuning_type: oft", "2:18: finetuning_type: found \"oft\", expected lora, full or freeze");
    check(
        "weights: zero3-nf4",
        "2:10: weights: found \"zero3-nf4\", expected auto, zero3, resident or expert-resident: \
         zero3-nf4 is not built yet",
    );
    check("quantization_bit: 4", "2:19: quantization_bit: found 4, expected null: 4-bit is not built yet");
    check(
        "stage: dpo",
        "2:8: stage: found \"dpo\", expected sft: supervised fine-tuning is the only stage that is built",
    );
    check("video_fps: 2", "2:12: video_fps: found 2, expected null: Scout takes no videos");
    check(
        "freeze_vision_tower: false",
        "2:22: freeze_vision_tower: found false, expected true: the vision tower is not trained",
    );
    check(
        "freeze_language_model: yes",
        "2:24: freeze_language_model: found yes, expected false: the language model is what is trained",
    );
    check(
        "resume_from_checkpoint: out/checkpoint-5",
        "2:25: resume_from_checkpoint: found \"out/checkpoint-5\", expected false: every run starts afresh, resuming is \
         not built yet",
    );
}

#[test]
fn wishes_for_other_training_are_refused_by_their_value() {
    for (line, column, found, expected) in [
        (
            "optim: adafactor",
            8,
            "\"adafactor\"",
            "adamw_torch, adamw_torch_fused or adamw_hf: AdamW is the only optimizer that is built",
        ),
        ("fp16: true", 7, "true", "false: GPUs compute in bf16, fp16 is not built"),
        ("pure_bf16: true", 12, "true", "false: what is trained is held in f32"),
        ("streaming: true", 12, "true", "false: streaming is not built yet"),
        ("use_galore: yes", 13, "yes", "false: AdamW is the only optimizer that is built"),
        ("pissa_init: true", 13, "true", "false: PiSSA is not built yet"),
        ("neftune_noise_alpha: 5", 22, "5", "0: NEFTune is not built yet"),
        ("label_smoothing_factor: 0.1", 25, "0.1", "0: label smoothing is not built yet"),
        ("loraplus_lr_ratio: 16", 20, "16", "null: LoRA+ is not built yet"),
        (
            "eval_dataset: a",
            15,
            "\"a\"",
            "null: data sets for evaluation alone are not built yet, `val_size` holds rows back",
        ),
        (
            "mix_strategy: interleave_over",
            15,
            "\"interleave_over\"",
            "concat: data sets follow each other, mixing them is not built yet",
        ),
        ("interleave_probs: 0.1,0.9", 19, "\"0.1,0.9\"", "null: mixing data sets is not built yet"),
        ("predict_with_generate: true", 24, "true", "false: prediction is not built yet"),
        ("simpo_gamma: 0.5", 14, "0.5", "null: preference training is not built yet"),
        (
            "save_strategy: best",
            16,
            "\"best\"",
            "steps, epoch or no: what is trained is written at the end of the run, checkpoints on the way are not \
             built yet",
        ),
        ("data_seed: 1", 12, "1 with seed 42", "the same of both: the order of rows follows seed"),
        ("data_seed: x", 12, "\"x\"", "a number of at least 0"),
    ] {
        let key = line.split(':').next().unwrap();
        check(line, &format!("2:{column}: {key}: found {found}, expected {expected}"));
    }
}

#[test]
fn keys_without_effect_are_still_checked() {
    check("save_steps: often", "2:13: save_steps: found \"often\", expected a number of at least 0");
    check("trust_remote_code: 3", "2:20: trust_remote_code: found 3, expected true or false");
    check("do_train: false", "2:11: do_train: found false, expected true: the command says whether to train");
    check("export_dir: [a]", "2:13: export_dir: found [\"a\"], expected a text");
    check("ddp_timeout: never", "2:14: ddp_timeout: found \"never\", expected a number greater than 0");
}

#[test]
fn wishes_that_exclude_each_other_are_errors() {
    check(
        "train_on_prompt: true\nmask_history: true",
        "3:15: mask_history: found true with train_on_prompt true, expected only one of them: prompts in the history \
         would be both learned and masked",
    );
    check(
        "lora_target: all+experts\nlora_dropout: 0.1",
        "3:15: lora_dropout: found 0.1 with lora_target \"all+experts\", expected lora_dropout 0: PEFT loads no adapter \
         that has dropout on routed experts",
    );
    check(
        "val_size: 0.1",
        "2:11: val_size: found 0.1 with eval_strategy no, expected eval_strategy steps or epoch: rows held back would be \
         neither learned nor evaluated",
    );
    check("eval_strategy: epoch", "2:16: eval_strategy: found \"epoch\" with val_size 0, expected a val_size above 0");
    check("eval_steps: 5", "2:13: eval_steps: found 5 with eval_strategy no, expected eval_strategy steps");
    check(
        "lr_scheduler_type: constant\nwarmup_ratio: 0.1",
        "3:15: warmup_ratio: found 0.1 with lr_scheduler_type \"constant\", expected constant_with_warmup, or no warm-up",
    );
    check(
        "packing: false\nneat_packing: true",
        "3:15: neat_packing: found true with packing false, expected the same of both",
    );
    check(
        "weights: resident\nresident_layers: 4",
        "3:18: resident_layers: found 4 with weights \"resident\", expected weights zero3, expert-resident or auto: \
         with a whole copy on each rank all layers are resident",
    );
    check(
        "device: cpu\ngather: nccl",
        "3:9: gather: found \"nccl\" with device \"cpu\", expected gather auto, or device cuda",
    );
}

#[test]
fn broken_files_name_line_and_column() {
    for (text, expected) in [
        ("", "1:1: found no keys, expected keys and values such as `learning_rate: 1e-4`"),
        ("# nothing\n", "2:1: found no keys, expected keys and values such as `learning_rate: 1e-4`"),
        ("- a\n", "1:1: found a list, expected keys and values such as `learning_rate: 1e-4`"),
        ("lora_rank 8\n", "1:1: found \"lora_rank 8\", expected keys and values such as `learning_rate: 1e-4`"),
        ("lora_rank: 8\nseed: 1\nlora_rank: 9\n", "3:1: duplicate key lora_rank, first at run.yaml:1:1"),
        ("lora_rank: [8\nseed: 1\n", "2:5: illegal placement of ':' indicator"),
        ("a: 1\n---\nb: 2\n", "3:1: found a second document, expected one"),
    ] {
        check_message(&error_of(text, &[], &[]), &format!("run.yaml:{expected}"));
    }
    check_message(
        &error_of("{}", &[], &[]),
        "run.yaml:1:1: missing key model_name_or_path, expected the folder of the model, or `random_weights: true`",
    );
}

#[test]
fn overrides_and_variables_are_named_as_written() {
    let good = "random_weights: true\n";
    for (text, expected) in [
        ("lora_rank=abc", "override lora_rank=abc: lora_rank: found \"abc\", expected a whole number of at least 1"),
        ("learnin_rate=1", "override learnin_rate=1: unknown key learnin_rate, did you mean learning_rate?"),
        ("lora_rank", "override lora_rank: found no `=`, expected `key=value`"),
        ("lora_rank=", "override lora_rank=: found no value, expected one (`null` asks for the default)"),
        ("dataset=[a", "override dataset=[a: unclosed bracket '['"),
        ("dataset={a: 1, a: 2}", "override dataset={a: 1, a: 2}: duplicate key a"),
        ("a\nb=1", "override a\\nb=1: unknown key a\\nb"),
    ] {
        check_message(&error_of(good, &[text], &[]), expected);
    }
    check_message(
        &error_of(good, &[], &[("SCOUT_DIST__LORA_RANK", "abc")]),
        "environment SCOUT_DIST__LORA_RANK: lora_rank: found \"abc\", expected a whole number of at least 1",
    );
    check_message(
        &error_of(good, &[], &[("SCOUT_DIST__LORA_RANG", "8")]),
        "environment SCOUT_DIST__LORA_RANG: unknown key lora_rang, did you mean lora_rank?",
    );
}

/// The proof that no key is dropped in silence: a value that fits none is an error about just that key.
#[test]
fn every_key_rejects_a_value_that_cannot_be_meant() {
    for key in KEYS.iter().filter(|key| !matches!(key.treatment, Treatment::Inert(Accepts::Anything, _))) {
        let text = if key.name == "random_weights" { "{}" } else { "random_weights: true" };
        let message = error_of(text, &[&format!("{}={{no: sense}}", key.name)], &[]).to_string();
        assert!(message.contains(&format!(": {}: found a map, expected ", key.name)), "{message}");
    }
}

#[test]
fn refused_keys_say_why_and_null_is_always_accepted() {
    for key in KEYS {
        let nulled = [format!("{}=null", key.name)];
        let text = if key.name == "random_weights" { "model_name_or_path: m" } else { "random_weights: true" };
        let loaded = RunConfig::from_text("run.yaml", text, &nulled, &[]);
        assert!(loaded.is_ok_and(|loaded| loaded.notes.is_empty()), "{}", key.name);
        let expected = match key.treatment {
            Treatment::Refused(reason) => format!("expected null: {reason}"),
            Treatment::Only(_, reason) => format!(": {reason}"),
            _ => continue,
        };
        let message = error_of("random_weights: true", &[&format!("{}=4", key.name)], &[]).to_string();
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[test]
fn a_run_without_data_or_output_cannot_train() {
    let loaded = |text: &str| RunConfig::from_text("run.yaml", text, &[], &[]).unwrap();
    for (text, expected) in [
        (
            "random_weights: true\noutput_dir: out\n",
            "run.yaml:1:1: missing key dataset, expected names from `dataset_info.json` or paths of data files",
        ),
        (
            "random_weights: true\ndataset: a\n",
            "run.yaml:1:1: missing key output_dir, expected the folder the run writes to",
        ),
    ] {
        check_message(&loaded(text).check_for_training().unwrap_err(), expected);
    }
}
