//! Names and shapes of an adapter's tensors in its file.

use std::collections::BTreeSet;

use scout_core::{LoraModule, Projection, Shape};

pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The class whose module paths the tensor names follow. An adapter of one takes no effect in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterLayout {
    /// The text model alone: what `AutoModelForCausalLM` yields, also over the full checkpoint.
    Text,
    /// The full class with the vision tower.
    Conditional,
}

impl AdapterLayout {
    pub(super) fn prefix(self) -> &'static str {
        match self {
            AdapterLayout::Text => "base_model.model.model.layers.",
            AdapterLayout::Conditional => "base_model.model.language_model.model.layers.",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    A,
    B,
}

/// Name of one factor in the file. `projections` decides how the experts nest: PEFT wraps one module once for each of
/// its parameters, gate_up first, so gate_up is inside only where down is adapted as well.
pub(super) fn tensor_name(
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
pub(super) fn file_shape(module: &LoraModule, factor: Factor) -> Shape {
    match (module.num_experts, factor) {
        (None, Factor::A) => module.a_shape(),
        (None, Factor::B) => module.b_shape(),
        (Some(num_experts), Factor::A) => Shape::from([num_experts * module.rank, module.output]),
        (Some(num_experts), Factor::B) => Shape::from([module.input, num_experts * module.rank]),
    }
}

/// Shape of one factor in the file, in the layout of PEFT 0.17.0 to 0.19.0, which differs for experts only.
pub(super) fn old_file_shape(module: &LoraModule, factor: Factor) -> Shape {
    match (module.num_experts, factor) {
        (None, _) => file_shape(module, factor),
        (Some(num_experts), Factor::A) => Shape::from([num_experts * module.rank, module.input]),
        (Some(num_experts), Factor::B) => Shape::from([module.output, num_experts * module.rank]),
    }
}
