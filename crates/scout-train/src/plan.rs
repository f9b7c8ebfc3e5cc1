//! The resolved plan of a run: every number that follows from configuration, shapes, data and the number of ranks,
//! derived once and printed before any weight is read. Below this point nothing is optional.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use scout_checkpoint::{AdapterLayout, CheckpointError, LoadedAdapter, ModelFolder, read_model_json};
use scout_comm::gpu::RowsSize;
use scout_config::{self as written, RunConfig};
use scout_core::{ByteCount, DType, ParamSpec, Projection, UnitId};
use scout_device::cuda::Choice;
use scout_model::{AttendedPairs, LoraLayout, LoraSettings, Model, ModelConfig, NameStyle, UnitPlan};
use scout_shard::ShardPlan;

use crate::adapter::AdapterState;
use crate::choice;
use crate::error::{Result, TrainError};
use crate::learning_rate::{Decay, LearningRate};
use crate::load;
use crate::machine::{Hardware, Kind};
use crate::memory::{self, LargestBatch, MemoryPlan};
use crate::optimizer::OptimizerSettings;
use crate::rates::{self, Link};
use crate::reducer::most_in_flight;
use crate::runs::{Largest, Rows};
use crate::schedules::Schedules;
use crate::trained_weights::TrainedWeights;
use crate::trainer::StepSettings;
use crate::ways::{Experts, LOOKAHEAD, MayBe, Run, Way, rows_size};
use crate::weight_set::WeightSet;

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
    /// That of the way that was chosen.
    pub memory: MemoryPlan,
    /// `device_memory` as written, where the device has less: then the plan is made for that.
    pub more_than_free: Option<ByteCount>,
    /// Runs in which each rank computes its rows of an update, one behind the other.
    pub runs: usize,
    /// The one that was chosen.
    pub way: Way,
    /// The fastest first where they differ in more than what they keep and memory is known; else from the one that keeps the
    /// most, and where experts come before where they stay.
    pub ways: Vec<Way>,
    /// How many times an even share of rows is expected at the busiest rank's experts, where they may stay.
    pub busiest_share: Option<f64>,
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
            return Err(TrainError::NoModel { path: path.clone() });
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
        let work = Work::of(config, &source, start)?;
        check_hardware(&hardware, &work.weights)?;
        let run = work.on(hardware, config, &source.config, data)?;
        let (way, ways) = choice::choose(config, &run)?;
        let is_more = |written: &ByteCount| run.budget.is_some_and(|budget| *written > budget);
        let more_than_free = config.device.device_memory.filter(is_more);
        let shards = run.shards(&way.resident, way.experts, way.lookahead);
        let choice = run.pass.choice;
        let busiest_share = (run.experts != MayBe::Only(Experts::Come)).then_some(run.busiest_share);
        let steps = data.map(|data| steps(config, data));
        let settings = step_settings(config, &way, steps, work.dropout);
        let adapter_layout = adapter_layout(config, source.style);
        let Work { units, schedules, weights, lora, .. } = work;
        Ok(RunPlan {
            source,
            hardware,
            units,
            shards,
            schedules,
            lora,
            weights: Arc::new(weights),
            adapter_layout,
            memory: way.memory,
            more_than_free,
            runs: way.runs,
            way,
            ways,
            busiest_share,
            choice,
            steps,
            settings,
        })
    }

    pub fn world_size(&self) -> usize {
        self.hardware.world_size
    }

    /// How large exchanges of rows are at most.
    pub fn rows_size(&self) -> RowsSize {
        rows_size(&self.source.config, self.way.most_rows, self.hardware.compute)
    }

    /// What the result takes on disk, at least: an adapter in f32, or all weights in the smallest type that is written.
    pub fn least_result(&self) -> ByteCount {
        match self.weights.is_empty() {
            true => DType::F32.size() * self.num_trained() as u64,
            false => DType::BF16.size() * self.source.config.num_params(),
        }
    }

    pub fn num_trained(&self) -> usize {
        LoraLayout::new(&self.source.config, &self.lora).num_elements() + self.weights.num_elements(&self.units)
    }

    /// Floating-point operations of one update that count as useful. For adapters those of [`useful_flops`]. Where weights
    /// are trained, each matrix counts twice its active parameters a token for the forward pass, twice more for the
    /// gradient of its input if its block is walked back, and twice more for its own gradient if it is trained; attention
    /// counts once forward, and two and a half times where it is walked back.
    pub fn useful_flops(&self, num_tokens: usize, pairs: AttendedPairs) -> f64 {
        let config = &self.source.config;
        if self.weights.is_empty() {
            return useful_flops(config, num_tokens, pairs);
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
        // The last ones.
        let forward = attention_forward(config, 0..config.num_layers, pairs);
        let of_walked = attention_forward(config, config.num_layers - walked_layers..config.num_layers, pairs);
        per_token as f64 * num_tokens as f64 + forward + 2.5 * of_walked
    }
}

