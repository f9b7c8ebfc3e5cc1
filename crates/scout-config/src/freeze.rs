//! Which weights `finetuning_type: freeze` trains: a run of layers, modules inside them, modules outside of them.
//! LLaMA-Factory's keys and meaning; which tensors a name stands for is not known here.

use crate::error::{ConfigError, one_line, or_list};
use crate::scalars::number;
use crate::settings::Settings;
use crate::values::MAX_COUNT;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreezeConfig {
    /// The last so many layers; where negative, the first so many.
    pub freeze_trainable_layers: i64,
    /// `all`, or names of modules inside those layers.
    pub freeze_trainable_modules: Vec<String>,
    /// Modules outside of the layers.
    pub freeze_extra_modules: Vec<String>,
}

/// LLaMA-Factory knows the first five; the parts of attention and feed-forward are ours.
const MODULES: [&str; 12] = [
    "all",
    "self_attn",
    "feed_forward",
    "input_layernorm",
    "post_attention_layernorm",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "router",
    "experts",
    "shared_expert",
];
const EXTRA_MODULES: [&str; 3] = ["embed_tokens", "norm", "lm_head"];

impl FreezeConfig {
    pub(crate) fn read(settings: &Settings) -> Result<FreezeConfig, ConfigError> {
        Ok(FreezeConfig {
            freeze_trainable_layers: layers(settings)?,
            freeze_trainable_modules: names(settings, "freeze_trainable_modules", &MODULES)?,
            freeze_extra_modules: names(settings, "freeze_extra_modules", &EXTRA_MODULES)?,
        })
    }

    /// What a name means beside what it seems to mean.
    pub(crate) fn notes(&self) -> Vec<String> {
        let has_norm = self.freeze_extra_modules.iter().any(|name| name == "norm");
        let note = "`freeze_extra_modules: norm` trains the norms of every layer too, as it does in LLaMA-Factory";
        has_norm.then(|| note.to_string()).into_iter().collect()
    }

    pub(crate) fn resolved(&self) -> Vec<(&'static str, String)> {
        let list = |names: &[String]| match names {
            [] => "null".to_string(),
            names => format!("[{}]", names.join(", ")),
        };
        vec![
            ("freeze_trainable_layers", self.freeze_trainable_layers.to_string()),
            ("freeze_trainable_modules", list(&self.freeze_trainable_modules)),
            ("freeze_extra_modules", list(&self.freeze_extra_modules)),
        ]
    }
}

fn layers(settings: &Settings) -> Result<i64, ConfigError> {
    const KEY: &str = "freeze_trainable_layers";
    let written = settings.get(KEY).node.scalar().and_then(number);
    match written.filter(|layers| layers.fract() == 0.0 && layers.abs() <= MAX_COUNT as f64) {
        Some(layers) => Ok(layers as i64),
        None => Err(settings.wrong(KEY, "a whole number: the last so many layers, or the first so many below 0")),
    }
}

fn names(settings: &Settings, key: &'static str, known: &[&str]) -> Result<Vec<String>, ConfigError> {
    let names = settings.list(key)?;
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(names),
        Some(other) => Err(settings.wrong_found(key, one_line(&format!("{other:?}")), or_list(known))),
    }
}
