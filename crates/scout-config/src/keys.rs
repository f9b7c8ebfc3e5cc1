//! The one table of keys: who owns each, what becomes of it, its default, one line of help. A key that is not here is
//! unknown. Reading values is left to the components; keys that nobody reads stand in `foreign.rs` for the most part.

use std::fmt::Write;

use crate::error::or_list;
use crate::foreign::FOREIGN_KEYS;
use crate::key::Accepts::{Anything, Bool, Number, Text, Words};
use crate::key::Component::{Data, Device, Lora, Model, Output, Train};
use crate::key::Treatment::{Honoured, Inert, Only, Refused};
use crate::key::{
    Accepts, CHECKPOINTS, CORES, EXPORT, FOUR_BIT, Key, METRICS, PICTURES, PREFERENCES, SHARDING, VIDEOS, key,
};

const ONLY_TRUE: Accepts = Words(&["true"]);
const ONLY_FALSE: Accepts = Words(&["false"]);
const EXPORT_QUANTIZED: &str = "quantised export is not built yet";

/// Every key that is known.
pub const KEYS: &[Key] = &joined();

const fn joined() -> [Key; OWN_KEYS.len() + FOREIGN_KEYS.len()] {
    let mut keys = [OWN_KEYS[0]; OWN_KEYS.len() + FOREIGN_KEYS.len()];
    let mut index = 0;
    while index < keys.len() {
        keys[index] = if index < OWN_KEYS.len() { OWN_KEYS[index] } else { FOREIGN_KEYS[index - OWN_KEYS.len()] };
        index += 1;
    }
    keys
}