/// What is walked and what of it is trained, whatever computes it.
struct Work {
    units: UnitPlan,
    schedules: Schedules,
    /// Layers that are walked back, the last ones.
    num_kept_layers: usize,
    weights: WeightSet,
    lora: LoraSettings,
    dropout: f64,
}

impl Work {
    fn of(config: &RunConfig, source: &ModelSource, start: Option<&LoadedAdapter>) -> Result<Work> {
        let units = UnitPlan::new(&source.config, source.style);
        let weights = WeightSet::of(&config.lora, &units, source.config.num_layers)?;
        check_output(config, source)?;
        let model = Model::new(&source.config, &units)?;
        let schedules = match weights.is_empty() {
            true => Schedules::of(&model),
            false => Schedules::of_weights(&model, &weights),
        };
        // A layer is two blocks; one that is walked back by half keeps all that a layer keeps.
        let num_kept_layers = (model.blocks.len() - schedules.first_backward).div_ceil(2);
        let lora = match start {
            Some(start) => load::lora_settings(&start.settings, &start.projections),
            None if weights.is_empty() => lora_settings(&config.lora),
            None => LoraSettings { projections: BTreeSet::new(), ..lora_settings(&config.lora) },
        };
        let dropout = start.map_or(config.lora.lora_dropout, |start| start.settings.dropout);
        Ok(Work { units, schedules, num_kept_layers, weights, lora, dropout })
    }

    /// The same on `hardware` and over `data`, for which a way can then be chosen.
    fn on<'a>(
        &'a self,
        hardware: Hardware,
        config: &RunConfig,
        model: &'a ModelConfig,
        data: Option<DataCounts>,
    ) -> Result<Run<'a>> {
        let rows = rows(config, data);
        let pass = memory::PassShape {
            config: model,
            lora: &self.lora,
            drops: self.dropout > 0.0,
            num_kept_layers: self.num_kept_layers,
            batch: rows.largest_run(rows.num_micro_batches),
            kind: hardware.kind,
            compute: hardware.compute,
            choice: if config.device.deterministic { Choice::First } else { Choice::Timed },
            num_sources: 1,
        };
        let layout = LoraLayout::new(model, &self.lora);
        let experts = choice::experts(config, &hardware, (model, &self.weights))?;
        let expected = || rates::busiest_share(model.num_experts, hardware.world_size);
        Ok(Run {
            units: &self.units,
            schedules: &self.schedules,
            hardware,
            pass,
            rows,
            link: Link::of(config.device.gather, hardware.world_size),
            experts,
            busiest_share: data.and_then(|data| data.busiest_share).unwrap_or_else(expected),
            num_adapter_elements: layout.num_elements(),
            trained: AdapterState::bytes(&layout, &hardware) + self.weight_bytes(config, &hardware),
            budget: choice::budget(config.device.device_memory, hardware.memory()),
        })
    }

    /// Of trained weights, with all that goes with them.
    fn weight_bytes(&self, config: &RunConfig, hardware: &Hardware) -> ByteCount {
        // However weights are held, parts and sums of what is trained are the same.
        let is_whole = config.device.weights == written::Weights::Resident;
        let shards = ShardPlan::new(self.units.units(), hardware.world_size, &|_| is_whole, LOOKAHEAD);
        let shards = shards.stored_as(hardware.compute.dtype());
        TrainedWeights::bytes(&self.weights, &shards) + most_in_flight(&self.weights, &shards, &self.schedules.send)
    }
}

