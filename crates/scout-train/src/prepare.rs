//! Everything before the first weight is read: the model's shapes, the data as tokens, the order of updates, the plan.
//! All mistakes a user can make in files and keys are found here.

use std::path::Path;

use scout_checkpoint::{LoadedAdapter, check_model_file};
use scout_config::{self as written, EvalStrategy, RunConfig};
use scout_core::ExitCode;
use scout_data::{
    Dataset, DatasetRequest, Date, Dealing, Encoding, ExampleSet, FlatBatch, LossReduction, PackedOrder, SampleOrder,
    Shuffle, Template, TokenStatistics, Tokenizer, UpdateCounts, UpdateOrder, WeightedRow, compose_update, hold_out,
    tokenise,
};
use scout_model::{Batch, Document, Target};

use crate::error::{Result, TrainError};
use crate::load;
use crate::machine::{Hardware, Machine};
use crate::plan::{DataCounts, ModelSource, RunPlan};

/// The rows of a run as tokens, and the order in which updates take them.
pub struct RunData {
    pub examples: ExampleSet,
    pub held_out: ExampleSet,
    pub order: Box<dyn UpdateOrder + Send + Sync>,
    pub reduction: LossReduction,
    pub statistics: TokenStatistics,
}

pub struct Prepared {
    pub plan: RunPlan,
    pub data: RunData,
    /// The adapter that training goes on from.
    pub start: Option<LoadedAdapter>,
    pub notes: Vec<String>,
    pub machine: Machine,
}

/// What can be known of a run without the machine that it will run on.
pub struct Planned {
    pub plan: RunPlan,
    pub data: RunData,
    pub start: Option<LoadedAdapter>,
    pub notes: Vec<String>,
}

/// Reads and checks everything but weights, for a number of ranks on the host or for another machine.
pub fn prepare(config: &RunConfig, machine: impl Into<Machine>) -> Result<Prepared> {
    prepare_model(config, ModelSource::find(config, false)?, machine)
}

/// The same for a model that was found already.
pub fn prepare_model(config: &RunConfig, source: ModelSource, machine: impl Into<Machine>) -> Result<Prepared> {
    let machine: Machine = machine.into();
    machine.must_be_built()?;
    let Planned { plan, data, start, notes } = plan_model(config, source, &machine)?;
    Ok(Prepared { plan, data, start, notes, machine })
}

/// Reads and checks all that [`prepare_model`] does, for a machine that need not be here.
pub fn plan_model(config: &RunConfig, source: ModelSource, hardware: impl Into<Hardware>) -> Result<Planned> {
    let hardware: Hardware = hardware.into();
    let folder = source.folder.clone().ok_or_else(|| TrainError::Config {
        key: "model_name_or_path",
        problem: "is not given; training needs a folder with config.json and a tokenizer".to_string(),
    })?;
    let start = match &config.model.adapter_name_or_path {
        Some(path) => Some(load::adapter(path, &source.config)?),
        None => None,
    };
    let mut notes: Vec<String> = source.config.warning().into_iter().collect();
    if config.device.resident_layers != written::ResidentLayers::Auto {
        let effect = "a rank alone holds every layer, and plans for more ranks do not use it yet";
        notes.push(format!("`resident_layers` has no effect: {effect}"));
    }
    if let Some(start) = &start {
        let settings = &start.settings;
        notes.push(format!(
            "going on from the adapter's own rank {} and alpha {}; `lora_*` keys describe new adapters only",
            settings.rank, settings.alpha
        ));
    }
    let data = read_data(config, &folder, source.config.vocab_size, hardware.world_size)?;
    let plan = RunPlan::resolve(config, source, hardware, Some(data.counts(config)), start.as_ref())?;
    let steps = plan.steps.expect("data is known");
    if steps.total_steps == 0 {
        return Err(TrainError::Config { key: "num_train_epochs", problem: "leaves no step to train".to_string() });
    }
    let statistics = &data.statistics;
    if statistics.rows_cut > 0 {
        notes.push(format!(
            "{:.1} % of the rows were cut at {} tokens, {:.1} % of the learned tokens lost",
            100.0 * statistics.share_of_rows_cut(),
            config.data.cutoff_len,
            100.0 * statistics.share_of_targets_cut()
        ));
    }
    Ok(Planned { plan, data, start, notes })
}

/// The template that a configuration means, over the tokenizer of `folder`.
pub fn template(config: &RunConfig, folder: &Path) -> Result<Template> {
    let name = config.data.template.as_deref().unwrap_or("llama4");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        check_model_file(folder, file)?;
    }
    Ok(Template::by_name(name, Tokenizer::load(folder)?, Date::now())?)
}

/// The conversations that a configuration names.
pub fn dataset(config: &RunConfig) -> Result<Dataset> {
    let data = &config.data;
    Ok(Dataset::load(&DatasetRequest {
        names: data.dataset.clone(),
        dataset_dir: Some(data.dataset_dir.clone()),
        max_samples: data.max_samples,
        max_row_bytes: data.max_row_bytes,
        seed: config.train.seed,
    })?)
}

pub fn encoding(config: &RunConfig) -> Result<Encoding> {
    let data = &config.data;
    Ok(Encoding::from_keys(data.cutoff_len, data.train_on_prompt, data.mask_history)?)
}

