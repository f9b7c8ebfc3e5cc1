//! What a key of the YAML file is: who owns it and what becomes of it. Which there are stands in `keys.rs` and `foreign.rs`.

use crate::words::words;

/// One key of the YAML file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub name: &'static str,
    pub component: Component,
    pub treatment: Treatment,
    /// As it would be written in YAML.
    pub default: &'static str,
    pub help: &'static str,
}

words! {
    /// The struct that holds a key once it is read.
    Component {
        Model = "model",
        Data = "data",
        Lora = "lora",
        Train = "train",
        Output = "output",
        Device = "device",
    }
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The key means what it says.
    Honoured,
    /// Accepted with an info line that gives the reason; values other than those accepted are refused.
    Inert(Accepts, &'static str),
    /// One of these words asks for what is done anyway, and is accepted without a line; the reason is part of the error
    /// about every other value.
    Only(&'static [&'static str], &'static str),
    /// Only `null` is accepted; the reason is part of the error.
    Refused(&'static str),
}

/// Which values a key without effect may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepts {
    /// One of these words; each item of a list is checked alone.
    Words(&'static [&'static str]),
    Bool,
    /// A number of at least 0.
    Number,
    Text,
    Anything,
}

pub(crate) const fn key(
    name: &'static str,
    component: Component,
    treatment: Treatment,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key { name, component, treatment, default, help }
}

// Why a key has no effect or is refused, where several share the reason.
pub(crate) const PICTURES: &str = "pictures are not built yet";
pub(crate) const VIDEOS: &str = "Scout takes no videos";
pub(crate) const PREFERENCES: &str = "preference training is not built yet";
pub(crate) const FOUR_BIT: &str = "4-bit is not built yet";
pub(crate) const EXPORT: &str = "only merging reads it, and merging is not built yet";
pub(crate) const CHECKPOINTS: &str =
    "what is trained is written at the end of the run, checkpoints on the way are not built yet";
pub(crate) const CORES: &str = "reading uses the cores it finds";
pub(crate) const METRICS: &str = "metrics are written to `trainer_log.jsonl` and sent nowhere";
pub(crate) const SHARDING: &str = "`weights` says how ranks hold the base";
