//! Files in the manner of LLaMA-Factory's examples: those that must load as they are, and those that are refused with
//! the reason. The texts are our own.

use std::path::PathBuf;
use std::time::Duration;

use scout_config::{
    DeviceKind, EvalStrategy, Gather, Loaded, LoraTargets, LossReduction, LrSchedulerType, ResidentLayers, RunConfig,
    Weights,
};
use scout_core::ByteCount;

const SCOUT_ZERO3: &str = r"# Scout, eight GPUs

### model
model_name_or_path: meta-llama/Llama-4-Scout-17B-16E-Instruct
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
deepspeed: examples/deepspeed/ds_z3_config.json  # choices: [ds_z0_config.json, ds_z3_config.json]

### dataset
dataset: identity,alpaca_en_demo
template: llama4
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/scout/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
# eval_dataset: alpaca_en_demo
# val_size: 0.1
# eval_strategy: steps
# eval_steps: 500
";

const WITH_EVALUATION: &str = r#"
model_name_or_path: /models/scout
stage: sft
do_train: yes
finetuning_type: lora
lora_target: q_proj, v_proj
lora_alpha: 32
lora_dropout: 0.05
use_rslora: true
dataset:
  - identity
  - "./my, data.jsonl"
dataset_dir: /data
template: llama4
output_dir: out
learning_rate: 2e-5
max_steps: 100
num_train_epochs: 1
lr_scheduler_type: constant_with_warmup
warmup_steps: 5
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 50
report_to: [none]
"#;

const IN_FOUR_BIT_STYLE_WITHOUT_BITS: &str = r"
model_name_or_path: /models/scout
quantization_bit: null
quantization_method: bnb
double_quantization: false
stage: sft
do_train: true
finetuning_type: lora
lora_target: all+experts
dataset: alpaca_en_demo
output_dir: out
eval_strategy: no
";

const WITH_PICTURES_KEYS: &str = r"
model_name_or_path: /models/scout
image_max_pixels: 262144
freeze_vision_tower: true
freeze_multi_modal_projector: true
freeze_language_model: false
finetuning_type: lora
dataset: alpaca_en_demo
packing: true
output_dir: out
ray_num_workers: 4
";

const MERGE: &str = r"
### Note: do not merge into a quantised model
model_name_or_path: /models/scout
adapter_name_or_path: saves/scout/lora/sft
template: llama4
trust_remote_code: true
export_dir: output/scout_sft
export_size: 5
export_device: cpu  # choices: [cpu, auto]
export_legacy_format: false
";

/// As the web page of LLaMA-Factory writes its files, with what users add to them.
const FROM_THE_WEB_PAGE: &str = r"
bf16: true
cutoff_len: 2048
dataset: identity
dataset_dir: data
ddp_timeout: 180000000
do_train: true
enable_thinking: true
finetuning_type: lora
flash_attn: auto
gradient_accumulation_steps: 8
include_num_input_tokens_seen: true
learning_rate: 5.0e-05
logging_steps: 5
lora_alpha: 16
lora_dropout: 0
lora_rank: 8
lora_target: all
lr_scheduler_type: cosine
max_grad_norm: 1.0
max_samples: 100000
model_name_or_path: /models/scout
num_train_epochs: 3.0
optim: adamw_torch
output_dir: saves/scout/lora/train
packing: false
per_device_train_batch_size: 2
plot_loss: true
preprocessing_num_workers: 16
report_to: none
save_steps: 100
stage: sft
template: llama4
trust_remote_code: true
warmup_steps: 0
gradient_checkpointing: true
enable_liger_kernel: true
logging_dir: logs
run_name: first
save_strategy: no
save_total_limit: 3
fp16: false
streaming: false
use_dora: false
neftune_noise_alpha: 0.0
label_smoothing_factor: 0
mix_strategy: concat
data_seed: 42
";

const OUR_OWN_KEYS: &str = r"
random_weights: true
weights: zero3
resident_layers: 12
device: cuda
device_memory: 80GiB
gather: nccl
loss_reduction: micro_batch_mean
adapter_layout: text
hang_limit: 30
init_timeout: 60
max_row_bytes: 1MiB
deterministic: true
max_steps: -1
";