fn read_data(config: &RunConfig, folder: &Path, vocab_size: usize, world_size: usize) -> Result<RunData> {
    let template = template(config, folder)?;
    let num_ids = template.tokenizer().num_ids();
    if num_ids > vocab_size {
        return Err(TrainError::Input {
            path: folder.join("tokenizer.json").display().to_string(),
            problem: format!("has ids below {num_ids}, more than the model's vocabulary of {vocab_size}"),
            code: ExitCode::BadData,
        });
    }
    let all = tokenise(&dataset(config)?, &template, &encoding(config)?)?;
    let statistics = *all.statistics();
    let (train, held_out) = hold_out(config.train.seed, all.len(), config.data.val_size)?;
    let (examples, held_out) = (all.select(&train), all.select(&held_out));
    let order = order(config, &examples, world_size)?;
    let reduction = match config.train.loss_reduction {
        written::LossReduction::Token => LossReduction::Token,
        written::LossReduction::MicroBatchMean => LossReduction::MicroBatchMean,
    };
    Ok(RunData { examples, held_out, order, reduction, statistics })
}

fn order(config: &RunConfig, examples: &ExampleSet, world: usize) -> Result<Box<dyn UpdateOrder + Send + Sync>> {
    let train = &config.train;
    let dealing =
        Dealing { world, batch: train.per_device_train_batch_size, accumulation: train.gradient_accumulation_steps };
    let shuffle = if config.data.disable_shuffling { Shuffle::Off } else { Shuffle::Seeded(train.seed) };
    if config.data.packing || config.data.neat_packing {
        let capacity = train.per_device_train_batch_size * config.data.cutoff_len;
        return Ok(Box::new(PackedOrder::new(&examples.lengths(), capacity, dealing, shuffle)?));
    }
    Ok(Box::new(SampleOrder::new(examples.len(), dealing, shuffle)?))
}

impl RunData {
    /// The micro-batches of one rank in one update, and what the update holds over all ranks.
    pub fn update(&self, step: usize, rank: usize, chunk_size: usize) -> Result<(Vec<Batch>, UpdateCounts)> {
        let (flat, counts) = compose_update(&self.examples, &*self.order, step as u64, rank, self.reduction);
        let batches = flat.iter().map(|flat| batch(flat, chunk_size)).collect::<Result<_>>()?;
        Ok((batches, counts))
    }

    /// The held-out rows of one rank; see [`scoring_batches`].
    pub fn evaluation(
        &self,
        rows_per_batch: usize,
        world: usize,
        rank: usize,
        chunk_size: usize,
    ) -> Result<Vec<Batch>> {
        scoring_batches(&self.held_out, rows_per_batch, (world, rank), chunk_size)
    }

    /// Every row that is trained on, once, to be scored on one rank.
    pub fn all_rows(&self, rows_per_batch: usize, chunk_size: usize) -> Result<Vec<Batch>> {
        scoring_batches(&self.examples, rows_per_batch, (1, 0), chunk_size)
    }

    fn counts(&self, config: &RunConfig) -> DataCounts {
        let rows_per_batch = config.train.per_device_train_batch_size;
        let budget = rows_per_batch * config.data.cutoff_len;
        let mut lengths = self.examples.lengths();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let longest: usize = lengths.iter().take(rows_per_batch).sum();
        let packs = config.data.packing || config.data.neat_packing;
        let fitting = lengths.iter().rev().scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        });
        DataCounts {
            num_rows: self.examples.len(),
            updates_per_epoch: self.order.updates_per_epoch() as usize,
            most_tokens: if packs { budget } else { longest },
            longest_row: lengths.first().copied().unwrap_or(0),
            most_rows: if packs { fitting.take_while(|sum| *sum <= budget).count().max(1) } else { rows_per_batch },
        }
    }
}

/// The rows of one rank, `rows_per_batch` at a time; every rank gets the same number of batches, if need be empty ones.
/// Each target weighs one over all targets of all ranks.
fn scoring_batches(
    examples: &ExampleSet,
    rows_per_batch: usize,
    (world, rank): (usize, usize),
    chunk_size: usize,
) -> Result<Vec<Batch>> {
    let num_targets: usize = (0..examples.len()).map(|row| examples.targets(row)).sum();
    let weight = (1.0 / num_targets.max(1) as f64) as f32;
    let rows: Vec<WeightedRow> = (0..examples.len()).map(|row| WeightedRow { row, weight }).collect();
    let dealt: Vec<&[WeightedRow]> = rows.chunks(rows_per_batch).collect();
    (0..dealt.len().div_ceil(world))
        .map(|turn| {
            let rows = dealt.get(turn * world + rank).copied().unwrap_or_default();
            batch(&FlatBatch::from_rows(examples, rows), chunk_size)
        })
        .collect()
}

/// Whether and how often the held-out rows are scored: every so many steps.
pub fn evaluation_interval(config: &RunConfig, updates_per_epoch: usize) -> Option<usize> {
    match config.train.eval_strategy {
        EvalStrategy::No => None,
        EvalStrategy::Epoch => Some(updates_per_epoch),
        EvalStrategy::Steps => Some(config.train.eval_steps.unwrap_or(config.train.logging_steps)),
    }
}

fn batch(flat: &FlatBatch, chunk_size: usize) -> Result<Batch> {
    let bounds = flat.document_starts.windows(2).zip(&flat.sample_ids);
    let documents: Vec<Document> = bounds
        .map(|(bound, &sample_id)| Document {
            sample_id,
            tokens: flat.ids[bound[0] as usize..bound[1] as usize].to_vec(),
        })
        .collect();
    let target = |t: &scout_data::Target| Target { row: t.position, token: t.token, weight: t.weight };
    let targets: Vec<Target> = flat.targets.iter().map(target).collect();
    Ok(Batch::new(&documents, &targets, chunk_size)?)
}
