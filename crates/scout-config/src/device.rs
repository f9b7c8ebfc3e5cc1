//! On what the run computes, how ranks hold the base, and how long they wait. Asks no machine what it has.

use std::fmt;
use std::time::Duration;

use scout_core::ByteCount;

use crate::error::ConfigError;
use crate::settings::{Settings, without_effect};
use crate::spelling::{yaml_bytes, yaml_optional};
use crate::words::words;

/// LLaMA-Factory's files carry a `ddp_timeout` of 180,000,000 s. Nothing may wait for ever, so only a time up to this
/// one is taken as a wish.
const MAX_DDP_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, PartialEq)]
pub struct DeviceConfig {
    pub device: DeviceKind,
    /// What the device has where not given.
    pub device_memory: Option<ByteCount>,
    pub weights: Weights,
    pub resident_layers: ResidentLayers,
    pub gather: Gather,
    /// Time without progress after which the run is ended. `ddp_timeout` sets it too.
    pub hang_limit: Option<Duration>,
    pub init_timeout: Duration,
    pub deterministic: bool,
}

words! {
    DeviceKind {
        /// Cuda where a driver is loaded, else the CPU.
        Auto = "auto",
        Cpu = "cpu",
        Cuda = "cuda",
    }
}

words! {
    /// How ranks hold the base weights.
    Weights {
        /// By predicted step time.
        Auto = "auto",
        /// Each rank holds its shard and gathers the rest.
        Zero3 = "zero3",
        /// Each rank holds a whole copy.
        Resident = "resident",
        /// Each rank holds its share of the experts, to which rows of all ranks go; the rest as with `zero3`.
        ExpertResident = "expert-resident",
    }
}

words! {
    /// Who moves the shards.
    Gather {
        Auto = "auto",
        /// Copy engines pull from peers.
        Copy = "copy",
        Nccl = "nccl",
    }
}

/// How many layers every rank keeps whole under `zero3`; under `expert-resident` without their experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResidentLayers {
    /// As many as memory allows.
    Auto,
    Count(usize),
}

impl fmt::Display for ResidentLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResidentLayers::Auto => f.pad("auto"),
            ResidentLayers::Count(count) => f.pad(&count.to_string()),
        }
    }
}

impl DeviceConfig {
    pub(crate) fn read(settings: &Settings) -> Result<DeviceConfig, ConfigError> {
        let config = DeviceConfig {
            device: settings.word("device", &[])?,
            device_memory: settings.optional("device_memory", Settings::bytes)?,
            weights: settings.word("weights", &["zero3-nf4", "nf4-resident"])?,
            resident_layers: resident_layers(settings)?,
            gather: settings.word("gather", &[])?,
            hang_limit: hang_limit(settings)?,
            init_timeout: settings.seconds("init_timeout")?,
            deterministic: settings.flag("deterministic")?,
        };
        config.check(settings)?;
        Ok(config)
    }

    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        if self.weights == Weights::Resident && self.resident_layers != ResidentLayers::Auto {
            let expected =
                "weights zero3, expert-resident or auto: with a whole copy on each rank all layers are resident";
            return Err(settings.contradiction("resident_layers", "weights", expected));
        }
        if self.device == DeviceKind::Cpu && self.gather != Gather::Auto {
            return Err(settings.contradiction("gather", "device", "gather auto, or device cuda"));
        }
        Ok(())
    }

    /// What became of `ddp_timeout`.
    pub(crate) fn notes(settings: &Settings) -> Result<Vec<String>, ConfigError> {
        let Some(timeout) = settings.optional("ddp_timeout", Settings::seconds)? else { return Ok(Vec::new()) };
        let note = if settings.is_written("hang_limit") {
            without_effect("ddp_timeout", "`hang_limit` is given and wins")
        } else if timeout > MAX_DDP_TIMEOUT {
            without_effect("ddp_timeout", "more than a day is as good as for ever; `hang_limit` sets a limit")
        } else {
            format!("`ddp_timeout` is taken as `hang_limit: {}`", timeout.as_secs_f64())
        };
        Ok(vec![note])
    }

    pub(crate) fn resolved(&self) -> Vec<(&'static str, String)> {
        let seconds = |time: Duration| time.as_secs_f64().to_string();
        vec![
            ("device", self.device.to_string()),
            ("device_memory", yaml_optional(self.device_memory, yaml_bytes)),
            ("weights", self.weights.to_string()),
            ("resident_layers", self.resident_layers.to_string()),
            ("gather", self.gather.to_string()),
            ("hang_limit", yaml_optional(self.hang_limit, seconds)),
            ("init_timeout", seconds(self.init_timeout)),
            ("deterministic", self.deterministic.to_string()),
        ]
    }
}

fn resident_layers(settings: &Settings) -> Result<ResidentLayers, ConfigError> {
    if settings.get("resident_layers").node.scalar() == Some("auto") {
        return Ok(ResidentLayers::Auto);
    }
    match settings.count("resident_layers") {
        Ok(count) => Ok(ResidentLayers::Count(count)),
        Err(_) => Err(settings.wrong("resident_layers", "auto or a whole number of at least 0")),
    }
}

fn hang_limit(settings: &Settings) -> Result<Option<Duration>, ConfigError> {
    let own = settings.optional("hang_limit", Settings::seconds)?;
    let ddp = settings.optional("ddp_timeout", Settings::seconds)?;
    Ok(own.or(ddp.filter(|timeout| *timeout <= MAX_DDP_TIMEOUT)))
}
