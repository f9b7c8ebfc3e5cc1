//! The recipe: step size, batch, schedule, clipping, evaluation. Counts of updates are resolved elsewhere.

use crate::error::ConfigError;
use crate::scalars::truth;
use crate::settings::{Settings, without_effect};
use crate::spelling::yaml_optional;
use crate::values::{ABOVE_ZERO, BELOW_ONE, MAX_COUNT, NOT_NEGATIVE, SHARE};
use crate::words::words;

#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    pub learning_rate: f64,
    pub num_train_epochs: f64,
    /// Wins over `num_train_epochs`.
    pub max_steps: Option<usize>,
    pub per_device_train_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub lr_scheduler_type: LrSchedulerType,
    pub warmup_ratio: f64,
    /// Wins over `warmup_ratio` where it is not 0.
    pub warmup_steps: usize,
    pub weight_decay: f64,
    /// 0 clips nothing.
    pub max_grad_norm: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub seed: u64,
    pub loss_reduction: LossReduction,
    pub logging_steps: usize,
    pub eval_strategy: EvalStrategy,
    /// `logging_steps` where not given.
    pub eval_steps: Option<usize>,
    /// What GPUs compute in, where not in f32. What is trained is f32 always.
    pub bf16: bool,
}

words! {
    LrSchedulerType {
        Linear = "linear",
        Cosine = "cosine",
        /// Without warm-up.
        Constant = "constant",
        ConstantWithWarmup = "constant_with_warmup",
    }
}

words! {
    LossReduction {
        /// Sum over all target tokens of an update, divided by their number.
        Token = "token",
        /// Mean of the micro-batch means.
        MicroBatchMean = "micro_batch_mean",
    }
}

words! {
    EvalStrategy {
        No = "no",
        Steps = "steps",
        Epoch = "epoch",
    }
}

