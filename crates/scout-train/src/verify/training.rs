//! The recorded training runs: `training.json` and the recipe it was made with.

use std::collections::BTreeMap;
use std::path::Path;

use scout_core::ExitCode;
use scout_model::Keep;
use serde::Deserialize;

use crate::error::{Result, TrainError};
use crate::learning_rate::{Decay, LearningRate};
use crate::optimizer::OptimizerSettings;
use crate::trainer::StepSettings;

#[derive(Debug, Clone, Deserialize)]
pub struct Recorded {
    #[serde(flatten)]
    pub recipe: Recipe,
    pub runs: BTreeMap<String, RecordedRun>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RecordedRun {
    pub lr: Vec<f64>,
    pub loss: Vec<f64>,
    pub grad_norm: Vec<f64>,
    pub probe_loss_after: f64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Recipe {
    pub betas: (f64, f64),
    pub eps: f64,
    pub weight_decay: f64,
    pub clip: f64,
    pub peak_lr: f64,
    pub warmup_steps: usize,
    pub total_steps: usize,
}

impl Recorded {
    pub fn read(folder: &Path) -> Result<Recorded> {
        let path = folder.join("training.json");
        let wrong =
            |problem: String| TrainError::Input { path: path.display().to_string(), problem, code: ExitCode::BadData };
        let text = std::fs::read_to_string(&path).map_err(|cause| wrong(format!("cannot be read: {cause}")))?;
        serde_json::from_str(&text).map_err(|cause| wrong(format!("is not a recorded training: {cause}")))
    }
}

impl Recipe {
    pub fn settings(&self) -> StepSettings {
        StepSettings {
            keep: Keep::Everything.into(),
            most_kept_rows: usize::MAX,
            lora_dropout: 0.0,
            seed: 0,
            optimizer: OptimizerSettings {
                beta1: self.betas.0,
                beta2: self.betas.1,
                epsilon: self.eps,
                weight_decay: self.weight_decay,
                max_grad_norm: Some(self.clip),
            },
            learning_rate: LearningRate {
                peak: self.peak_lr,
                warmup_steps: self.warmup_steps,
                total_steps: self.total_steps,
                decay: Decay::Cosine,
            },
        }
    }
}
