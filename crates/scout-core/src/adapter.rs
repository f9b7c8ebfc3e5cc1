//! Words for a LoRA adapter: which projections of a layer can carry one, and the shapes of its two factors.
//! Arithmetic, file names and training live elsewhere.

use crate::param::Shape;

/// A matrix of a decoder layer that LoRA can adapt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    Q,
    K,
    V,
    O,
    SharedGate,
    SharedUp,
    SharedDown,
    ExpertsGateUp,
    ExpertsDown,
}

impl Projection {
    pub const ALL: [Projection; 9] = [
        Projection::Q,
        Projection::K,
        Projection::V,
        Projection::O,
        Projection::SharedGate,
        Projection::SharedUp,
        Projection::SharedDown,
        Projection::ExpertsGateUp,
        Projection::ExpertsDown,
    ];

    /// Last part of the module's path, as PEFT's `target_modules` and `target_parameters` spell it.
    pub fn leaf_name(self) -> &'static str {
        match self {
            Projection::Q => "q_proj",
            Projection::K => "k_proj",
            Projection::V => "v_proj",
            Projection::O => "o_proj",
            Projection::SharedGate => "gate_proj",
            Projection::SharedUp => "up_proj",
            Projection::SharedDown => "down_proj",
            Projection::ExpertsGateUp => "feed_forward.experts.gate_up_proj",
            Projection::ExpertsDown => "feed_forward.experts.down_proj",
        }
    }

    pub fn is_routed(self) -> bool {
        matches!(self, Projection::ExpertsGateUp | Projection::ExpertsDown)
    }

    /// Path inside a decoder layer.
    pub fn path_in_layer(self) -> &'static str {
        match self {
            Projection::Q => "self_attn.q_proj",
            Projection::K => "self_attn.k_proj",
            Projection::V => "self_attn.v_proj",
            Projection::O => "self_attn.o_proj",
            Projection::SharedGate => "feed_forward.shared_expert.gate_proj",
            Projection::SharedUp => "feed_forward.shared_expert.up_proj",
            Projection::SharedDown => "feed_forward.shared_expert.down_proj",
            Projection::ExpertsGateUp => "feed_forward.experts.gate_up_proj",
            Projection::ExpertsDown => "feed_forward.experts.down_proj",
        }
    }
}

/// One adapted matrix. `num_experts` is set for the routed experts, whose matrices are stacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraModule {
    pub layer_index: usize,
    pub projection: Projection,
    pub input: usize,
    pub output: usize,
    pub num_experts: Option<usize>,
    pub rank: usize,
}

impl LoraModule {
    /// Factor A as this program keeps it. Linear: `[rank, input]`, the side of the input. Experts: `[expert, rank,
    /// output]`, the side of the output, because PEFT takes a stacked `[expert, in, out]` matrix for `[.., out, in]`.
    pub fn a_shape(&self) -> Shape {
        match self.num_experts {
            None => Shape::from([self.rank, self.input]),
            Some(num_experts) => Shape::from([num_experts, self.rank, self.output]),
        }
    }

    /// Factor B. Linear: `[output, rank]`. Experts: `[expert, input, rank]`.
    pub fn b_shape(&self) -> Shape {
        match self.num_experts {
            None => Shape::from([self.output, self.rank]),
            Some(num_experts) => Shape::from([num_experts, self.input, self.rank]),
        }
    }
}