impl TrainConfig {
    pub(crate) fn read(settings: &Settings) -> Result<TrainConfig, ConfigError> {
        let config = TrainConfig {
            learning_rate: settings.number("learning_rate", &ABOVE_ZERO)?,
            num_train_epochs: settings.number("num_train_epochs", &ABOVE_ZERO)?,
            max_steps: settings.optional("max_steps", max_steps)?.flatten(),
            per_device_train_batch_size: settings.positive("per_device_train_batch_size")?,
            gradient_accumulation_steps: settings.positive("gradient_accumulation_steps")?,
            lr_scheduler_type: settings.word("lr_scheduler_type", &[])?,
            warmup_ratio: settings.number("warmup_ratio", &SHARE)?,
            warmup_steps: settings.count("warmup_steps")?,
            weight_decay: settings.number("weight_decay", &NOT_NEGATIVE)?,
            max_grad_norm: settings.number("max_grad_norm", &NOT_NEGATIVE)?,
            adam_beta1: settings.number("adam_beta1", &BELOW_ONE)?,
            adam_beta2: settings.number("adam_beta2", &BELOW_ONE)?,
            adam_epsilon: settings.number("adam_epsilon", &ABOVE_ZERO)?,
            seed: settings.whole("seed", 0, u64::MAX)?,
            loss_reduction: settings.word("loss_reduction", &[])?,
            logging_steps: settings.positive("logging_steps")?,
            eval_strategy: eval_strategy(settings)?,
            eval_steps: settings.optional("eval_steps", Settings::positive)?,
            bf16: settings.flag("bf16")?,
        };
        config.check(settings)?;
        Ok(config)
    }

    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        let warmup = [("warmup_steps", self.warmup_steps > 0), ("warmup_ratio", self.warmup_ratio > 0.0)];
        if self.lr_scheduler_type == LrSchedulerType::Constant
            && let Some((key, _)) = warmup.iter().find(|(_, is_wanted)| *is_wanted)
        {
            return Err(settings.contradiction(key, "lr_scheduler_type", "constant_with_warmup, or no warm-up"));
        }
        if self.eval_steps.is_some() && self.eval_strategy != EvalStrategy::Steps {
            return Err(settings.contradiction("eval_steps", "eval_strategy", "eval_strategy steps"));
        }
        let data_seed = settings.optional("data_seed", |settings, key| settings.whole(key, 0, u64::MAX))?;
        if data_seed.is_some_and(|data_seed| data_seed != self.seed) {
            return Err(settings.contradiction(
                "data_seed",
                "seed",
                "the same of both: the order of rows follows seed",
            ));
        }
        Ok(())
    }

    /// Evaluation needs rows, and rows that are held back must be evaluated.
    pub(crate) fn check_val_size(&self, val_size: f64, settings: &Settings) -> Result<(), ConfigError> {
        let evaluates = self.eval_strategy != EvalStrategy::No;
        if evaluates && val_size == 0.0 {
            return Err(settings.contradiction("eval_strategy", "val_size", "a val_size above 0"));
        }
        if !evaluates && val_size > 0.0 {
            let expected = "eval_strategy steps or epoch: rows held back would be neither learned nor evaluated";
            return Err(settings.contradiction("val_size", "eval_strategy", expected));
        }
        Ok(())
    }

    /// One line for each wish that another key overrules.
    pub(crate) fn notes(&self, settings: &Settings) -> Vec<String> {
        let mut notes = Vec::new();
        if self.max_steps.is_some() && settings.is_written("num_train_epochs") {
            notes.push(without_effect("num_train_epochs", "`max_steps` is given and wins"));
        }
        if self.warmup_steps > 0 && self.warmup_ratio > 0.0 {
            notes.push(without_effect("warmup_ratio", "`warmup_steps` is given and wins"));
        }
        if !self.bf16 {
            notes.push(
                "`bf16: false` means f32 on GPUs, in twice the memory and many times the time of bf16".to_string(),
            );
        }
        notes
    }

    pub(crate) fn resolved(&self) -> Vec<(&'static str, String)> {
        let count = |count: usize| count.to_string();
        vec![
            ("learning_rate", format!("{:?}", self.learning_rate)),
            ("num_train_epochs", format!("{:?}", self.num_train_epochs)),
            ("max_steps", yaml_optional(self.max_steps, count)),
            ("per_device_train_batch_size", self.per_device_train_batch_size.to_string()),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps.to_string()),
            ("lr_scheduler_type", self.lr_scheduler_type.to_string()),
            ("warmup_ratio", format!("{:?}", self.warmup_ratio)),
            ("warmup_steps", self.warmup_steps.to_string()),
            ("weight_decay", format!("{:?}", self.weight_decay)),
            ("max_grad_norm", format!("{:?}", self.max_grad_norm)),
            ("adam_beta1", format!("{:?}", self.adam_beta1)),
            ("adam_beta2", format!("{:?}", self.adam_beta2)),
            ("adam_epsilon", format!("{:?}", self.adam_epsilon)),
            ("seed", self.seed.to_string()),
            ("loss_reduction", self.loss_reduction.to_string()),
            ("logging_steps", self.logging_steps.to_string()),
            ("eval_strategy", self.eval_strategy.to_string()),
            ("eval_steps", yaml_optional(self.eval_steps, count)),
            ("bf16", self.bf16.to_string()),
        ]
    }
}

/// LLaMA-Factory writes -1 for "as many as the epochs need".
fn max_steps(settings: &Settings, key: &'static str) -> Result<Option<usize>, ConfigError> {
    if settings.get(key).node.scalar() == Some("-1") {
        return Ok(None);
    }
    match settings.whole(key, 1, MAX_COUNT) {
        Ok(steps) => Ok(Some(steps as usize)),
        Err(_) => Err(settings.wrong(key, format!("-1, or a whole number from 1 to {MAX_COUNT}"))),
    }
}

/// Some readers of YAML take `no` for a truth value, so all its spellings mean the same here.
fn eval_strategy(settings: &Settings) -> Result<EvalStrategy, ConfigError> {
    match truth(&settings.get("eval_strategy").node) {
        Some(false) => Ok(EvalStrategy::No),
        _ => settings.word("eval_strategy", &[]),
    }
}
