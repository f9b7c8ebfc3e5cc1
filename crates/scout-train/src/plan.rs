//! The resolved plan of a run: every number that follows from configuration, shapes, data and the number of ranks,
//! derived once and printed before any weight is read. Below this point nothing is optional.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use scout_checkpoint::{AdapterLayout, CheckpointError, LoadedAdapter, ModelFolder, read_model_json};
use scout_config::{self as written, RunConfig};
use scout_core::{ExitCode, ParamSpec, Projection, UnitId};
use scout_device::cuda::Choice;
use scout_model::{Keep, LoraLayout, LoraSettings, Model, ModelConfig, NameStyle, UnitPlan};
use scout_shard::{ShardPlan, WeightsMode};

use crate::adapter::AdapterState;
use crate::error::{Result, TrainError};
use crate::load;
use crate::machine::{Hardware, Kind};
use crate::memory::{self, LargestBatch, MemoryPlan, WAYS};
use crate::optimizer::OptimizerSettings;
use crate::reducer::most_in_flight;
use crate::schedule::{Decay, LearningRate};
use crate::trained_weights::TrainedWeights;
use crate::trainer::{Schedules, StepSettings};
use crate::weight_set::WeightSet;

/// Units gathered ahead of the block in use.
pub(crate) const LOOKAHEAD: usize = 2;
/// Where the model comes from.
#[derive(Debug, Clone)]
pub struct ModelSource {
    pub config: ModelConfig,
    pub style: NameStyle,
    /// The folder of weights and tokenizer; `None` for a built-in shape without files.
    pub folder: Option<PathBuf>,
}

#[derive(Debug)]
pub struct RunPlan {
    pub source: ModelSource,
    pub hardware: Hardware,
    pub units: UnitPlan,
    pub shards: ShardPlan,
    pub schedules: Schedules,
    /// On no projection where weights are trained.
    pub lora: LoraSettings,
    /// Empty where adapters are trained.
    pub weights: Arc<WeightSet>,
    pub adapter_layout: AdapterLayout,
    /// That of the way of keeping that was chosen.
    pub memory: MemoryPlan,
    /// All ways of keeping, from the one that keeps the most, each with the memory it takes.
    pub ways: [(Keep, MemoryPlan); WAYS.len()],
    /// How algorithms of a GPU are chosen: the same in every run, or by their speed.
    pub choice: Choice,
    pub steps: Option<StepsPlan>,
    pub settings: StepSettings,
}

/// How many updates there are; unknown without data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepsPlan {
    pub num_rows: usize,
    pub updates_per_epoch: usize,
    pub total_steps: usize,
    pub warmup_steps: usize,
}

impl ModelSource {
    /// Reads the shapes of the configured model. With `shape_suffices`, a name that ends in Scout's own and is no
    /// folder means the built-in shape.
    pub fn find(config: &RunConfig, shape_suffices: bool) -> Result<ModelSource> {
        let builtin = || ModelSource { config: ModelConfig::scout(), style: NameStyle::Conditional, folder: None };
        let Some(path) = &config.model.model_name_or_path else { return Ok(builtin()) };
        let is_scout = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("Llama-4-Scout-17B-16E"));
        if !path.exists() {
            if shape_suffices && is_scout {
                return Ok(builtin());
            }
            return Err(TrainError::Input {
                path: path.display().to_string(),
                problem: "is not a folder with a model (`model_name_or_path`)".to_string(),
                code: ExitCode::MissingInput,
            });
        }
        let model = ModelConfig::parse(&path.join("config.json"), &read_model_json(path, "config.json")?)?;
        // Random weights need shapes and names, not files; the text class is what they imitate.
        let style = match config.model.random_weights {
            true => NameStyle::Text,
            false => match (ModelFolder::open(path), shape_suffices) {
                // Where only shapes are asked for, weights may still be on their way.
                (Err(CheckpointError::Empty { .. }), true) if model.vision.is_some() => NameStyle::Conditional,
                (Err(CheckpointError::Empty { .. }), true) => NameStyle::Text,
                (opened, _) => checked_style(&opened?, &model)?,
            },
        };
        Ok(ModelSource { config: model, style, folder: Some(path.clone()) })
    }
}

