//! Which base model, and from where. Does not look at any file.

use std::path::PathBuf;

use crate::error::ConfigError;
use crate::settings::Settings;
use crate::spelling::{yaml_optional, yaml_text};

#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Never `None` unless `random_weights`.
    pub model_name_or_path: Option<PathBuf>,
    pub adapter_name_or_path: Option<PathBuf>,
    pub random_weights: bool,
}

impl ModelConfig {
    pub(crate) fn read(settings: &Settings) -> Result<ModelConfig, ConfigError> {
        let config = ModelConfig {
            model_name_or_path: settings.optional("model_name_or_path", Settings::path)?,
            adapter_name_or_path: settings.optional("adapter_name_or_path", Settings::path)?,
            random_weights: settings.flag("random_weights")?,
        };
        if config.model_name_or_path.is_none() && !config.random_weights {
            return Err(settings.missing("model_name_or_path", "the folder of the model, or `random_weights: true`"));
        }
        if config.adapter_name_or_path.as_ref().is_some_and(|path| path.to_string_lossy().contains(',')) {
            return Err(settings.wrong("adapter_name_or_path", "the folder of one adapter"));
        }
        Ok(config)
    }

    pub(crate) fn resolved(&self) -> Vec<(&'static str, String)> {
        let path = |path: &PathBuf| yaml_text(&path.to_string_lossy());
        vec![
            ("model_name_or_path", yaml_optional(self.model_name_or_path.as_ref(), path)),
            ("adapter_name_or_path", yaml_optional(self.adapter_name_or_path.as_ref(), path)),
            ("random_weights", self.random_weights.to_string()),
        ]
    }
}
