//! A LoRA adapter as PEFT stores it: file names, tensor names, and the two layouts of stacked experts. The arithmetic
//! of adapters and their training live elsewhere.

mod experts;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;

use scout_core::{LoraModule, Projection, Shape};

pub use read::{LoadedAdapter, read_adapter};
pub use write::{file_tensors, write_adapter};

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The class whose module paths the tensor names follow. An adapter of one takes no effect in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterLayout {
    /// The text model alone: what `AutoModelForCausalLM` yields, also over the full checkpoint.
    Text,
    /// The full class with the vision tower.
    Conditional,
}

impl AdapterLayout {
    fn prefix(self) -> &'static str {
        match self {
            AdapterLayout::Text => "base_model.model.model.layers.",
            AdapterLayout::Conditional => "base_model.model.language_model.model.layers.",
        }
    }
}

/// What an adapter says about itself beside its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSettings {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// Scale by alpha/√rank instead of alpha/rank.
    pub use_rslora: bool,
    /// Path or hub name of the model underneath, as the user wrote it.
    pub base_model_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Factor {
    A,
    B,
}

/// Name of one factor in the file. `projections` decides how the experts nest: PEFT wraps one module once for each of
/// its parameters, gate_up first, so gate_up is inside only where down is adapted as well.
fn tensor_name(
    layout: AdapterLayout,
    module: &LoraModule,
    factor: Factor,
    projections: &BTreeSet<Projection>,
) -> String {
    let path = match module.projection {
        Projection::ExpertsGateUp if projections.contains(&Projection::ExpertsDown) => {
            "feed_forward.experts.base_layer"
        }
        Projection::ExpertsGateUp | Projection::ExpertsDown => "feed_forward.experts",
        linear => linear.path_in_layer(),
    };
    let factor = match factor {
        Factor::A => "lora_A",
        Factor::B => "lora_B",
    };
    format!("{}{}.{path}.{factor}.weight", layout.prefix(), module.layer_index)
}

/// Shape of one factor in the file, in the layout of PEFT 0.19.1 and later.
fn file_shape(module: &LoraModule, factor: Factor) -> Shape {
    match (module.num_experts, factor) {
        (None, Factor::A) => module.a_shape(),
        (None, Factor::B) => module.b_shape(),
        (Some(num_experts), Factor::A) => Shape::from([num_experts * module.rank, module.output]),
        (Some(num_experts), Factor::B) => Shape::from([module.input, num_experts * module.rank]),
    }
}

/// Shape of one factor in the file, in the layout of PEFT 0.17.0 to 0.19.0, which differs for experts only.
fn old_file_shape(module: &LoraModule, factor: Factor) -> Shape {
    match (module.num_experts, factor) {
        (None, _) => file_shape(module, factor),
        (Some(num_experts), Factor::A) => Shape::from([num_experts * module.rank, module.input]),
        (Some(num_experts), Factor::B) => Shape::from([module.output, num_experts * module.rank]),
    }
}
