//! Everything before the first weight is read: the model's shapes, the data as tokens, the order of updates, the plan.
//! All mistakes a user can make in files and keys are found here.

use std::path::Path;

use scout_checkpoint::{LoadedAdapter, check_model_file};
use scout_config::{self as written, EvalStrategy, RunConfig};
use scout_core::ExitCode;
use scout_data::{
    Balance, Dataset, DatasetRequest, Date, Dealing, Dealt, Encoding, ExampleSet, FlatBatch, LossReduction,
    PackedOrder, RowCost, SampleOrder, Shuffle, Template, TokenStatistics, Tokenizer, UpdateCounts, UpdateOrder,
    UpdatePlan, WeightedRow, hold_out, tokenise,
};
use scout_model::{AttendedPairs, Batch, Document, ModelConfig, Target};

use crate::error::{Result, TrainError};
use crate::load;
use crate::machine::{Hardware, Machine};
use crate::memory::LargestBatch;
use crate::plan::{self, DataCounts, ModelSource, RunPlan, StepsPlan};
use crate::runs::{self, Largest};

/// Rows that are dealt for a plan, at most: some seconds' worth.
const MOST_ROWS_DEALT: usize = 1 << 22;

/// The rows of a run as tokens, and the order in which updates take them.
pub struct RunData {
    pub examples: ExampleSet,
    pub held_out: ExampleSet,
    pub order: Box<dyn UpdateOrder + Send + Sync>,
    pub reduction: LossReduction,
    /// By which ranks are balanced.
    pub cost: RowCost,
    /// In which a rank computes its rows of an update, as the plan says; before there is one, as many as micro-batches.
    pub runs: usize,
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

/// Reads and checks everything but weights, for a number of ranks on the host.
pub fn prepare(config: &RunConfig, world_size: usize) -> Result<Prepared> {
    Ok(plan_model(config, ModelSource::find(config, false)?, world_size)?.on(world_size.into()))
}

impl Planned {
    /// Ready for `machine`, which is the one that it was planned for.
    pub fn on(self, machine: Machine) -> Prepared {
        let Planned { plan, data, start, notes } = self;
        Prepared { plan, data, start, notes, machine }
    }