/// The style of the names, once the folder is seen to hold exactly the tensors of the model.
fn checked_style(files: &ModelFolder, model: &ModelConfig) -> Result<NameStyle> {
    let style = NameStyle::of_names(files.names());
    files.check(&UnitPlan::new(model, style).checkpoint_params(model, style), &UnitPlan::STORED_AS)?;
    Ok(style)
}

impl RunPlan {
    /// Derives everything. `data` is known once the data is read; `start` is the adapter that
    /// training goes on from, whose rank and targets win over the configuration's.
    pub fn resolve(
        config: &RunConfig,
        source: ModelSource,
        hardware: impl Into<Hardware>,
        data: Option<DataCounts>,
        start: Option<&LoadedAdapter>,
    ) -> Result<RunPlan> {
        let hardware: Hardware = hardware.into();
        let units = UnitPlan::new(&source.config, source.style);
        let weights = WeightSet::of(&config.lora, &units, source.config.num_layers)?;
        check_hardware(&hardware, &weights)?;
        if !weights.is_empty() {
            check_output(config, &source)?;
        }
        let shards = ShardPlan::new(units.units(), hardware.world_size, weights_mode(config), LOOKAHEAD);
        let shards = shards.stored_as(hardware.compute.dtype());
        let model = Model::new(&source.config, &units)?;
        let schedules = match weights.is_empty() {
            true => Schedules::of(&model),
            false => Schedules::of_weights(&model, &weights),
        };
        let lora = match start {
            Some(start) => load::lora_settings(&start.settings, &start.projections),
            None if weights.is_empty() => lora_settings(&config.lora),
            None => LoraSettings { projections: BTreeSet::new(), ..lora_settings(&config.lora) },
        };
        let dropout = start.map_or(config.lora.lora_dropout, |start| start.settings.dropout);
        let pass = memory::Pass {
            config: &source.config,
            lora: &lora,
            drops: dropout > 0.0,
            // A layer is two blocks; one that is walked back by half keeps all that a layer keeps.
            kept_layers: (model.blocks.len() - schedules.first_backward).div_ceil(2),
            batch: largest_batch(config, data),
            kind: hardware.kind,
            compute: hardware.compute,
            choice: if config.device.deterministic { Choice::First } else { Choice::Timed },
        };
        let most = MemoryPlan {
            shard: shards.kept_bytes(),
            gathered: shards.gathered_peak(&schedules.train),
            trained: AdapterState::bytes(&LoraLayout::new(&source.config, &lora), &hardware)
                + TrainedWeights::bytes(&weights, &shards)
                + most_in_flight(&weights, &shards, &schedules.send),
            activations: pass.activations(Keep::Everything),
            workspace: pass.workspace(),
            budget: config.device.device_memory.or(hardware.memory(shards.kept_bytes())),
        };
        let ways = WAYS.map(|keep| (keep, MemoryPlan { activations: pass.activations(keep), ..most }));
        let (keep, memory) = choose(&ways, pass.batch)?;
        let choice = pass.choice;
        let steps = data.map(|data| steps(config, data));
        let settings = step_settings(config, keep, steps, dropout);
        let adapter_layout = adapter_layout(config, source.style);
        let weights = Arc::new(weights);
        Ok(RunPlan {
            source,
            hardware,
            units,
            shards,
            schedules,
            lora,
            weights,
            adapter_layout,
            memory,
            ways,
            choice,
            steps,
            settings,
        })
    }

    pub fn world_size(&self) -> usize {
        self.hardware.world_size
    }

    pub fn num_trained(&self) -> usize {
        LoraLayout::new(&self.source.config, &self.lora).num_elements() + self.weights.num_elements(&self.units)
    }

