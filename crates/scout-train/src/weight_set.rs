//! Which weights a run trains, and how each is treated: a value made once from the configuration and the names of the
//! parameters. Holds no numbers.

use std::ops::Range;

use scout_config::{FinetuningType, FreezeConfig, LoraConfig};
use scout_core::{ParamSpec, UnitId, UnitSpec};
use scout_model::UnitPlan;

use crate::error::{Result, TrainError};

/// The trained parameters of every unit. Empty where adapters are trained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightSet {
    // Invariant: empty, or one entry for each parameter of each unit.
    is_trained: Vec<Vec<bool>>,
}

/// A run of trained elements of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Counted from the start of the range that was asked about.
    pub range: Range<usize>,
    /// Whether weight decay acts on it.
    pub decays: bool,
}

impl WeightSet {
    pub fn none() -> WeightSet {
        WeightSet::default()
    }

    /// What the configuration trains of a model with these units. Fails when that is nothing.
    pub fn of(config: &LoraConfig, units: &UnitPlan, num_layers: usize) -> Result<WeightSet> {
        match config.finetuning_type {
            FinetuningType::Lora => Ok(WeightSet::none()),
            FinetuningType::Full => Ok(WeightSet::chosen(units, |_| true)),
            FinetuningType::Freeze => {
                let set = WeightSet::chosen(units, |param| is_chosen(&config.freeze, num_layers, &param.name));
                if set.num_elements(units) == 0 {
                    let problem = "leaves nothing to train: give layers, or `freeze_extra_modules`".to_string();
                    return Err(TrainError::Config { key: "freeze_trainable_layers", problem });
                }
                Ok(set)
            }
        }
    }

    fn chosen(units: &UnitPlan, is_chosen: impl Fn(&ParamSpec) -> bool) -> WeightSet {
        let of_unit = |unit: &UnitSpec| unit.params.iter().map(&is_chosen).collect();
        WeightSet { is_trained: units.units().iter().map(|unit| of_unit(unit)).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.is_trained.is_empty()
    }

    pub fn contains(&self, unit: UnitId, param: usize) -> bool {
        self.is_trained.get(unit.0).is_some_and(|params| params[param])
    }

    /// Whether anything of a unit is trained.
    pub fn has(&self, unit: UnitId) -> bool {
        self.is_trained.get(unit.0).is_some_and(|params| params.contains(&true))
    }

    /// The units of which something is trained, in their order.
    pub fn units(&self) -> impl Iterator<Item = UnitId> + '_ {
        (0..self.is_trained.len()).map(UnitId).filter(|unit| self.has(*unit))
    }

    pub fn num_elements(&self, units: &UnitPlan) -> usize {
        let of_unit = |id: UnitId| {
            let params = units.unit(id).params.iter().enumerate();
            params.filter(|(index, _)| self.contains(id, *index)).map(|(_, param)| param.num_elements()).sum::<usize>()
        };
        self.units().map(of_unit).sum()
    }

    /// The trained elements of `range` of a unit, parameter by parameter.
    pub fn spans(&self, unit: &UnitSpec, range: Range<usize>) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut before = 0;
        for (index, param) in unit.params.iter().enumerate() {
            let after = before + param.num_elements();
            let (start, end) = (range.start.max(before), range.end.min(after));
            if start < end && self.contains(unit.id, index) {
                spans.push(Span { range: start - range.start..end - range.start, decays: decays(param) });
            }
            before = after;
        }
        spans
    }
}

/// transformers' Trainer spares norms and biases; this model has no biases, and its norms are what has one dimension.
fn decays(param: &ParamSpec) -> bool {
    param.shape.dims().len() > 1
}

/// LLaMA-Factory's rules: inside the chosen layers a module is chosen by its name, outside of them everything whose name
/// holds the word, which is how `norm` reaches the norms of the layers too.
fn is_chosen(freeze: &FreezeConfig, num_layers: usize, name: &str) -> bool {
    let holds = |word: &String| name.contains(word.as_str());
    freeze.freeze_extra_modules.iter().any(holds) || is_chosen_in_layer(freeze, num_layers, name)
}

fn is_chosen_in_layer(freeze: &FreezeConfig, num_layers: usize, name: &str) -> bool {
    let Some((layer_index, path)) = place_in_layer(name) else { return false };
    let count = freeze.freeze_trainable_layers.unsigned_abs() as usize;
    let is_chosen_layer = match freeze.freeze_trainable_layers {
        0.. => layer_index >= num_layers.saturating_sub(count),
        _ => layer_index < count,
    };
    let names = |module: &String| module == "all" || path.split('.').any(|part| part == module);
    is_chosen_layer && freeze.freeze_trainable_modules.iter().any(names)
}

