//! What `manifest.json` promises: the names every recorded file must hold, derived from the arguments it was made with.
//! A name that is promised and missing is a failure, never a skip.

use std::path::Path;

use scout_core::ExitCode;
use scout_model::ModelConfig;
use serde::Deserialize;

use crate::{Result, TrainError};

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trace {
    Full,
    Light,
}

/// The adapters a text folder holds.
pub const ADAPTERS: [&str; 3] = ["attn", "experts", "all"];

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
        serde_json::from_str(&text).map_err(|cause| wrong(format!("is not a manifest: {cause}"), ExitCode::BadData))
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
