//! The resolved plan of a run: every number that follows from configuration, shapes, data and the number of ranks,
//! derived once and printed before any weight is read. Below this point nothing is optional.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use scout_checkpoint::{AdapterLayout, CheckpointError, LoadedAdapter, ModelFolder, read_model_json};
use scout_config::{self as written, RunConfig};
use scout_core::{ByteCount, DType, ExitCode, ParamSpec, Projection, UnitId};
use scout_device::Device;
use scout_model::{Keep, LoraLayout, LoraSettings, Model, ModelConfig, NameStyle, UnitPlan};
use scout_shard::{ShardPlan, WeightsMode};

use crate::adapter::AdapterState;
use crate::machine::Machine;
use crate::optimizer::OptimizerSettings;
use crate::reducer::most_in_flight;
use crate::schedule::{Decay, LearningRate};
use crate::trained_weights::TrainedWeights;
use crate::trainer::{Schedules, StepSettings};
use crate::weight_set::WeightSet;
use crate::{Result, TrainError, load};

/// Units gathered ahead of the block in use.
pub(crate) const LOOKAHEAD: usize = 2;
/// The head computes its logits in chunks of at most this many bytes, twice: logits and their gradient.
const HEAD_CHUNK: ByteCount = ByteCount::mib(128);

/// On a GPU logits and their gradient share memory.
const GPU_HEAD_CHUNK: ByteCount = ByteCount(1 << 30);

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
    pub world_size: usize,
    pub units: UnitPlan,
    pub shards: ShardPlan,
    pub schedules: Schedules,
    /// On no projection where weights are trained.
    pub lora: LoraSettings,
    /// Empty where adapters are trained.
    pub weights: Arc<WeightSet>,
    pub adapter_layout: AdapterLayout,
    pub memory: MemoryPlan,
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

/// Predicted bytes on each rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    pub shard: ByteCount,
    pub gathered: ByteCount,
    /// Adapter, its gradient and moments; or moments and gradients of the parts of trained weights, and the whole
    /// gradients that are being made or under way.
    pub trained: ByteCount,
    pub activations: ByteCount,
    pub head: ByteCount,
    pub budget: Option<ByteCount>,
}