    /// How evenly the work of an epoch lies on the ranks, as far as the run gets and as can be dealt in some seconds.
    pub fn balance(&self) -> Balance {
        let steps = self.plan.steps.expect("data is known");
        let affordable = MOST_ROWS_DEALT / steps.num_rows.div_ceil(steps.updates_per_epoch).max(1);
        let num_steps = steps.total_steps.min(steps.updates_per_epoch).min(affordable.max(1));
        self.data.balance(num_steps)
    }
}

/// Reads and checks everything but weights, for a machine that need not be here.
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
    if config.device.resident_layers != written::ResidentLayers::Auto && hardware.world_size == 1 {
        notes.push("`resident_layers` has no effect: a rank alone holds every layer".to_string());
    }
    if let Some(start) = &start {
        let settings = &start.settings;
        notes.push(format!(
            "going on from the adapter's own rank {} and alpha {}; `lora_*` keys describe new adapters only",
            settings.rank, settings.alpha
        ));
    }
    let mut data = read_data(config, &folder, (&source.config, hardware.world_size), &mut notes)?;
    let plan = RunPlan::resolve(config, source, hardware, Some(data.counts(config)), start.as_ref())?;
    data.runs = plan.runs;
    let steps = plan.steps.expect("data is known");
    if steps.total_steps == 0 {
        return Err(TrainError::Config { key: "num_train_epochs", problem: "leaves no step to train".to_string() });
    }
    notes.extend(packing_note(config));
    notes.extend(wrap_note(config, &steps, plan.world_size()));
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

fn packing_note(config: &RunConfig) -> Option<String> {
    let data = &config.data;
    let note = "`packing` keeps rows apart as `neat_packing` does: no token sees another row";
    (data.packing && !data.neat_packing).then(|| note.to_string())
}

/// An epoch is whole updates: its last one is filled with rows from the beginning, which a small data set notices.
fn wrap_note(config: &RunConfig, steps: &StepsPlan, world_size: usize) -> Option<String> {
    const NOTICED: f64 = 0.05;
    if config.data.packing || config.data.neat_packing || steps.total_steps < steps.updates_per_epoch {
        return None;
    }
    let train = &config.train;
    let of_update = world_size * train.per_device_train_batch_size * train.gradient_accumulation_steps;
    let taken = steps.updates_per_epoch * of_update;
    let is_noticed = taken as f64 > (1.0 + NOTICED) * steps.num_rows as f64;
    is_noticed.then(|| {
        format!(
            "an update takes {of_update} rows, so an epoch of {} takes {taken} of a data set of {}: some rows count more than \
             once",
            steps.updates_per_epoch, steps.num_rows
        )
    })
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

fn read_data(
    config: &RunConfig,
    folder: &Path,
    (model, world_size): (&ModelConfig, usize),
    notes: &mut Vec<String>,
) -> Result<RunData> {
    let template = template(config, folder)?;
    let num_ids = template.tokenizer().num_ids();
    let vocab_size = model.vocab_size;
    if num_ids > vocab_size {
        return Err(TrainError::Input {
            path: folder.join("tokenizer.json").display().to_string(),
            problem: format!("has ids below {num_ids}, more than the model's vocabulary of {vocab_size}"),
            code: ExitCode::BadData,
        });
    }
    let conversations = dataset(config)?;
    notes.extend_from_slice(conversations.notes());
    let all = tokenise(&conversations, &template, &encoding(config)?)?;
    let statistics = *all.statistics();
    let (train, held_out) = hold_out(config.train.seed, all.len(), config.data.val_size)?;
    let (examples, held_out) = (all.select(&train), all.select(&held_out));
    let order = order(config, &examples, world_size)?;
    let reduction = match config.train.loss_reduction {
        written::LossReduction::Token => LossReduction::Token,
        written::LossReduction::MicroBatchMean => LossReduction::MicroBatchMean,
    };
    let runs = order.accumulation();
    Ok(RunData { examples, held_out, order, reduction, cost: row_cost(model), runs, statistics })
}

/// What a row costs by the count of useful operations, of which attention counts only what chunks let it see.
pub(crate) fn row_cost(model: &ModelConfig) -> RowCost {
    let none = AttendedPairs::default();
    let of = |pairs| plan::useful_flops(model, 0, pairs) / plan::useful_flops(model, 1, none);
    RowCost {
        chunk_size: model.attention_chunk_size,
        pair: of(AttendedPairs { in_documents: 1, ..none }),
        pair_in_chunk: of(AttendedPairs { in_chunks: 1, ..none }),
    }
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
    /// The runs of one rank in one update, and what the update holds over all ranks.
    pub fn update(&self, step: usize, rank: usize, chunk_size: usize) -> Result<(Vec<Batch>, UpdateCounts)> {
        let plan = self.update_plan(step);
        let flat = plan.flat_batches(&self.examples, rank);
        let batches = flat.iter().map(|flat| batch(flat, chunk_size)).collect::<Result<_>>()?;
        Ok((batches, plan.counts))
    }

    /// The rows of an update, `[rank][run]`.
    pub fn update_plan(&self, step: usize) -> UpdatePlan {
        let UpdatePlan { ranks, counts } = self.balanced(self.order.update(step as u64));
        let runs = |batches| self.in_runs(batches, |row: &WeightedRow| self.examples.length(row.row));
        UpdatePlan { ranks: ranks.into_iter().map(runs).collect(), counts }
    }

    fn in_runs<T: Clone>(&self, micro_batches: Vec<Vec<T>>, length: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
        runs::in_runs(micro_batches, self.order.accumulation(), self.runs, length)
    }

    /// How evenly the work of the first so many updates lies on the ranks.
    pub fn balance(&self, num_steps: usize) -> Balance {
        self.updates().take(num_steps).map(|update| update.balance(&self.examples, &self.cost)).sum()
    }

    /// All updates of all epochs, which do not end, in micro-batches.
    fn updates(&self) -> impl Iterator<Item = UpdatePlan> {
        (0..).flat_map(|epoch| self.order.epoch(epoch)).map(|dealt| self.balanced(dealt))
    }

    /// Rows are always dealt anew where there is more than one rank or micro-batch to deal them to.
    fn balanced(&self, dealt: Dealt) -> UpdatePlan {
        UpdatePlan::new(&self.examples, dealt, self.reduction).balanced(&self.examples, &self.cost)
    }

    /// Held-out rows, as many at a time as an update has on a rank, in as many runs.
    fn scored_updates(&self, rows_per_batch: usize) -> Vec<Vec<Vec<usize>>> {
        let rows: Vec<usize> = (0..self.held_out.len()).collect();
        let batches: Vec<Vec<usize>> = rows.chunks(rows_per_batch).map(<[usize]>::to_vec).collect();
        batches.chunks(self.order.accumulation()).map(<[Vec<usize>]>::to_vec).collect()
    }

    /// The held-out rows that are scored together.
    pub fn scored_runs(&self, rows_per_batch: usize) -> Vec<Vec<usize>> {
        let updates = self.scored_updates(rows_per_batch).into_iter();
        let runs = updates.flat_map(|batches| self.in_runs(batches, |row| self.held_out.length(*row)));
        runs.filter(|rows| !rows.is_empty()).collect()
    }

    /// The held-out rows of one rank; see [`scoring_batches`].
    pub fn evaluation(
        &self,
        rows_per_batch: usize,
        world: usize,
        rank: usize,
        chunk_size: usize,
    ) -> Result<Vec<Batch>> {
        scoring_batches(&self.held_out, &self.scored_runs(rows_per_batch), (world, rank), chunk_size)
    }

    /// Every row that is trained on, once, to be scored on one rank.
    pub fn all_rows(&self, rows_per_batch: usize, chunk_size: usize) -> Result<Vec<Batch>> {
        let rows: Vec<usize> = (0..self.examples.len()).collect();
        let runs: Vec<Vec<usize>> = rows.chunks(rows_per_batch).map(<[usize]>::to_vec).collect();
        scoring_batches(&self.examples, &runs, (1, 0), chunk_size)
    }

    /// What memory is planned by: exactly the largest updates and micro-batches that the run will meet, for which every
    /// update is dealt once, or what they cannot exceed where that would take long.
    pub(crate) fn counts(&self, config: &RunConfig) -> DataCounts {
        let (num_rows, updates_per_epoch) = (self.examples.len(), self.order.updates_per_epoch() as usize);
        let num_steps = plan::num_steps(config, updates_per_epoch);
        let mut trained = Largest::default();
        if num_steps.saturating_mul(num_rows.div_ceil(updates_per_epoch)) > MOST_ROWS_DEALT {
            trained = self.bounds(config);
        } else {
            for of_rank in self.updates().take(num_steps).flat_map(|update| update.ranks) {
                trained.meet(&of_rank, |row| self.examples.length(row.row));
            }
        }
        let mut scored = Largest::default();
        if evaluation_interval(config, updates_per_epoch).is_some() {
            for update in self.scored_updates(config.train.per_device_train_batch_size) {
                scored.meet(&update, |row| self.held_out.length(*row));
            }
        }
        DataCounts { num_rows, updates_per_epoch, trained, scored, busiest_share: None }
    }

    /// What no update exceeds, whatever the order. Balanced micro-batches have no more tokens than they were dealt with, and
    /// as many rows as that allows.
    fn bounds(&self, config: &RunConfig) -> Largest {
        let rows_per_batch = config.train.per_device_train_batch_size;
        let mut lengths = self.examples.lengths();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let (Some(&longest), Some(&shortest)) = (lengths.first(), lengths.last()) else {
            return Largest::default();
        };
        let tokens = match config.data.packing || config.data.neat_packing {
            true => rows_per_batch * config.data.cutoff_len,
            false => lengths.iter().cycle().take(rows_per_batch).sum(),
        };
        let micro_batch = LargestBatch { num_rows: tokens / shortest.max(1), num_tokens: tokens, longest_row: longest };
        Largest::of_alike(micro_batch, config.train.gradient_accumulation_steps)
    }
}

/// The runs of one rank, which takes them in turns with the others; every rank gets the same number, if need be empty
/// ones. Each target weighs one over all targets of all ranks.
fn scoring_batches(
    examples: &ExampleSet,
    runs: &[Vec<usize>],
    (world, rank): (usize, usize),
    chunk_size: usize,
) -> Result<Vec<Batch>> {
    let num_targets: usize = (0..examples.len()).map(|row| examples.targets(row)).sum();
    let weight = (1.0 / num_targets.max(1) as f64) as f32;
    (0..runs.len().div_ceil(world))
        .map(|turn| {
            let rows = runs.get(turn * world + rank).map(Vec::as_slice).unwrap_or_default();
            let rows: Vec<WeightedRow> = rows.iter().map(|&row| WeightedRow { row, weight }).collect();
            batch(&FlatBatch::from_rows(examples, &rows), chunk_size)
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

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
