//! `adapter_config.json`: written with the keys and values PEFT 0.21.2 writes, and read with a refusal for every
//! setting that would change the arithmetic. Does not look at tensors.

use std::collections::BTreeSet;
use std::path::Path;

use scout_core::Projection;
use serde_json::{Map, Value, json};

use super::layout::AdapterLayout;
use super::settings::AdapterSettings;
use crate::error::{CheckpointError, Result};
use crate::folder::read_json;

pub(super) const CONFIG_FILE: &str = "adapter_config.json";

const PEFT_VERSION: &str = "0.21.2";

/// Above any sensible rank; keeps products of shapes far from overflow.
const MAX_RANK: u64 = 1 << 16;

const REGEX_START: &str = r"language_model\..*\.(";

/// What a file says about the adapter, as far as the file alone can tell.
#[derive(Debug)]
pub(crate) struct AdapterConfig {
    pub settings: AdapterSettings,
    /// `None` for a pattern that is not ours: then the tensors themselves say what is adapted.
    pub linear: Option<BTreeSet<Projection>>,
    pub routed: BTreeSet<Projection>,
    pub peft_version: Option<String>,
}

/// The text of the file, without a newline at its end, as PEFT leaves it.
pub(crate) fn render(settings: &AdapterSettings, layout: AdapterLayout, projections: &BTreeSet<Projection>) -> String {
    let routed = sorted_names(projections.iter().filter(|projection| projection.is_routed()));
    let value = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": {},
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": settings.base_model_name,
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "kasa_config": null,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": whole_if_possible(settings.alpha),
        "lora_bias": false,
        "lora_dropout": settings.dropout,
        "lora_ga_config": null,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": null,
        "monteclora_config": null,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "qalora_group_size": 16,
        "r": settings.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": target_modules(layout, projections),
        "target_parameters": if routed.is_empty() { Value::Null } else { Value::from(routed) },
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": null,
        "use_bdlora": null,
        "use_dora": false,
        "use_qalora": false,
        "use_rslora": settings.use_rslora,
        "velora_config": null,
    });
    serde_json::to_string_pretty(&value).expect("keys are strings")
}

/// Names for the text class; for the full class a pattern, because bare names would also wrap the vision tower.
fn target_modules(layout: AdapterLayout, projections: &BTreeSet<Projection>) -> Value {
    let linear = || projections.iter().filter(|projection| !projection.is_routed());
    match layout {
        AdapterLayout::Conditional if linear().next().is_some() => {
            let names: Vec<_> = linear().map(|projection| projection.leaf_name()).collect();
            Value::from(format!("{REGEX_START}{})", names.join("|")))
        }
        _ => Value::from(sorted_names(linear())),
    }
}

fn sorted_names<'a>(projections: impl Iterator<Item = &'a Projection>) -> Vec<&'static str> {
    let mut names: Vec<_> = projections.map(|projection| projection.leaf_name()).collect();
    names.sort_unstable();
    names
}

fn whole_if_possible(value: f64) -> Value {
    let is_whole = value.fract() == 0.0 && value.abs() < 2f64.powi(53);
    if is_whole { Value::from(value as i64) } else { Value::from(value) }
}

/// Reads and checks the file. Keys it does not know are left alone, as PEFT itself does.
pub(crate) fn read(path: &Path) -> Result<AdapterConfig> {
    let json = read_json(path)?;
    let Some(object) = json.as_object() else {
        return Err(CheckpointError::File { path: path.to_path_buf(), problem: "is not a JSON object".to_string() });
    };
    let keys = Keys { path, object };
    keys.refuse_other_arithmetic()?;
    let config = AdapterConfig {
        settings: keys.settings()?,
        linear: keys.linear()?,
        routed: keys.routed()?,
        peft_version: keys.get("peft_version").and_then(Value::as_str).map(str::to_string),
    };
    if !config.routed.is_empty() && config.settings.dropout != 0.0 {
        let reason = "the adapters of routed experts cannot have dropout".to_string();
        return Err(keys.refused("lora_dropout", reason));
    }
    Ok(config)
}

/// When a setting leaves the arithmetic alone.
enum Inert {
    /// Absent, null, `false`, or an empty list, object or text.
    Off,
    /// Absent, or this text.
    Text(&'static str),
}

/// Settings that make an adapter something else than `W + scale · B · A` on whole layers of the frozen base.
const REFUSED: [(&str, Inert, &str); 22] = [
    ("bias", Inert::Text("none"), "trained biases are not supported"),
    ("use_dora", Inert::Off, "DoRA is not supported"),
    ("use_qalora", Inert::Off, "QA-LoRA is not supported"),
    ("use_bdlora", Inert::Off, "block-diagonal LoRA is not supported"),
    ("lora_bias", Inert::Off, "biases in the adapter are not supported"),
    ("fan_in_fan_out", Inert::Off, "the model has no such layers"),
    ("rank_pattern", Inert::Off, "one rank for all modules is expected"),
    ("alpha_pattern", Inert::Off, "one alpha for all modules is expected"),
    ("modules_to_save", Inert::Off, "modules trained in full beside the adapter are not supported"),
    ("trainable_token_indices", Inert::Off, "trained token embeddings are not supported"),
    ("layers_to_transform", Inert::Off, "adapters on some of the layers are not supported"),
    ("layers_pattern", Inert::Off, "adapters on some of the layers are not supported"),
    ("layer_replication", Inert::Off, "replicated layers are not supported"),
    ("exclude_modules", Inert::Off, "excluded modules are not supported"),
    ("alora_invocation_tokens", Inert::Off, "activated LoRA is not supported"),
    ("arrow_config", Inert::Off, "routing between adapters is not supported"),
    ("kasa_config", Inert::Off, "KaSA is not supported"),
    ("monteclora_config", Inert::Off, "MonteCLoRA is not supported"),
    ("velora_config", Inert::Off, "VeLoRA is not supported"),
    ("corda_config", Inert::Off, "it changes the base weights"),
    ("lora_ga_config", Inert::Off, "it changes the base weights"),
    ("megatron_config", Inert::Off, "Megatron's parallel layers are not supported"),
];

/// Ways to start an adapter that leave the base weights alone. Others (`pissa`, `olora`, `loftq`, …) subtract the start
/// from the base when the adapter is loaded, so the file alone is not the adapter.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

struct Keys<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn refused(&self, key: &str, reason: String) -> CheckpointError {
        let found = match self.object.get(key) {
            None => "absent".to_string(),
            // `Value` prints control characters escaped, so only the length needs a bound.
            Some(value) => value.to_string().chars().take(200).collect(),
        };
        CheckpointError::Setting { path: self.path.to_path_buf(), key: key.to_string(), found, reason }
    }

