//! Which rows are learned, and how they become batches. Does not look for the data sets.

use std::path::PathBuf;

use scout_core::ByteCount;

use crate::error::ConfigError;
use crate::settings::Settings;
use crate::spelling::{yaml_bytes, yaml_optional, yaml_text};
use crate::values::NOT_NEGATIVE;

/// Chat templates that are built in.
const TEMPLATES: [&str; 1] = ["llama4"];

#[derive(Debug, Clone, PartialEq)]
pub struct DataConfig {
    /// Names from `dataset_info.json` and paths; empty where none is given.
    pub dataset: Vec<String>,
    pub dataset_dir: PathBuf,
    pub template: Option<String>,
    pub cutoff_len: usize,
    pub max_samples: Option<usize>,
    /// Below 1 a share of the rows, above 1 a number of rows.
    pub val_size: f64,
    pub train_on_prompt: bool,
    pub mask_history: bool,
    /// Rows share micro-batches and never see each other; `neat_packing` means the same.
    pub packing: bool,
    pub neat_packing: bool,
    pub disable_shuffling: bool,
    pub max_row_bytes: ByteCount,
}

impl DataConfig {
    pub(crate) fn read(settings: &Settings) -> Result<DataConfig, ConfigError> {
        let config = DataConfig {
            dataset: settings.list("dataset")?,
            dataset_dir: settings.path("dataset_dir")?,
            template: settings.optional("template", Settings::text)?,
            cutoff_len: settings.positive("cutoff_len")?,
            max_samples: settings.optional("max_samples", Settings::positive)?,
            val_size: settings.number("val_size", &NOT_NEGATIVE)?,
            train_on_prompt: settings.flag("train_on_prompt")?,
            mask_history: settings.flag("mask_history")?,
            packing: settings.flag("packing")?,
            neat_packing: settings.flag("neat_packing")?,
            disable_shuffling: settings.flag("disable_shuffling")?,
            max_row_bytes: settings.bytes("max_row_bytes")?,
        };
        config.check(settings)?;
        Ok(config)
    }

    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        if self.template.as_ref().is_some_and(|template| !TEMPLATES.contains(&template.as_str())) {
            return Err(settings.wrong("template", TEMPLATES.join(" or ")));
        }
        if self.val_size >= 1.0 && (self.val_size == 1.0 || self.val_size.fract() != 0.0) {
            return Err(settings.wrong("val_size", "0, a share below 1, or a whole number of rows above 1"));
        }
        if self.train_on_prompt && self.mask_history {
            let expected = "only one of them: prompts in the history would be both learned and masked";
            return Err(settings.contradiction("mask_history", "train_on_prompt", expected));
        }
        if self.neat_packing && !self.packing && settings.is_written("packing") {
            return Err(settings.contradiction("neat_packing", "packing", "the same of both"));
        }
        Ok(())
    }

    pub(crate) fn resolved(&self) -> Vec<(&'static str, String)> {
        let names: Vec<String> = self.dataset.iter().map(|name| yaml_text(name)).collect();
        let dataset = if names.is_empty() { "null".to_string() } else { format!("[{}]", names.join(", ")) };
        vec![
            ("dataset", dataset),
            ("dataset_dir", yaml_text(&self.dataset_dir.to_string_lossy())),
            ("template", yaml_optional(self.template.as_ref(), |template| yaml_text(template))),
            ("cutoff_len", self.cutoff_len.to_string()),
            ("max_samples", yaml_optional(self.max_samples, |count| count.to_string())),
            ("val_size", format!("{:?}", self.val_size)),
            ("train_on_prompt", self.train_on_prompt.to_string()),
            ("mask_history", self.mask_history.to_string()),
            ("packing", self.packing.to_string()),
            ("neat_packing", self.neat_packing.to_string()),
            ("disable_shuffling", self.disable_shuffling.to_string()),
            ("max_row_bytes", yaml_bytes(self.max_row_bytes)),
        ]
    }
}