/// The keys that are read, and those of LLaMA-Factory's examples, component by component.
#[rustfmt::skip]
const OWN_KEYS: &[Key] = &[
    key("model_name_or_path", Model, Honoured, "null", "folder of the base model; required unless `random_weights`"),
    key("adapter_name_or_path", Model, Honoured, "null", "folder of a PEFT adapter to start from"),
    key("random_weights", Model, Honoured, "false", "fill the model with random numbers instead of reading a checkpoint"),
    key("trust_remote_code", Model, Inert(Bool, "no code of a model is ever run"), "false", "LLaMA-Factory: run code that comes with a model"),
    key("quantization_bit", Model, Refused(FOUR_BIT), "null", "bits of the frozen base"),
    key("quantization_method", Model, Inert(Text, "without `quantization_bit` nothing is quantised"), "null", "library that quantises"),
    key("double_quantization", Model, Inert(Bool, "without `quantization_bit` nothing is quantised"), "true", "quantise the block maxima too"),
    key("freeze_vision_tower", Model, Inert(ONLY_TRUE, "the vision tower is not trained"), "true", "leave the vision tower as it is"),
    key("freeze_multi_modal_projector", Model, Inert(ONLY_TRUE, "the projector is not trained"), "true", "leave the projector as it is"),
    key("freeze_language_model", Model, Inert(ONLY_FALSE, "the language model is what is trained"), "false", "leave the language model as it is"),

    key("stage", Train, Inert(Words(&["sft"]), "supervised fine-tuning is the only stage that is built"), "sft", "kind of training"),
    key("do_train", Train, Inert(ONLY_TRUE, "the command says whether to train"), "true", "LLaMA-Factory: train at all"),

    key("dataset", Data, Honoured, "null", "names from `dataset_info.json` and paths, comma or list; required to train"),
    key("dataset_dir", Data, Honoured, "data", "folder of `dataset_info.json`"),
    key("template", Data, Honoured, "null", "chat template; only `llama4`"),
    key("cutoff_len", Data, Honoured, "2048", "tokens a row is cut to"),
    key("max_samples", Data, Honoured, "null", "rows taken from each data set"),
    key("val_size", Data, Honoured, "0", "rows held back for evaluation: a share below 1 or a number above 1"),
    key("train_on_prompt", Data, Honoured, "false", "learn the prompt as well as the answer"),
    key("mask_history", Data, Honoured, "false", "learn the last answer of a conversation only"),
    key("packing", Data, Honoured, "false", "fill micro-batches with whole rows up to `per_device_train_batch_size` x `cutoff_len` tokens; rows never see each other"),
    key("neat_packing", Data, Honoured, "false", "the same as `packing`"),
    key("disable_shuffling", Data, Honoured, "false", "keep the rows in the order of the files"),
    key("max_row_bytes", Data, Honoured, "8MiB", "longest row that is read"),
    key("overwrite_cache", Data, Inert(Bool, "rows are read afresh every time"), "false", "LLaMA-Factory: ignore cached tokens"),
    key("preprocessing_num_workers", Data, Inert(Number, CORES), "null", "LLaMA-Factory: processes that tokenise"),
    key("dataloader_num_workers", Data, Inert(Number, CORES), "0", "LLaMA-Factory: processes that load batches"),
    key("tokenized_path", Data, Refused("a cache of tokens is not built yet"), "null", "folder of tokenised rows"),
    key("image_max_pixels", Data, Inert(Number, PICTURES), "589824", "pixels a picture is reduced to"),
    key("video_max_pixels", Data, Refused(VIDEOS), "null", "pixels a video frame is reduced to"),
    key("video_fps", Data, Refused(VIDEOS), "null", "frames a second taken from a video"),
    key("video_maxlen", Data, Refused(VIDEOS), "null", "most frames taken from a video"),

    key("finetuning_type", Lora, Honoured, "lora", "what is trained: adapters (`lora`), every weight (`full`), or some (`freeze`)"),
    key("lora_rank", Lora, Honoured, "8", "inner width of the adapters"),
    key("lora_alpha", Lora, Honoured, "null", "strength of the adapters; twice `lora_rank` where not given"),
    key("lora_dropout", Lora, Honoured, "0", "share of adapter inputs dropped; 0 with routed experts"),
    key("use_rslora", Lora, Honoured, "false", "divide by the root of the rank instead of the rank"),
    key("lora_target", Lora, Honoured, "all", "`all`, `all+experts`, or a list of modules"),
    key("freeze_trainable_layers", Lora, Honoured, "2", "layers that `freeze` trains: the last so many, below 0 the first so many"),
    key("freeze_trainable_modules", Lora, Honoured, "all", "modules that `freeze` trains inside those layers"),
    key("freeze_extra_modules", Lora, Honoured, "null", "modules that `freeze` trains besides: `embed_tokens`, `norm`, `lm_head`"),
    key("pref_beta", Lora, Refused(PREFERENCES), "null", "strength of a preference loss"),
    key("pref_loss", Lora, Refused(PREFERENCES), "null", "kind of preference loss"),

    key("learning_rate", Train, Honoured, "5e-5", "largest learning rate"),
    key("num_train_epochs", Train, Honoured, "3.0", "passes over the data"),
    key("max_steps", Train, Honoured, "null", "updates; wins over `num_train_epochs`"),
    key("per_device_train_batch_size", Train, Honoured, "8", "rows of a micro-batch on one rank"),
    key("per_device_eval_batch_size", Train, Inert(Number, "held-out rows are evaluated as many at a time as an update has"), "8", "LLaMA-Factory: rows of a micro-batch that is evaluated"),
    key("gradient_accumulation_steps", Train, Honoured, "1", "micro-batches of an update"),
    key("lr_scheduler_type", Train, Honoured, "linear", "course of the learning rate after warm-up"),
    key("warmup_ratio", Train, Honoured, "0", "share of all updates in which the learning rate rises"),
    key("warmup_steps", Train, Honoured, "0", "updates in which the learning rate rises; wins over `warmup_ratio`"),
    key("weight_decay", Train, Honoured, "0", "AdamW"),
    key("max_grad_norm", Train, Honoured, "1.0", "gradients are clipped to this norm; 0 clips nothing"),
    key("adam_beta1", Train, Honoured, "0.9", "AdamW"),
    key("adam_beta2", Train, Honoured, "0.999", "AdamW"),
    key("adam_epsilon", Train, Honoured, "1e-8", "AdamW"),
    key("seed", Train, Honoured, "42", "of the adapters, the order of rows and dropout"),
    key("loss_reduction", Train, Honoured, "token", "mean over all target tokens, or of micro-batch means"),
    key("logging_steps", Train, Honoured, "500", "updates between two lines of the log"),
    key("eval_strategy", Train, Honoured, "no", "when the rows of `val_size` are evaluated"),
    key("eval_steps", Train, Honoured, "null", "updates between two evaluations; `logging_steps` where not given"),
    key("bf16", Train, Honoured, "true", "compute in bf16 on GPUs, else in f32; what is trained and the CPU's arithmetic are f32 always"),

    key("output_dir", Output, Honoured, "null", "folder the run writes to; required to train"),
    key("overwrite_output_dir", Output, Honoured, "false", "write into a folder that holds a run already"),
    key("plot_loss", Output, Honoured, "false", "draw `training_loss.png`"),
    key("adapter_layout", Output, Honoured, "auto", "names of the adapter's tensors; `auto` follows the checkpoint"),
    key("save_steps", Output, Inert(Number, CHECKPOINTS), "500", "updates between two checkpoints"),
    key("save_only_model", Output, Inert(Bool, "the optimizer is never written"), "false", "leave the optimizer out of checkpoints"),
    key("resume_from_checkpoint", Output, Inert(ONLY_FALSE, "every run starts afresh, resuming is not built yet"), "null", "checkpoint to go on from"),
    key("report_to", Output, Inert(Words(&["none", "all", "tensorboard", "wandb", "mlflow", "swanlab", "trackio"]), METRICS), "none", "services that receive metrics"),
    key("export_dir", Output, Inert(Text, EXPORT), "null", "folder of the merged model"),
    key("export_size", Output, Inert(Number, EXPORT), "5", "GB of a file of the merged model"),
    key("export_device", Output, Inert(Text, EXPORT), "cpu", "where merging is done"),
    key("export_legacy_format", Output, Inert(ONLY_FALSE, EXPORT), "false", "write pickles instead of safetensors"),
    key("export_quantization_bit", Output, Refused(EXPORT_QUANTIZED), "null", "bits of the exported model"),
    key("export_quantization_dataset", Output, Refused(EXPORT_QUANTIZED), "null", "rows that calibrate quantised export"),

    key("device", Device, Honoured, "auto", "`auto` is cuda where a driver is loaded"),
    key("device_memory", Device, Honoured, "null", "memory to plan with, as `78GiB`, at most what is free; all of that where not given"),
    key("weights", Device, Honoured, "auto", "how ranks hold the base: sharded (`zero3`), a whole copy each (`resident`), or sharded with experts that stay with their ranks, to which rows go (`expert-resident`, for LoRA); `auto` by predicted time"),
    key("resident_layers", Device, Honoured, "auto", "layers every rank keeps whole under `zero3`, under `expert-resident` all of them but experts"),
    key("gather", Device, Honoured, "auto", "who moves the shards: copy engines or NCCL"),
    key("hang_limit", Device, Honoured, "null", "seconds without progress after which a run is ended"),
    key("init_timeout", Device, Honoured, "120", "seconds in which all ranks must have met"),
    key("deterministic", Device, Honoured, "false", "only kernels that give the same bits every time"),
    key("ddp_timeout", Device, Honoured, "null", "LLaMA-Factory's name of `hang_limit`; a day at most"),
    key("deepspeed", Device, Inert(Anything, SHARDING), "null", "LLaMA-Factory: file of DeepSpeed settings"),
    key("ray_num_workers", Device, Inert(Number, "mpirun, srun, torchrun or `launch` start the ranks"), "null", "LLaMA-Factory: workers started by Ray"),
];

