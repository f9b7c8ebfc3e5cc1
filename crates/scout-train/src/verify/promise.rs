//! What `manifest.json` promises: the names every recorded file must hold, derived from the arguments it was made with.
//! A name that is promised and missing is a failure, never a skip.

use std::path::Path;

use scout_core::ExitCode;
use scout_model::ModelConfig;
use serde::Deserialize;

use crate::error::{Result, TrainError};

#[derive(Debug, Deserialize)]
pub struct Manifest {
    pub args: Arguments,
    /// Present for folders of the multimodal class.
    pub vision_config: Option<serde_json::Value>,
}

/// The arguments a folder was made with, as far as they decide what it holds.
#[derive(Debug, Deserialize)]
pub struct Arguments {
    pub steps: usize,
    pub batch: usize,
    pub seq: usize,
    pub trace: Trace,
    #[serde(default)]
    pub nf4: bool,
    /// In what the recorded numbers were computed.
    #[serde(default)]
    pub dtype: RecordedIn,
    /// Whether the same numbers computed in f32 are recorded beside those in bf16.
    #[serde(default)]
    pub f32: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trace {
    Full,
    Light,
    /// Losses, gradients of adapters and routing: what a program in bf16 that routes by itself can be held to.
    Losses,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordedIn {
    #[default]
    Float32,
    BFloat16,
}

/// The adapters a text folder holds.
pub const ADAPTERS: [&str; 3] = ["attn", "experts", "all"];
/// The one of them that a folder recorded in bf16 holds: PEFT has linear layers only.
pub const NATURAL_ADAPTER: &str = "attn";

/// Tensors of every layer that only a full trace stores.
const FULL_LAYER: [&str; 9] = ["attn_in", "attn_out", "ffn_in", "ffn_out", "shared_out", "q", "k", "v", "attn_ctx"];

impl Manifest {
    pub fn read(folder: &Path) -> Result<Manifest> {
        let path = folder.join("manifest.json");
        let wrong = |problem: String, code| TrainError::Input { path: path.display().to_string(), problem, code };
        let text = std::fs::read_to_string(&path).map_err(|cause| {
            let code = ExitCode::of_io(&cause, ExitCode::MissingInput);
            wrong(format!("cannot be read ({cause}); `verify` needs a folder with recorded reference numbers"), code)
        })?;
        let manifest = Manifest::parse(&text).map_err(|problem| wrong(problem, ExitCode::BadData))?;
        Ok(manifest)
    }

    fn parse(text: &str) -> std::result::Result<Manifest, String> {
        let manifest: Manifest = serde_json::from_str(text).map_err(|cause| format!("is not a manifest: {cause}"))?;
        let Arguments { trace, dtype, nf4, f32, .. } = manifest.args;
        let refused = |problem: &str| Err(problem.to_string());
        match (dtype, trace) {
            (RecordedIn::BFloat16, Trace::Losses) => {}
            (RecordedIn::Float32, Trace::Full | Trace::Light) if f32 => {
                return refused("says `f32` where all numbers are recorded in f32 already");
            }
            (RecordedIn::Float32, Trace::Full | Trace::Light) => return Ok(manifest),
            (RecordedIn::BFloat16, _) => {
                return refused(
                    "says `dtype` bfloat16, which needs `trace` losses: other tensors of two programs differ",
                );
            }
            (RecordedIn::Float32, Trace::Losses) => {
                return refused("says `trace` losses, which needs `dtype` bfloat16: f32 is held to its tensors");
            }
        }
        match (nf4, &manifest.vision_config) {
            (true, _) => refused("says `nf4` beside `dtype` bfloat16: 4-bit weights are recorded in f32"),
            (_, Some(_)) => refused("has a `vision_config` beside `dtype` bfloat16: pictures are recorded in f32"),
            (false, None) => Ok(manifest),
        }
    }

    /// Whether the recorder computed in bf16 and sent every token where that arithmetic sends it.
    pub fn is_natural(&self) -> bool {
        self.args.trace == Trace::Losses
    }

    /// The names in every recorded file of a natural folder; `gradients` are those of the adapter, if one is worn.
    pub fn natural_names(&self, config: &ModelConfig, gradients: &[String]) -> Vec<String> {
        let mut names: Vec<String> = ["loss", "num_target_tokens"].map(String::from).to_vec();
        names.extend((0..config.num_layers).map(|layer_index| format!("layer.{layer_index}.router_expert")));
        names.extend(gradients.iter().map(|name| format!("grad.{name}")));
        if !gradients.is_empty() {
            names.push("grad_norm".to_string());
        }
        names
    }

    /// The names in `expected.safetensors` of a text folder, in order of first use.
    pub fn expected_names(&self, config: &ModelConfig) -> Vec<String> {
        let mut names = vec!["rope_inv_freq".to_string(), "embed_out".to_string()];
        for layer_index in 0..config.num_layers {
            if self.args.trace == Trace::Full {
                names.extend(FULL_LAYER.map(|name| format!("layer.{layer_index}.{name}")));
            }
            let always = ["router_logits", "router_expert", "router_score", "out"];
            names.extend(always.map(|name| format!("layer.{layer_index}.{name}")));
        }
        names.extend(["final_norm_out", "logits", "token_loss", "loss", "num_target_tokens"].map(String::from));
        names
    }

    /// The names in `adapter_X.expected.safetensors` of a text folder.
    pub fn adapter_names(&self, config: &ModelConfig, adapter: &str, gradients: &[String]) -> Vec<String> {
        let layers = || 0..config.num_layers;
        let mut names: Vec<String> = layers().map(|i| format!("layer.{i}.router_expert")).collect();
        if self.args.trace == Trace::Full && adapter != "experts" {
            names.extend(layers().map(|i| format!("layer.{i}.out")));
            names.extend(layers().map(|i| format!("grad_of.layer.{i}.out")));
            names.push("grad_of.final_norm_out".to_string());
        }
        names.extend(["logits", "token_loss", "loss", "num_target_tokens"].map(String::from));
        names.extend(gradients.iter().map(|name| format!("grad.{name}")));
        names.extend(["grad_norm", "accum_loss", "mean_of_row_means"].map(String::from));
        names
    }

    /// The names in `nf4.expected.safetensors`.
    pub fn nf4_names(&self, config: &ModelConfig, gradients: &[String]) -> Vec<String> {
        let full = self.args.trace == Trace::Full;
        let mut names: Vec<String> = ["nf4.code", "nf4.code8", "base.loss"].map(String::from).to_vec();
        let samples = [
            ("layers.0.self_attn.k_proj.weight", true),
            ("layers.0.feed_forward.experts.down_proj", true),
            ("layers.1.feed_forward.shared_expert.gate_proj.weight", config.num_layers > 1),
        ];
        let parts = ["packed", "absmax", "absmax_u8", "absmax2", "offset"];
        for (name, _) in samples.iter().filter(|(_, is_there)| *is_there) {
            names.extend(parts.iter().chain(&["plain", "double"]).map(|part| format!("nf4.model.{name}.{part}")));
        }
        let of_sample: &[&str] = if full { &["plain", "double"] } else { &[] };
        names.extend(parts.iter().chain(of_sample).map(|part| format!("nf4.sample_lm_head_300_rows.{part}")));
        names.extend(["adapter_all.loss", "adapter_all.grad_norm"].map(String::from));
        names.extend(gradients.iter().map(|name| format!("adapter_all.grad.{name}")));
        if full {
            names.extend(["base.logits", "adapter_all.logits"].map(String::from));
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str, rest: &str) -> std::result::Result<Manifest, String> {
        Manifest::parse(&format!(r#"{{"args": {{"steps": 0, "batch": 2, "seq": 8, {arguments}}}{rest}}}"#))
    }

    #[test]
    fn bf16_and_losses_belong_together_and_everything_else_is_recorded_in_f32() {
        assert!(parse(r#""trace": "losses", "dtype": "bfloat16""#, "").unwrap().is_natural());
        assert!(parse(r#""trace": "losses", "dtype": "bfloat16", "f32": true"#, "").unwrap().is_natural());
        assert!(!parse(r#""trace": "light", "nf4": true"#, "").unwrap().is_natural());
        for (arguments, rest, word) in [
            (r#""trace": "losses""#, "", "needs `dtype`"),
            (r#""trace": "full", "dtype": "bfloat16""#, "", "needs `trace`"),
            (r#""trace": "light", "dtype": "bfloat16""#, "", "needs `trace`"),
            (r#""trace": "full", "f32": true"#, "", "already"),
            (r#""trace": "losses", "dtype": "bfloat16", "nf4": true"#, "", "`nf4`"),
            (r#""trace": "losses", "dtype": "bfloat16""#, r#", "vision_config": {}"#, "`vision_config`"),
            (r#""trace": "losses", "dtype": "float16""#, "", "float16"),
        ] {
            let problem = parse(arguments, rest).unwrap_err();
            assert!(problem.contains(word), "{arguments}{rest}: {problem}");
        }
    }
}
