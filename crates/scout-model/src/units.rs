//! The parameters of the text model, grouped into the units in which they are gathered, with the names they have in a
//! checkpoint.

use std::sync::Arc;

use scout_core::{DType, ParamSpec, UnitId, UnitSpec};

use crate::config::ModelConfig;
use crate::vision;

/// Which class the tensors' names belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameStyle {
    /// `model.layers.0…`: the text class.
    Text,
    /// `language_model.model.layers.0…`, with a vision tower beside it: the multimodal class, as on the Hub.
    Conditional,
}

impl NameStyle {
    pub fn prefix(self) -> &'static str {
        match self {
            NameStyle::Text => "",
            NameStyle::Conditional => "language_model.",
        }
    }

    /// Told by the tensors' names alone; a configuration's `architectures` is wrong too often.
    pub fn of_names<'a>(mut names: impl Iterator<Item = &'a str>) -> NameStyle {
        if names.any(|name| name.starts_with("language_model.")) { NameStyle::Conditional } else { NameStyle::Text }
    }
}

// Positions of the parameters inside their units; `UnitPlan::new` lists them in this order.
pub mod attention_params {
    pub const NORM: usize = 0;
    pub const Q: usize = 1;
    pub const K: usize = 2;
    pub const V: usize = 3;
    pub const O: usize = 4;
}
pub mod shared_params {
    pub const NORM: usize = 0;
    pub const ROUTER: usize = 1;
    pub const GATE: usize = 2;
    pub const UP: usize = 3;
    pub const DOWN: usize = 4;
}
pub mod head_params {
    pub const NORM: usize = 0;
    pub const HEAD: usize = 1;
}

/// Units of one decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUnits {
    pub attention: UnitId,
    pub shared: UnitId,
    pub gate_up: UnitId,
    pub down: UnitId,
}

/// All units of the text model, in order of first use.
#[derive(Debug, Clone)]
pub struct UnitPlan {
    // Invariant: `units[i].id == UnitId(i)`, and every parameter of the text model stands in exactly one unit.
    units: Vec<Arc<UnitSpec>>,
    layers: Vec<LayerUnits>,
}

impl UnitPlan {
    pub fn new(config: &ModelConfig, style: NameStyle) -> UnitPlan {
        let mut units = Vec::new();
        let mut add = |name: String, params: Vec<ParamSpec>| {
            let id = UnitId(units.len());
            units.push(Arc::new(UnitSpec { id, name, params }));
            id
        };
        let prefix = style.prefix();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        add("embedding".into(), vec![ParamSpec::new(format!("{prefix}model.embed_tokens.weight"), [vocab, hidden])]);
        let layers = (0..config.num_layers)
            .map(|layer_index| {
                let of_layer = LayerParams::new(config, format!("{prefix}model.layers.{layer_index}."));
                LayerUnits {
                    attention: add(format!("layers.{layer_index}.attention"), of_layer.attention()),
                    shared: add(format!("layers.{layer_index}.shared"), of_layer.shared()),
                    gate_up: add(format!("layers.{layer_index}.gate_up"), of_layer.gate_up()),
                    down: add(format!("layers.{layer_index}.down"), of_layer.down()),
                }
            })
            .collect();
        add(
            "head".into(),
            vec![
                ParamSpec::new(format!("{prefix}model.norm.weight"), [hidden]),
                ParamSpec::new(format!("{prefix}lm_head.weight"), [vocab, hidden]),
            ],
        );
        UnitPlan { units, layers }
    }

    pub fn units(&self) -> &[Arc<UnitSpec>] {
        &self.units
    }

    pub fn unit(&self, id: UnitId) -> &Arc<UnitSpec> {
        &self.units[id.0]
    }

    pub fn embedding(&self) -> UnitId {
        UnitId(0)
    }

    pub fn head(&self) -> UnitId {
        UnitId(self.units.len() - 1)
    }

    pub fn layer(&self, layer_index: usize) -> LayerUnits {
        self.layers[layer_index]
    }

    /// Every tensor that a checkpoint of this style holds: the text model's and, beside it, the vision tower's.
    pub fn checkpoint_params(&self, config: &ModelConfig, style: NameStyle) -> Vec<ParamSpec> {
        let mut params = match (style, &config.vision) {
            (NameStyle::Conditional, Some(vision)) => vision::params(vision, config.hidden_size),
            _ => Vec::new(),
        };
        params.extend(self.units.iter().flat_map(|unit| unit.params.iter().cloned()));
        params
    }