/// The key of that name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// All keys as a Markdown table.
pub fn key_table() -> String {
    let mut table = "| part | key | default | what becomes of it | meaning |\n|---|---|---|---|---|\n".to_string();
    for Key { name, component, treatment, default, help } in KEYS {
        let treatment = match treatment {
            Honoured => "honoured".to_string(),
            Inert(Words(words), reason) => format!("only {}, without effect: {reason}", or_list(words)),
            Inert(_, reason) => format!("accepted without effect: {reason}"),
            Only(words, reason) => format!("only {}: {reason}", or_list(words)),
            Refused(reason) => format!("refused: {reason}"),
        };
        writeln!(table, "| {component} | `{name}` | `{default}` | {treatment} | {help} |")
            .expect("writing to a string never fails");
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The 53 keys of LLaMA-Factory's LoRA, QLoRA and merge examples.
    const EXAMPLE_KEYS: &str = "adapter_name_or_path bf16 cutoff_len dataloader_num_workers dataset dataset_dir \
        ddp_timeout deepspeed do_train double_quantization export_device export_dir export_legacy_format \
        export_quantization_bit export_quantization_dataset export_size finetuning_type freeze_language_model \
        freeze_multi_modal_projector freeze_vision_tower gradient_accumulation_steps image_max_pixels learning_rate \
        logging_steps lora_rank lora_target lr_scheduler_type max_samples model_name_or_path num_train_epochs output_dir \
        overwrite_output_dir packing per_device_train_batch_size plot_loss pref_beta pref_loss \
        preprocessing_num_workers quantization_bit quantization_method ray_num_workers report_to \
        resume_from_checkpoint save_only_model save_steps stage template tokenized_path trust_remote_code video_fps \
        video_max_pixels video_maxlen warmup_ratio";
    /// Further keys of LLaMA-Factory, and our own.
    const FURTHER_KEYS: &str = "disable_shuffling lora_alpha lora_dropout use_rslora weight_decay max_grad_norm \
        adam_beta1 adam_beta2 adam_epsilon warmup_steps max_steps seed val_size eval_strategy eval_steps \
        per_device_eval_batch_size train_on_prompt mask_history overwrite_cache loss_reduction neat_packing freeze_trainable_layers \
        freeze_trainable_modules freeze_extra_modules weights resident_layers random_weights device device_memory \
        gather adapter_layout hang_limit init_timeout max_row_bytes deterministic";

    #[test]
    fn the_tables_hold_the_promised_keys_and_none_twice() {
        let example_keys: BTreeSet<&str> = EXAMPLE_KEYS.split_whitespace().collect();
        assert_eq!(example_keys.len(), 53);
        let promised: BTreeSet<&str> = example_keys.into_iter().chain(FURTHER_KEYS.split_whitespace()).collect();
        let own: BTreeSet<&str> = OWN_KEYS.iter().map(|key| key.name).collect();
        assert_eq!(own, promised);
        let known: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(known.len(), KEYS.len(), "a key stands twice");
        assert!(FOREIGN_KEYS.iter().all(|key| key.treatment != Honoured), "foreign keys are not read");
    }

    #[test]
    fn the_listing_has_a_row_for_every_key() {
        let table = key_table();
        assert_eq!(table.lines().count(), KEYS.len() + 2);
        for line in table.lines() {
            assert_eq!(line.matches('|').count(), 6, "{line}");
        }
        assert!(table.contains("| lora | `lora_rank` | `8` | honoured | "), "{table}");
        assert!(
            table.contains("| model | `quantization_bit` | `null` | refused: 4-bit is not built yet | "),
            "{table}"
        );
        assert!(table.contains("| lora | `use_dora` | `false` | only false: DoRA is not built yet | "), "{table}");
    }
}