/// `…layers.17.self_attn.q_proj.weight` is `self_attn.q_proj.weight` of layer 17.
fn place_in_layer(name: &str) -> Option<(usize, &str)> {
    let (_, behind) = name.split_once(".layers.")?;
    let (index, path) = behind.split_once('.')?;
    Some((index.parse().ok()?, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scout_model::{ModelConfig, NameStyle};

    fn freeze(layers: i64, modules: &str, extra: &str) -> FreezeConfig {
        let list = |text: &str| text.split_whitespace().map(str::to_string).collect();
        FreezeConfig {
            freeze_trainable_layers: layers,
            freeze_trainable_modules: list(modules),
            freeze_extra_modules: list(extra),
        }
    }

    /// Names that are trained of a model of four layers, in the order of the units.
    fn trained(style: NameStyle, freeze: &FreezeConfig) -> Vec<String> {
        let config = ModelConfig { num_layers: 4, rope_layers: vec![true; 4], ..ModelConfig::scout() };
        let units = UnitPlan::new(&config, style);
        let set = WeightSet::chosen(&units, |param| is_chosen(freeze, 4, &param.name));
        let of_unit = |id: UnitId| {
            let params = units.unit(id).params.iter().enumerate();
            params
                .filter(|(index, _)| set.contains(id, *index))
                .map(|(_, param)| param.name.clone())
                .collect::<Vec<_>>()
        };
        set.units().flat_map(of_unit).collect()
    }

    #[test]
    fn names_choose_what_llama_factory_would_choose() {
        for (layers, modules, extra, expected) in [
            (
                1,
                "self_attn",
                "",
                &["layers.3.self_attn.q_proj", "3.self_attn.k_proj", "3.self_attn.v_proj", "o_proj"][..],
            ),
            (-1, "input_layernorm", "", &["layers.0.input_layernorm.weight"]),
            (-2, "post_attention_layernorm", "", &["layers.0.post_attention", "layers.1.post_attention"]),
            (0, "all", "lm_head embed_tokens", &["embed_tokens.weight", "lm_head.weight"]),
            (
                99,
                "router",
                "",
                &["layers.0.feed", "layers.1.feed", "layers.2.feed", "layers.3.feed_forward.router.weight"],
            ),
            (1, "experts q_proj", "", &["layers.3.self_attn.q_proj", "experts.gate_up_proj", "experts.down_proj"]),
            (1, "shared_expert", "", &["gate_proj", "up_proj", "shared_expert.down_proj"]),
        ] {
            for style in [NameStyle::Text, NameStyle::Conditional] {
                let found = trained(style, &freeze(layers, modules, extra));
                assert_eq!(found.len(), expected.len(), "{layers} {modules} {extra}: {found:?}");
                for (found, expected) in found.iter().zip(expected) {
                    assert!(found.contains(expected), "{found} {expected}");
                }
            }
        }
        let whole_layer = trained(NameStyle::Text, &freeze(1, "all", ""));
        assert_eq!(whole_layer.len(), 12);
        assert!(whole_layer.iter().all(|name| name.starts_with("model.layers.3.")));
    }

    #[test]
    fn the_extra_module_norm_reaches_every_norm() {
        let found = trained(NameStyle::Text, &freeze(0, "all", "norm"));
        assert_eq!(found.len(), 2 * 4 + 1, "{found:?}");
    }

    #[test]
    fn spans_cover_what_is_trained_of_a_part_and_spare_norms_from_decay() {
        let params = vec![ParamSpec::new("norm", [4]), ParamSpec::new("a", [2, 3]), ParamSpec::new("b", [5, 1])];
        let unit = UnitSpec { id: UnitId(0), name: "u".into(), params };
        let spans = |is_trained: [bool; 3], range: Range<usize>| {
            let spans = WeightSet { is_trained: vec![is_trained.to_vec()] }.spans(&unit, range);
            spans.into_iter().map(|span| (span.range, span.decays)).collect::<Vec<_>>()
        };
        assert_eq!(spans([true; 3], 0..15), [(0..4, false), (4..10, true), (10..15, true)]);
        assert_eq!(spans([true; 3], 2..12), [(0..2, false), (2..8, true), (8..10, true)]);
        assert_eq!(spans([true, false, true], 5..15), [(5..10, true)]);
        assert_eq!(spans([true; 3], 10..10), []);
        assert_eq!(spans([false; 3], 0..15), []);
    }
}