    /// Floating-point operations of one update that count as useful. For adapters those of [`useful_flops`]. Where weights
    /// are trained, each matrix counts twice its active parameters a token for the forward pass, twice more for the
    /// gradient of its input if its block is walked back, and twice more for its own gradient if it is trained; attention
    /// counts once forward, and two and a half times where it is walked back.
    pub fn useful_flops(&self, num_tokens: usize, attended_pairs: u64) -> f64 {
        let config = &self.source.config;
        if self.weights.is_empty() {
            return useful_flops(config, num_tokens, attended_pairs);
        }
        let active = |param: &ParamSpec| match param.shape.dims() {
            [_] => 0, // norms
            [_, _] => param.num_elements(),
            [num_experts, ..] => param.num_elements() / num_experts,
            [] => 0,
        };
        let walked: Vec<UnitId> = self.schedules.send.order().to_vec();
        let mut per_token = 0;
        // The embedding looks up and multiplies nothing.
        for unit in self.units.units().iter().filter(|unit| unit.id != self.units.embedding()) {
            for (index, param) in unit.params.iter().enumerate() {
                let (is_walked, is_trained) = (walked.contains(&unit.id), self.weights.contains(unit.id, index));
                per_token += 2 * active(param) * (1 + usize::from(is_walked) + usize::from(is_trained));
            }
        }
        let is_walked = |layer: &usize| walked.contains(&self.units.layer(*layer).attention);
        let walked_layers = (0..config.num_layers).filter(is_walked).count();
        let of_attention = attention_forward(config, attended_pairs);
        let share_walked = walked_layers as f64 / config.num_layers as f64;
        per_token as f64 * num_tokens as f64 + of_attention * (1.0 + 2.5 * share_walked)
    }
}

/// What the data says about the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataCounts {
    pub num_rows: usize,
    pub updates_per_epoch: usize,
    /// Tokens of the largest micro-batch.
    pub most_tokens: usize,
    pub longest_row: usize,
    /// Rows of a micro-batch, at most.
    pub most_rows: usize,
}

fn weights_mode(config: &RunConfig) -> WeightsMode {
    match config.device.weights {
        written::Weights::Resident => WeightsMode::Resident,
        written::Weights::Auto | written::Weights::Zero3 => WeightsMode::Zero3,
    }
}

fn adapter_layout(config: &RunConfig, style: NameStyle) -> AdapterLayout {
    match (config.output.adapter_layout, style) {
        (written::AdapterLayout::Text, _) | (written::AdapterLayout::Auto, NameStyle::Text) => AdapterLayout::Text,
        (written::AdapterLayout::Conditional, _) | (written::AdapterLayout::Auto, NameStyle::Conditional) => {
            AdapterLayout::Conditional
        }
    }
}

/// As much is kept as the budget allows; what is not kept is computed again.
fn choose(ways: &[(Keep, MemoryPlan)], batch: LargestBatch) -> Result<(Keep, MemoryPlan)> {
    if let Some(way) = ways.iter().find(|(_, memory)| memory.fits()) {
        return Ok(*way);
    }
    let (_, least) = ways[ways.len() - 1];
    let (needed, budget) = (least.total(), least.budget.unwrap_or_default());
    Err(TrainError::DoesNotFit { needed, budget, tokens: batch.num_tokens })
}

/// Without data every row may be as long as the configuration lets it be.
fn largest_batch(config: &RunConfig, data: Option<DataCounts>) -> LargestBatch {
    let (num_rows, longest_row) = (config.train.per_device_train_batch_size, config.data.cutoff_len);
    match data {
        None => LargestBatch { num_rows, num_tokens: num_rows * longest_row, longest_row },
        Some(data) => LargestBatch {
            num_rows: data.most_rows,
            num_tokens: data.most_tokens.max(1),
            longest_row: data.longest_row,
        },
    }
}

/// What is not built yet for GPUs is refused before anything is read.
fn check_hardware(hardware: &Hardware, weights: &WeightSet) -> Result<()> {
    if hardware.kind == Kind::Gpu && !weights.is_empty() {
        let problem = "only `lora` is built on a GPU so far; `full` and `freeze` need `device: cpu`".to_string();
        return Err(TrainError::Config { key: "finetuning_type", problem });
    }
    Ok(())
}

