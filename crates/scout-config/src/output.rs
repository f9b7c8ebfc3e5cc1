//! What a run leaves behind, and where. Creates nothing.

use std::path::PathBuf;

use crate::error::ConfigError;
use crate::settings::Settings;
use crate::spelling::{yaml_optional, yaml_text};
use crate::words::words;

#[derive(Debug, Clone, PartialEq)]
pub struct OutputConfig {
    /// Training needs it; planning and measuring do not.
    pub output_dir: Option<PathBuf>,
    pub overwrite_output_dir: bool,
    pub plot_loss: bool,
    pub adapter_layout: AdapterLayout,
}

words! {
    /// How the adapter names its tensors.
    AdapterLayout {
        /// As the tensors of the checkpoint are named.
        Auto = "auto",
        Text = "text",
        Conditional = "conditional",
    }
}

impl OutputConfig {
    pub(crate) fn read(settings: &Settings) -> Result<OutputConfig, ConfigError> {
        Ok(OutputConfig {
            output_dir: settings.optional("output_dir", Settings::path)?,
            overwrite_output_dir: settings.flag("overwrite_output_dir")?,
            plot_loss: settings.flag("plot_loss")?,
            adapter_layout: settings.word("adapter_layout", &[])?,
        })
    }

    pub(crate) fn resolved(&self) -> Vec<(&'static str, String)> {
        let output_dir = yaml_optional(self.output_dir.as_ref(), |path| yaml_text(&path.to_string_lossy()));
        vec![
            ("output_dir", output_dir),
            ("overwrite_output_dir", self.overwrite_output_dir.to_string()),
            ("plot_loss", self.plot_loss.to_string()),
            ("adapter_layout", self.adapter_layout.to_string()),
        ]
    }
}