/// What the data says about the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataCounts {
    pub num_rows: usize,
    pub updates_per_epoch: usize,
    pub trained: Largest,
    /// Of held-out rows, as many at a time as an update has; nothing where they are not scored.
    pub scored: Largest,
    /// How many times an even share of all rows the busiest rank's experts have, where that is known beforehand.
    pub busiest_share: Option<f64>,
}

fn adapter_layout(config: &RunConfig, style: NameStyle) -> AdapterLayout {
    match (config.output.adapter_layout, style) {
        (written::AdapterLayout::Text, _) | (written::AdapterLayout::Auto, NameStyle::Text) => AdapterLayout::Text,
        (written::AdapterLayout::Conditional, _) | (written::AdapterLayout::Auto, NameStyle::Conditional) => {
            AdapterLayout::Conditional
        }
    }
}

/// Without data every row is as long as it may be.
fn rows(config: &RunConfig, data: Option<DataCounts>) -> Rows {
    let (num_rows, longest_row) = (config.train.per_device_train_batch_size, config.data.cutoff_len);
    let num_micro_batches = config.train.gradient_accumulation_steps;
    let (trained, scored) = match data {
        Some(data) => (data.trained, data.scored),
        None => {
            let micro_batch = LargestBatch { num_rows, num_tokens: num_rows * longest_row, longest_row };
            (Largest::of_alike(micro_batch, num_micro_batches), Largest::default())
        }
    };
    Rows { num_micro_batches, trained, scored }
}

/// What is not built yet for GPUs is refused before anything is read.
fn check_hardware(hardware: &Hardware, weights: &WeightSet) -> Result<()> {
    if hardware.kind == Kind::Gpu && !weights.is_empty() {
        let problem = "only `lora` is built on a GPU so far; `full` and `freeze` need `device: cpu`".to_string();
        return Err(TrainError::Config { key: "finetuning_type", problem });
    }
    Ok(())
}

/// What is written at the end would replace files of the base: its weights, or the tokenizer beside an adapter.
fn check_output(config: &RunConfig, source: &ModelSource) -> Result<()> {
    let real = |path: &PathBuf| std::fs::canonicalize(path).ok();
    let (Some(output), Some(model)) = (&config.output.output_dir, &source.folder) else { return Ok(()) };
    if real(output).is_some_and(|output| Some(output) == real(model)) {
        let problem = "is the folder of the base model, whose files the result would replace".to_string();
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

/// Updates of a whole run.
pub(crate) fn num_steps(config: &RunConfig, updates_per_epoch: usize) -> usize {
    let by_epochs = (updates_per_epoch as f64 * config.train.num_train_epochs).ceil() as usize;
    config.train.max_steps.unwrap_or(by_epochs)
}

fn steps(config: &RunConfig, data: DataCounts) -> StepsPlan {
    let train = &config.train;
    let total_steps = num_steps(config, data.updates_per_epoch);
    let warmup_steps = match train.warmup_steps {
        0 => (total_steps as f64 * train.warmup_ratio).ceil() as usize,
        steps => steps,
    };
    StepsPlan { num_rows: data.num_rows, updates_per_epoch: data.updates_per_epoch, total_steps, warmup_steps }
}

fn step_settings(config: &RunConfig, way: &Way, steps: Option<StepsPlan>, dropout: f64) -> StepSettings {
    let train = &config.train;
    StepSettings {
        keep: way.keep,
        most_kept_rows: way.most_kept_rows,
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
pub fn useful_flops(config: &ModelConfig, num_tokens: usize, pairs: AttendedPairs) -> f64 {
    let of_attention = attention_forward(config, 0..config.num_layers, pairs);
    4.0 * config.num_active_matmul_params() as f64 * num_tokens as f64 + 3.5 * of_attention
}

/// On some of the layers: those that rotate see chunks.
fn attention_forward(config: &ModelConfig, layers: Range<usize>, pairs: AttendedPairs) -> f64 {
    let seen = |rotates: &bool| if *rotates { pairs.in_chunks } else { pairs.in_documents };
    let seen: u64 = config.rope_layers[layers].iter().map(seen).sum();
    4.0 * (config.num_heads * config.head_dim) as f64 * seen as f64
}
