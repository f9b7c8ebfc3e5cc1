//! One module for each command; what they share is how a configuration is found.

pub mod bench;
pub mod demo;
pub mod launch;
pub mod plan;
pub mod preprocess;
pub mod selftest;
pub mod synth;
pub mod train;
pub mod verify;

use std::path::Path;

use scout_config::{Loaded, RunConfig};
use scout_core::ExitCode;
use scout_device::device::DeviceWish;
use scout_device::{Device, DeviceError};
use scout_train::TrainError;

use crate::failure::Mistake;
use crate::{ConfigArguments, surroundings};

const DEFAULT_CONFIG: &str = "scout-dist.yaml";

/// Reads the configuration that the command line names, or `scout-dist.yaml` of the working folder.
fn load(arguments: &ConfigArguments) -> anyhow::Result<Loaded> {
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
    Ok(RunConfig::load(path, &overrides, &surroundings::environment())?)
}

/// Fails unless `wish` is met by the host: training and verifying on a GPU are not built yet, and must not happen on the
/// host where a GPU was meant.
fn compute_on_host(wish: DeviceWish) -> Result<(), TrainError> {
    match Device::choose(wish, &surroundings::cuda())? {
        Device::Cpu => Ok(()),
        Device::Cuda(device) => Err(TrainError::from(DeviceError::Unavailable {
            wanted: if wish == DeviceWish::Cuda { "cuda" } else { "auto" }.to_string(),
            reason: format!("found {device:?}, but this command computes on the host only"),
        })),
    }
}

/// Writes results for other programs.
fn write_json(path: &Path, value: &serde_json::Value) -> anyhow::Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|cause| {
        let code = ExitCode::of_io(&cause, ExitCode::CannotCreate);
        Mistake { message: format!("`{}` cannot be written: {cause}", path.display()), code, hint: None }.into()
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