    /// Element types in which a text model may be stored.
    pub const STORED_AS: [DType; 3] = [DType::BF16, DType::F32, DType::F16];
}

struct LayerParams<'a> {
    config: &'a ModelConfig,
    prefix: String,
}

impl<'a> LayerParams<'a> {
    fn new(config: &'a ModelConfig, prefix: String) -> LayerParams<'a> {
        LayerParams { config, prefix }
    }

    fn param(&self, name: &str, dims: &[usize]) -> ParamSpec {
        ParamSpec::new(format!("{}{name}", self.prefix), dims)
    }

    fn attention(&self) -> Vec<ParamSpec> {
        let hidden = self.config.hidden_size;
        let q_width = self.config.num_heads * self.config.head_dim;
        let kv_width = self.config.num_kv_heads * self.config.head_dim;
        vec![
            self.param("input_layernorm.weight", &[hidden]),
            self.param("self_attn.q_proj.weight", &[q_width, hidden]),
            self.param("self_attn.k_proj.weight", &[kv_width, hidden]),
            self.param("self_attn.v_proj.weight", &[kv_width, hidden]),
            self.param("self_attn.o_proj.weight", &[hidden, q_width]),
        ]
    }

    fn shared(&self) -> Vec<ParamSpec> {
        let (hidden, width) = (self.config.hidden_size, self.config.intermediate_size);
        vec![
            self.param("post_attention_layernorm.weight", &[hidden]),
            self.param("feed_forward.router.weight", &[self.config.num_experts, hidden]),
            self.param("feed_forward.shared_expert.gate_proj.weight", &[width, hidden]),
            self.param("feed_forward.shared_expert.up_proj.weight", &[width, hidden]),
            self.param("feed_forward.shared_expert.down_proj.weight", &[hidden, width]),
        ]
    }

    fn gate_up(&self) -> Vec<ParamSpec> {
        let ModelConfig { num_experts, hidden_size, intermediate_size, .. } = *self.config;
        vec![self.param("feed_forward.experts.gate_up_proj", &[num_experts, hidden_size, 2 * intermediate_size])]
    }

    fn down(&self) -> Vec<ParamSpec> {
        let ModelConfig { num_experts, hidden_size, intermediate_size, .. } = *self.config;
        vec![self.param("feed_forward.experts.down_proj", &[num_experts, intermediate_size, hidden_size])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scouts_units_add_up_to_the_published_counts() {
        let config = ModelConfig::scout();
        let plan = UnitPlan::new(&config, NameStyle::Conditional);
        let total: usize = plan.units().iter().map(|unit| unit.num_elements()).sum();
        assert_eq!(total, 107_769_861_120);
        assert_eq!(config.num_params(), 107_769_861_120);
        let layer = plan.layer(17);
        let of_layer = [layer.attention, layer.shared, layer.gate_up, layer.down];
        let elements: usize = of_layer.iter().map(|id| plan.unit(*id).num_elements()).sum();
        assert_eq!(elements, 2_202_101_760);
        assert_eq!(plan.unit(layer.gate_up).bytes(DType::BF16).0, 2_684_354_560);
        assert_eq!(plan.unit(layer.attention).name, "layers.17.attention");
        assert_eq!(
            plan.unit(layer.gate_up).params[0].name,
            "language_model.model.layers.17.feed_forward.experts.gate_up_proj"
        );
    }

    #[test]
    fn a_full_checkpoint_has_1133_tensors_and_the_published_number_of_parameters() {
        let vision = crate::config::VisionConfig {
            hidden_size: 1408,
            num_layers: 34,
            intermediate_size: 5632,
            num_channels: 3,
            image_size: 336,
            patch_size: 14,
            pixel_shuffle_ratio: 0.5,
            projector_input_dim: 4096,
            projector_output_dim: 4096,
            vision_output_dim: 4096,
        };
        let config = ModelConfig { vision: Some(vision), ..ModelConfig::scout() };
        let params = UnitPlan::new(&config, NameStyle::Conditional).checkpoint_params(&config, NameStyle::Conditional);
        assert_eq!(params.len(), 1133);
        assert_eq!(params.iter().map(ParamSpec::num_elements).sum::<usize>(), 108_641_793_536);
    }
}
