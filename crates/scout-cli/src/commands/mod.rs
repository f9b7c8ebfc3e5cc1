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

use scout_config::{DeviceKind, Loaded, RunConfig};
use scout_core::{ByteCount, ExitCode};
use scout_device::Device;
use scout_device::cuda::CudaOptions;
use scout_device::device::DeviceWish;
use scout_model::ModelConfig;
use scout_train::TrainError;
use scout_train::machine::{ComputeType, Machine};

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

/// What drivers and libraries take of a GPU beside weights and working memory.
const LEFT_TO_LIBRARIES: ByteCount = ByteCount(3 << 30);

/// The device that `wish` means; never the host where a GPU was meant. Of a GPU's memory `weights` bytes are left for
/// shards, and everything together takes no more than `limit`, where there is one.
fn open_device(wish: DeviceWish, weights: ByteCount, limit: Option<ByteCount>) -> Result<Device, TrainError> {
    let without = |all: ByteCount, part: ByteCount| ByteCount(all.0.saturating_sub(part.0));
    let options = match limit {
        Some(limit) => CudaOptions { working_memory: without(limit, weights), ..surroundings::cuda() },
        None => CudaOptions { leave_free: Some(weights + LEFT_TO_LIBRARIES), ..surroundings::cuda() },
    };
    Ok(Device::choose(wish, &options)?)
}

/// Bytes of a model's weights in the element type that a device computes with.
fn weight_bytes(config: &ModelConfig, compute: ComputeType) -> ByteCount {
    compute.dtype().size() * config.num_params()
}

fn wish(kind: DeviceKind) -> DeviceWish {
    match kind {
        DeviceKind::Auto => DeviceWish::Auto,
        DeviceKind::Cpu => DeviceWish::Cpu,
        DeviceKind::Cuda => DeviceWish::Cuda,
    }
}

/// The machine that a configuration means for this model: bf16 on a GPU, f32 on the host.
fn machine(config: &RunConfig, model: &ModelConfig, world_size: usize) -> Result<Machine, TrainError> {
    let weights = weight_bytes(model, ComputeType::Bf16);
    let device = open_device(wish(config.device.device), weights, config.device.device_memory)?;
    let compute = match &device {
        Device::Cpu => ComputeType::F32,
        Device::Cuda(_) => ComputeType::Bf16,
    };
    Ok(Machine { world_size, device, compute })
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