/// The base is read again while the result is written, so the two may not lie in one folder.
fn check_output(config: &RunConfig, source: &ModelSource) -> Result<()> {
    let real = |path: &PathBuf| std::fs::canonicalize(path).ok();
    let (Some(output), Some(model)) = (&config.output.output_dir, &source.folder) else { return Ok(()) };
    if real(output).is_some_and(|output| Some(output) == real(model)) {
        let problem = "is the folder of the base model, which training whole weights would replace".to_string();
        return Err(TrainError::Config { key: "output_dir", problem });
    }
    Ok(())
}

fn lora_settings(lora: &written::LoraConfig) -> LoraSettings {
    let targets = &lora.lora_target;
    let projections: BTreeSet<Projection> = [
        (targets.q, Projection::Q),
        (targets.k, Projection::K),
        (targets.v, Projection::V),
        (targets.o, Projection::O),
        (targets.gate, Projection::SharedGate),
        (targets.up, Projection::SharedUp),
        (targets.down, Projection::SharedDown),
        (targets.experts_gate_up, Projection::ExpertsGateUp),
        (targets.experts_down, Projection::ExpertsDown),
    ]
    .into_iter()
    .filter_map(|(is_target, projection)| is_target.then_some(projection))
    .collect();
    LoraSettings { rank: lora.lora_rank, alpha: lora.lora_alpha, use_rslora: lora.use_rslora, projections }
}

fn steps(config: &RunConfig, data: DataCounts) -> StepsPlan {
    let train = &config.train;
    let by_epochs = (data.updates_per_epoch as f64 * train.num_train_epochs).ceil() as usize;
    let total_steps = train.max_steps.unwrap_or(by_epochs);
    let warmup_steps = match train.warmup_steps {
        0 => (total_steps as f64 * train.warmup_ratio).ceil() as usize,
        steps => steps,
    };
    StepsPlan { num_rows: data.num_rows, updates_per_epoch: data.updates_per_epoch, total_steps, warmup_steps }
}

fn step_settings(config: &RunConfig, keep: Keep, steps: Option<StepsPlan>, dropout: f64) -> StepSettings {
    let train = &config.train;
    StepSettings {
        keep,
        lora_dropout: dropout as f32,
        seed: train.seed,
        optimizer: OptimizerSettings {
            beta1: train.adam_beta1,
            beta2: train.adam_beta2,
            epsilon: train.adam_epsilon,
            weight_decay: train.weight_decay,
            // As in the usual trainers, 0 switches clipping off.
            max_grad_norm: (train.max_grad_norm > 0.0).then_some(train.max_grad_norm),
        },
        learning_rate: LearningRate {
            peak: train.learning_rate,
            warmup_steps: steps.map_or(0, |steps| steps.warmup_steps),
            total_steps: steps.map_or(1, |steps| steps.total_steps),
            decay: match train.lr_scheduler_type {
                written::LrSchedulerType::Linear => Decay::Linear,
                written::LrSchedulerType::Cosine => Decay::Cosine,
                written::LrSchedulerType::Constant | written::LrSchedulerType::ConstantWithWarmup => Decay::Constant,
            },
        },
    }
}

/// Floating-point operations of one update that count as useful: forward and activation gradients, head included; no
/// recomputation, no adapter. Attention counts its causal half, once forward and two and a half times backward.
pub fn useful_flops(config: &ModelConfig, num_tokens: usize, attended_pairs: u64) -> f64 {
    let of_attention = attention_forward(config, attended_pairs);
    4.0 * config.num_active_matmul_params() as f64 * num_tokens as f64 + 3.5 * of_attention
}

fn attention_forward(config: &ModelConfig, attended_pairs: u64) -> f64 {
    4.0 * (config.num_layers * config.num_heads * config.head_dim) as f64 * attended_pairs as f64
}
