//! How a command finds its configuration: the words of the command line, the file that they name, the environment.

use std::path::{Path, PathBuf};

use scout_config::{Loaded, RunConfig};
use scout_core::ExitCode;
use scout_data::DataError;
use scout_train::TrainError;

use crate::failure::Mistake;
use crate::surroundings;

const DEFAULT_CONFIG: &str = "scout-dist.yaml";

/// A configuration file and changes to it.
#[derive(clap::Args)]
pub struct ConfigArguments {
    /// YAML file with LLaMA-Factory's keys; `scout-dist.yaml` in the working folder when left out
    pub config: Option<PathBuf>,
    /// Changes to the file, as key=value
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Fill the model with random weights of its shape instead of reading any
    #[arg(long)]
    pub synthetic: bool,
    /// What computes; overrides the key `device`
    #[arg(long, value_enum)]
    pub device: Option<DeviceName>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum DeviceName {
    /// A GPU where there is one
    Auto,
    Cpu,
    Cuda,
}

impl DeviceName {
    fn value(self) -> &'static str {
        match self {
            DeviceName::Auto => "auto",
            DeviceName::Cpu => "cpu",
            DeviceName::Cuda => "cuda",
        }
    }
}

/// Reads the configuration that the command line names, or `scout-dist.yaml` of the working folder.
pub fn load(arguments: &ConfigArguments) -> anyhow::Result<Loaded> {
    let mut overrides = arguments.overrides.clone();
    let path = match &arguments.config {
        // Without a file the first word may already be a change.
        Some(word) if word.to_string_lossy().contains('=') && !word.exists() => {
            overrides.insert(0, word.to_string_lossy().into_owned());
            default_config()?
        }
        Some(path) => path.as_path(),
        None => default_config()?,
    };
    if arguments.synthetic {
        overrides.push("random_weights=true".to_string());
    }
    if let Some(device) = arguments.device {
        overrides.push(format!("device={}", device.value()));
    }
    Ok(RunConfig::load(path, &overrides, &surroundings::environment())?)
}

/// Does what a configuration asks for. A key that is then found to be at odds with the model, the data or the machine is
/// told with the place where it was written.
pub fn placing<T>(loaded: &Loaded, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    work().map_err(|error| match error.downcast_ref() {
        Some(TrainError::Config { key, problem } | TrainError::Data(DataError::Setting { key, problem })) => {
            loaded.at_odds(key, problem).map_or(error, anyhow::Error::from)
        }
        _ => error,
    })
}

fn default_config() -> anyhow::Result<&'static Path> {
    let path = Path::new(DEFAULT_CONFIG);
    if path.is_file() {
        return Ok(path);
    }
    let mistake = Mistake {
        message: format!("no configuration given, and no `{DEFAULT_CONFIG}` in the working folder"),
        code: ExitCode::MissingInput,
        hint: Some(
            "copy one of the files in `configs/`, or write a toy with its own configuration: \
             scout-dist synth --shape tiny --out toy && scout-dist train toy/scout-dist.yaml"
                .to_string(),
        ),
    };
    Err(mistake.into())
}