fn load(text: &str) -> Loaded {
    RunConfig::from_text("run.yaml", text, &[], &[]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn example_files_load_as_they_are() {
    for text in [MERGE, OUR_OWN_KEYS] {
        load(text);
    }
    for text in [SCOUT_ZERO3, WITH_EVALUATION, IN_FOUR_BIT_STYLE_WITHOUT_BITS, WITH_PICTURES_KEYS, FROM_THE_WEB_PAGE] {
        load(text).check_for_training().unwrap();
    }
}

#[test]
fn the_scout_example_means_what_it_says() {
    let config = load(SCOUT_ZERO3).config;
    assert_eq!(config.model.model_name_or_path, Some(PathBuf::from("meta-llama/Llama-4-Scout-17B-16E-Instruct")));
    assert_eq!(config.data.dataset, ["identity", "alpaca_en_demo"]);
    assert_eq!(config.data.template.as_deref(), Some("llama4"));
    assert_eq!((config.data.cutoff_len, config.data.max_samples), (2048, Some(1000)));
    assert_eq!((config.lora.lora_rank, config.lora.lora_alpha), (8, 16.0));
    assert_eq!(config.lora.lora_target, LoraTargets::ALL);
    assert_eq!((config.train.learning_rate, config.train.num_train_epochs), (1e-4, 3.0));
    assert_eq!((config.train.per_device_train_batch_size, config.train.gradient_accumulation_steps), (1, 2));
    assert_eq!(config.train.lr_scheduler_type, LrSchedulerType::Cosine);
    assert_eq!(config.train.warmup_ratio, 0.1);
    assert!(config.output.plot_loss && config.output.overwrite_output_dir);
    assert_eq!(config.device.hang_limit, None);
}

#[test]
fn every_key_without_effect_is_noted_once() {
    let notes = load(SCOUT_ZERO3).notes;
    let noted: Vec<&str> = notes.iter().map(|note| note.split('`').nth(1).unwrap()).collect();
    let expected = [
        "trust_remote_code",
        "stage",
        "do_train",
        "overwrite_cache",
        "preprocessing_num_workers",
        "dataloader_num_workers",
        "save_steps",
        "save_only_model",
        "report_to",
        "deepspeed",
        "ddp_timeout",
    ];
    assert_eq!(noted, expected, "{notes:#?}");
    assert!(notes.iter().all(|note| note.lines().count() == 1 && note.contains(" has no effect: ")), "{notes:#?}");
}

#[test]
fn what_switches_other_training_off_is_not_noted_and_what_changes_nothing_is() {
    let notes = load(FROM_THE_WEB_PAGE).notes;
    let noted: Vec<&str> = notes.iter().map(|note| note.split('`').nth(1).unwrap()).collect();
    let of_examples =
        ["trust_remote_code", "stage", "do_train", "preprocessing_num_workers", "save_steps", "report_to"];
    let others = [
        "flash_attn",
        "enable_liger_kernel",
        "gradient_checkpointing",
        "enable_thinking",
        "data_seed",
        "save_strategy",
        "save_total_limit",
        "logging_dir",
        "include_num_input_tokens_seen",
        "run_name",
        "ddp_timeout",
    ];
    assert_eq!(noted, [&of_examples[..], &others].concat(), "{notes:#?}");
    assert!(notes.iter().all(|note| note.contains(" has no effect: ")), "{notes:#?}");
}

#[test]
fn without_bf16_gpus_compute_in_f32_and_that_is_said() {
    let loaded = load("random_weights: true\nbf16: false\n");
    assert!(!loaded.config.train.bf16);
    assert!(matches!(&loaded.notes[..], [note] if note.contains("f32") && note.contains("time")), "{:?}", loaded.notes);
    assert!(load("random_weights: true\nbf16: true\n").notes.is_empty());
}

#[test]
fn defaults_are_those_of_llama_factory() {
    let config = load("random_weights: true\n").config;
    let (data, lora, train, device) = (config.data, config.lora, config.train, config.device);
    assert_eq!((data.cutoff_len, data.max_samples, data.val_size), (2048, None, 0.0));
    assert_eq!((data.dataset_dir, data.max_row_bytes), (PathBuf::from("data"), ByteCount::mib(8)));
    assert_eq!((lora.lora_rank, lora.lora_alpha, lora.lora_dropout, lora.use_rslora), (8, 16.0, 0.0, false));
    assert_eq!((train.learning_rate, train.num_train_epochs, train.max_steps), (5e-5, 3.0, None));
    assert_eq!((train.per_device_train_batch_size, train.gradient_accumulation_steps), (8, 1));
    assert_eq!((train.lr_scheduler_type, train.loss_reduction), (LrSchedulerType::Linear, LossReduction::Token));
    assert_eq!((train.warmup_ratio, train.warmup_steps, train.weight_decay), (0.0, 0, 0.0));
    assert_eq!((train.max_grad_norm, train.seed, train.logging_steps), (1.0, 42, 500));
    assert_eq!((train.adam_beta1, train.adam_beta2, train.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((train.eval_strategy, train.eval_steps, train.bf16), (EvalStrategy::No, None, true));
    assert_eq!((device.device, device.weights, device.gather), (DeviceKind::Auto, Weights::Auto, Gather::Auto));
    assert_eq!((device.resident_layers, device.hang_limit), (ResidentLayers::Auto, None));
    assert_eq!((device.init_timeout, device.deterministic), (Duration::from_secs(120), false));
}

#[test]
fn lists_targets_and_counts_are_read_in_every_spelling() {
    let config = load(WITH_EVALUATION).config;
    assert_eq!(config.data.dataset, ["identity", "./my, data.jsonl"]);
    assert_eq!(config.lora.lora_target, LoraTargets { q: true, v: true, ..LoraTargets::default() });
    assert_eq!((config.train.eval_strategy, config.train.eval_steps), (EvalStrategy::Steps, Some(50)));
    assert_eq!(load(IN_FOUR_BIT_STYLE_WITHOUT_BITS).config.lora.lora_target, LoraTargets::ALL_AND_EXPERTS);
    let notes = load(WITH_EVALUATION).notes;
    let has_no_effect = |note: &&String| note.contains("`per_device_eval_batch_size` has no effect");
    assert_eq!(notes.iter().filter(has_no_effect).count(), 1, "{notes:?}");
    let own = load(OUR_OWN_KEYS).config;
    assert_eq!((own.device.resident_layers, own.train.max_steps), (ResidentLayers::Count(12), None));
    assert_eq!(
        (own.device.hang_limit, own.device.init_timeout),
        (Some(Duration::from_secs(30)), Duration::from_secs(60))
    );
    assert_eq!(own.device.device_memory, Some(ByteCount(80 << 30)));
    for (written, expected) in [
        ("[all, experts.down_proj]", LoraTargets { experts_down: true, ..LoraTargets::ALL }),
        ("experts.gate_up_proj,all", LoraTargets { experts_gate_up: true, ..LoraTargets::ALL }),
        ("[all, experts]", LoraTargets::ALL_AND_EXPERTS),
        ("experts", LoraTargets { experts_gate_up: true, experts_down: true, ..LoraTargets::default() }),
        ("o_proj", LoraTargets { o: true, ..LoraTargets::default() }),
    ] {
        let text = format!("random_weights: true\nlora_target: {written}\n");
        assert_eq!(load(&text).config.lora.lora_target, expected, "{written}");
    }
}

#[test]
fn a_timeout_of_years_is_no_limit_and_a_short_one_is() {
    for (lines, hang_limit, words) in [
        ("ddp_timeout: 180000000", None, "more than a day"),
        ("ddp_timeout: 600", Some(600), "is taken as `hang_limit: 600`"),
        ("ddp_timeout: 600\nhang_limit: 30", Some(30), "`hang_limit` is given and wins"),
    ] {
        let loaded = load(&format!("random_weights: true\n{lines}\n"));
        assert_eq!(loaded.config.device.hang_limit, hang_limit.map(Duration::from_secs), "{lines}");
        assert!(matches!(&loaded.notes[..], [note] if note.contains(words)), "{:?}", loaded.notes);
    }
}

#[test]
fn freeze_takes_llama_factorys_keys_and_defaults() {
    let freeze =
        |lines: &str| load(&format!("random_weights: true\nfinetuning_type: freeze\n{lines}\n")).config.lora.freeze;
    let found = freeze("");
    assert_eq!((found.freeze_trainable_layers, found.freeze_trainable_modules), (2, vec!["all".to_string()]));
    assert!(found.freeze_extra_modules.is_empty());
    let found = freeze(
        "freeze_trainable_layers: -3\nfreeze_trainable_modules: self_attn,router\nfreeze_extra_modules: [lm_head]",
    );
    assert_eq!(found.freeze_trainable_layers, -3);
    assert_eq!(found.freeze_trainable_modules, ["self_attn", "router"]);
    assert_eq!(found.freeze_extra_modules, ["lm_head"]);
}

#[test]
fn keys_of_another_kind_of_training_are_noted_in_one_line() {
    for (lines, words) in [
        (
            "finetuning_type: full\nlora_rank: 8\nlora_target: all",
            "`lora_rank`, `lora_target` has no effect: `finetuning_type` is full",
        ),
        ("finetuning_type: freeze\nlora_alpha: 3", "`lora_alpha` has no effect: `finetuning_type` is freeze"),
        ("finetuning_type: lora\nfreeze_trainable_layers: 3", "`freeze_trainable_layers` has no effect"),
        (
            "finetuning_type: full\nlora_dropout: 0.1\nlora_target: experts",
            "`lora_dropout`, `lora_target` has no effect",
        ),
        ("finetuning_type: freeze\nfreeze_extra_modules: norm", "norms of every layer"),
    ] {
        let notes = load(&format!("random_weights: true\n{lines}\n")).notes;
        assert!(matches!(&notes[..], [note] if note.contains(words)), "{lines}: {notes:?}");
    }
}

#[test]
fn overruled_wishes_are_noted() {
    for (lines, key) in [
        ("max_steps: 5\nnum_train_epochs: 2", "num_train_epochs"),
        ("warmup_steps: 5\nwarmup_ratio: 0.1", "warmup_ratio"),
    ] {
        let notes = load(&format!("random_weights: true\n{lines}\n")).notes;
        assert!(matches!(&notes[..], [note] if note.contains(key)), "{notes:?}");
    }
    for lines in ["max_steps: 5", "num_train_epochs: 2", "warmup_steps: 0\nwarmup_ratio: 0.1", "bf16: null"] {
        let notes = load(&format!("random_weights: true\n{lines}\n")).notes;
        assert!(notes.is_empty(), "{lines}: {notes:?}");
    }
}
