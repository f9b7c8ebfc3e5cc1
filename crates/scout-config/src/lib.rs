//! The configuration as written: YAML files in the manner of LLaMA-Factory, `SCOUT_DIST__KEY` variables and
//! `key=value` overrides become one `RunConfig`. Derives nothing from it and touches no model, data set or device.
//!
//! Every key is honoured, accepted with a note, or refused (`KEYS` says which); none is dropped in silence.

#![forbid(unsafe_code)]

mod data;
mod device;
mod error;
mod foreign;
mod freeze;
mod key;
mod keys;
mod lora;
mod model;
mod nearest;
mod output;
mod scalars;
mod settings;
mod spelling;
mod train;
mod values;
mod words;
mod yaml;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use data::DataConfig;
pub use device::{DeviceConfig, DeviceKind, Gather, ResidentLayers, Weights};
pub use error::{ConfigError, Origin};
pub use freeze::FreezeConfig;
pub use key::{Accepts, Component, Key, Treatment};
pub use keys::{KEYS, key_table};
pub use lora::{FinetuningType, LoraConfig, LoraTargets};
pub use model::ModelConfig;
pub use output::{AdapterLayout, OutputConfig};
pub use train::{EvalStrategy, LossReduction, LrSchedulerType, TrainConfig};

use settings::Settings;

/// One run, as its author wrote it. Values the author left out have their defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    pub model: ModelConfig,
    pub data: DataConfig,
    pub lora: LoraConfig,
    pub train: TrainConfig,
    pub output: OutputConfig,
    pub device: DeviceConfig,
}

/// A configuration with what there is to say about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: RunConfig,
    /// One line for each key that was written and changes nothing, or not what its name says.
    pub notes: Vec<String>,
    /// Where the value of each key was written.
    pub origins: BTreeMap<&'static str, Origin>,
    /// What messages call the file.
    pub name: String,
}

impl RunConfig {
    /// Reads the file, then the variables, then the overrides; the later wins.
    ///
    /// `environment` may be all of the process's variables: those without the prefix are passed over.
    pub fn load(path: &Path, overrides: &[String], environment: &[(String, String)]) -> Result<Loaded, ConfigError> {
        let name = path.display().to_string();
        let bytes = read_file(path).map_err(|cause| ConfigError::unreadable(path, cause))?;
        let text = text_of(&name, &bytes)?;
        RunConfig::from_text(&name, text, overrides, environment)
    }

    /// The same for a text; `name` is what messages call it. A run without any key is `{}`.
    pub fn from_text(
        name: &str,
        text: &str,
        overrides: &[String],
        environment: &[(String, String)],
    ) -> Result<Loaded, ConfigError> {
        let settings = Settings::gather(name, text, overrides, environment)?;
        let config = RunConfig {
            model: ModelConfig::read(&settings)?,
            data: DataConfig::read(&settings)?,
            lora: LoraConfig::read(&settings)?,
            train: TrainConfig::read(&settings)?,
            output: OutputConfig::read(&settings)?,
            device: DeviceConfig::read(&settings)?,
        };
        config.train.check_val_size(config.data.val_size, &settings)?;
        let mut notes = settings.notes_of_inert_keys();
        notes.extend(config.lora.notes(&settings));
        notes.extend(config.train.notes(&settings));
        notes.extend(DeviceConfig::notes(&settings)?);
        Ok(Loaded { config, notes, origins: settings.origins(), name: name.to_string() })
    }

    /// Every honoured key with its value as YAML writes it.
    pub fn resolved(&self) -> Vec<(String, String)> {
        let parts = [
            self.model.resolved(),
            self.data.resolved(),
            self.lora.resolved(),
            self.train.resolved(),
            self.output.resolved(),
            self.device.resolved(),
        ];
        parts.into_iter().flatten().map(|(key, value)| (key.to_string(), value)).collect()
    }

    /// A file that loads as this very configuration.
    pub fn to_yaml_text(&self) -> String {
        self.resolved().into_iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }
}

impl Loaded {
    /// The error that the value of `key` cannot be meant, as was found later. `None` where there is no such key.
    pub fn at_odds(&self, key: &str, problem: &str) -> Option<ConfigError> {
        let (key, origin) = self.origins.get_key_value(key)?;
        let place = match origin {
            // The default cannot be meant either, so the key is missing from the file.
            Origin::Default => Origin::File { name: self.name.clone(), line: 1, column: 1 },
            written => written.clone(),
        };
        Some(ConfigError::AtOdds { place, key, problem: problem.to_string() })
    }

    /// Fails where a key is missing that only training needs.
    pub fn check_for_training(&self) -> Result<(), ConfigError> {
        let missing = |key, expected| Err(ConfigError::MissingKey { name: self.name.clone(), key, expected });
        if self.config.data.dataset.is_empty() {
            return missing("dataset", "names from `dataset_info.json` or paths of data files");
        }
        if self.config.output.output_dir.is_none() {
            return missing("output_dir", "the folder the run writes to");
        }
        Ok(())
    }
}

/// A run file has some hundred lines. Reading stops above this size, so that a device or a checkpoint named by mistake
/// does not fill the memory.
const MAX_FILE_BYTES: u64 = 1 << 20;

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text_of<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, ConfigError> {
    let at = |line, column| Origin::File { name: name.to_string(), line, column };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let problem = format!("found more than {MAX_FILE_BYTES} bytes, expected a YAML file of a run");
        return Err(ConfigError::Syntax { place: at(1, 1), problem });
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let (before, after) = bytes.split_at(error.valid_up_to());
        let last_line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
        let column = 1 + String::from_utf8_lossy(last_line).chars().count() as u64;
        let problem = format!("found the byte 0x{:02x}, expected UTF-8 text", after.first().unwrap_or(&0));
        ConfigError::Syntax { place: at(line, column), problem }
    })
}