impl MemoryPlan {
    pub fn total(&self) -> ByteCount {
        [self.shard, self.gathered, self.trained, self.activations, self.head].into_iter().sum()
    }
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
    /// Derives everything. `rows` and `updates_per_epoch` are known once the data is; `start` is the adapter that
    /// training goes on from, whose rank and targets win over the configuration's.
    pub fn resolve(
        config: &RunConfig,
        source: ModelSource,
        machine: impl Into<Machine>,
        data: Option<DataCounts>,
        start: Option<&LoadedAdapter>,
    ) -> Result<RunPlan> {
        let machine: Machine = machine.into();
        let (world_size, compute) = (machine.world_size, machine.compute);
        let units = UnitPlan::new(&source.config, source.style);
        let mode = match config.device.weights {
            written::Weights::Resident => WeightsMode::Resident,
            written::Weights::Auto | written::Weights::Zero3 => WeightsMode::Zero3,
        };
        let shards = ShardPlan::new(units.units(), world_size, mode, LOOKAHEAD).stored_as(compute.dtype());
        let weights = WeightSet::of(&config.lora, &units, source.config.num_layers)?;
        check_machine(&machine, &weights)?;
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
        if !weights.is_empty() {
            check_output(config, &source)?;
        }
        let layout = LoraLayout::new(&source.config, &lora);
        let tokens = config.train.per_device_train_batch_size * config.data.cutoff_len;
        let tokens = data.map_or(tokens, |data| data.most_tokens.max(1));
        let fixed = MemoryPlan {
            shard: shards.kept_bytes(),
            gathered: shards.gathered_peak(&schedules.train),
            trained: AdapterState::bytes(&layout, world_size)
                + TrainedWeights::bytes(&weights, &shards)
                + most_in_flight(&weights, &shards, &schedules.send),
            activations: ByteCount(0),
            head: if matches!(machine.device, Device::Cpu) { HEAD_CHUNK } else { GPU_HEAD_CHUNK },
            budget: config.device.device_memory.or(machine.memory(shards.kept_bytes())),
        };
        // A layer is two blocks; one that is walked back by half keeps all that a layer keeps.
        let kept_layers = (model.blocks.len() - schedules.first_backward).div_ceil(2);
        let (keep, memory) = choose_keep(&source.config, (kept_layers, tokens, compute.dtype()), fixed)?;
        let steps = data.map(|data| steps(config, data));
        let settings = step_settings(config, keep, steps, start.map(|start| start.settings.dropout));
        let adapter_layout = match config.output.adapter_layout {
            written::AdapterLayout::Text => AdapterLayout::Text,
            written::AdapterLayout::Conditional => AdapterLayout::Conditional,
            written::AdapterLayout::Auto => match source.style {
                NameStyle::Text => AdapterLayout::Text,
                NameStyle::Conditional => AdapterLayout::Conditional,
            },
        };
        let weights = Arc::new(weights);
        Ok(RunPlan {
            source,
            world_size,
            units,
            shards,
            schedules,
            lora,
            weights,
            adapter_layout,
            memory,
            steps,
            settings,
        })
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
}

/// Keeps as much as the budget allows; what is not kept is computed again.
fn choose_keep(
    config: &ModelConfig,
    (kept_layers, tokens, dtype): (usize, usize, DType),
    fixed: MemoryPlan,
) -> Result<(Keep, MemoryPlan)> {
    let activations = |keep| dtype.size() * activation_elements(config, kept_layers, tokens, keep) as u64;
    let with = |keep| MemoryPlan { activations: activations(keep), ..fixed };
    for keep in [Keep::Everything, Keep::AllButGateUp, Keep::InputOnly] {
        let memory = with(keep);
        if fixed.budget.is_none_or(|budget| memory.total() <= budget) {
            return Ok((keep, memory));
        }
    }
    let least = with(Keep::InputOnly);
    Err(TrainError::DoesNotFit { needed: least.total(), budget: fixed.budget.unwrap_or_default(), tokens })
}

/// What is not built yet for GPUs is refused before anything is read.
fn check_machine(machine: &Machine, weights: &WeightSet) -> Result<()> {
    if matches!(machine.device, Device::Cpu) {
        return Ok(());
    }
    if machine.world_size > 1 {
        let problem = "training on several GPUs is not built yet: start one rank, or use `device: cpu`".to_string();
        return Err(TrainError::Config { key: "device", problem });
    }
    if !weights.is_empty() {
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

/// Elements that the blocks of `kept_layers` layers keep for the backward pass, and what one block needs beside them while
/// it computes.
pub fn activation_elements(config: &ModelConfig, kept_layers: usize, tokens: usize, keep: Keep) -> usize {
    let hidden = config.hidden_size;
    let q_width = config.num_heads * config.head_dim;
    let kv_width = 2 * config.num_kv_heads * config.head_dim;
    let attention_inner = 2 * q_width + kv_width + 2 * config.num_heads + config.num_kv_heads;
    let wide = 2 * 2 * config.intermediate_size;
    let kept_per_layer = match keep {
        Keep::Everything => 2 * hidden + attention_inner + wide,
        Keep::AllButGateUp => 2 * hidden + attention_inner,
        Keep::InputOnly => 2 * hidden,
    };
    // One block at work: its wide halves, their gradients, the hidden product and a few rows of the model's width.
    let at_work = 2 * wide + 2 * config.intermediate_size + 6 * hidden;
    tokens * (kept_layers * kept_per_layer + at_work)
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

fn step_settings(config: &RunConfig, keep: Keep, steps: Option<StepsPlan>, dropout: Option<f64>) -> StepSettings {
    let train = &config.train;
    StepSettings {
        keep,
        lora_dropout: dropout.unwrap_or(config.lora.lora_dropout) as f32,
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