    fn refuse_other_arithmetic(&self) -> Result<()> {
        if self.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(self.refused("peft_type", "only `LORA` adapters are supported".to_string()));
        }
        for (key, inert, reason) in &REFUSED {
            let Some(value) = self.get(key) else { continue };
            let is_inert = match inert {
                Inert::Off => is_off(value),
                Inert::Text(text) => value.as_str() == Some(text),
            };
            if !is_inert {
                return Err(self.refused(key, (*reason).to_string()));
            }
        }
        match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::String(start)) if PLAIN_STARTS.contains(&start.as_str()) => Ok(()),
            Some(_) => Err(self.refused("init_lora_weights", "such a start changes the base weights".to_string())),
        }
    }

    fn settings(&self) -> Result<AdapterSettings> {
        let rank = self.get("r").and_then(Value::as_u64).filter(|rank| (1..=MAX_RANK).contains(rank));
        let rank = rank.ok_or_else(|| self.refused("r", format!("a whole number from 1 to {MAX_RANK} is expected")))?;
        let alpha = self.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| self.refused("lora_alpha", "a number is expected".to_string()))?;
        let dropout = match self.get("lora_dropout") {
            None => Some(0.0),
            Some(value) => value.as_f64().filter(|dropout| (0.0..1.0).contains(dropout)),
        };
        let dropout = dropout
            .ok_or_else(|| self.refused("lora_dropout", "a number from 0 to below 1 is expected".to_string()))?;
        let use_rslora = match self.get("use_rslora") {
            None => Some(false),
            Some(value) => value.as_bool(),
        };
        let use_rslora =
            use_rslora.ok_or_else(|| self.refused("use_rslora", "true or false is expected".to_string()))?;
        let base_model_name = self.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_string);
        Ok(AdapterSettings { rank: rank as usize, alpha, dropout, use_rslora, base_model_name })
    }

    fn linear(&self) -> Result<Option<BTreeSet<Projection>>> {
        const KEY: &str = "target_modules";
        let unknown = |name: &str| {
            let name = name.escape_debug();
            self.refused(KEY, format!("`{name}` is no module that can be adapted here"))
        };
        match self.get(KEY) {
            None => Ok(None),
            Some(Value::String(pattern)) => {
                // A pattern in general needs a regex engine and all module names; ours is told by its form.
                let inner = pattern.strip_prefix(REGEX_START).and_then(|rest| rest.strip_suffix(')'));
                Ok(inner.and_then(|names| names.split('|').map(|name| linear_named(name).ok()).collect()))
            }
            Some(Value::Array(names)) => {
                let mut projections = BTreeSet::new();
                for name in names {
                    let name = name.as_str().ok_or_else(|| self.refused(KEY, "names are expected".to_string()))?;
                    projections.insert(linear_named(name).map_err(|()| unknown(name))?);
                }
                Ok(Some(projections))
            }
            Some(_) => Err(self.refused(KEY, "a list of names or a pattern is expected".to_string())),
        }
    }

    fn routed(&self) -> Result<BTreeSet<Projection>> {
        const KEY: &str = "target_parameters";
        let mut projections = BTreeSet::new();
        let names = match self.get(KEY) {
            None => return Ok(projections),
            Some(Value::Array(names)) => names,
            Some(_) => return Err(self.refused(KEY, "a list of names is expected".to_string())),
        };
        for name in names {
            let name = name.as_str().ok_or_else(|| self.refused(KEY, "names are expected".to_string()))?;
            let targeted = Projection::ALL.into_iter().find(|projection| {
                projection.is_routed()
                    && (is_path_end(projection.path_in_layer(), name) || is_path_end(name, projection.path_in_layer()))
            });
            projections.insert(targeted.ok_or_else(|| {
                let name = name.escape_debug();
                self.refused(KEY, format!("`{name}` is no parameter that can be adapted here"))
            })?);
        }
        Ok(projections)
    }
}

/// The linear projection that a name of `target_modules` means: a leaf, the end of a path, or a whole path.
fn linear_named(name: &str) -> Result<Projection, ()> {
    let is_meant = |projection: &Projection| {
        let path = projection.path_in_layer();
        !projection.is_routed() && (is_path_end(path, name) || is_path_end(name, path))
    };
    Projection::ALL.into_iter().find(is_meant).ok_or(())
}

fn is_path_end(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|start| start.is_empty() || start.ends_with('.'))
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}
