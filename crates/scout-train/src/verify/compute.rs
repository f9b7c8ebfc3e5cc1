//! Computes anew, with the code that trains, everything a recorded folder holds numbers for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use scout_checkpoint::{AdapterLayout, LoadedAdapter, ModelFolder, adapter};
use scout_comm::Job;
use scout_core::{Mesh, Rank};
use scout_device::{Account, Tensor};
use scout_model::lora::Factor;
use scout_model::{
    Batch, LoraGradients, LoraLayout, LoraSettings, Model, ModelConfig, NameStyle, Trace, UnitPlan, rope,
};
use scout_shard::{ShardPlan, WeightsMode};

use super::compare::{Numbered, Numbers};
use super::padded::Padded;
use super::training::Recipe;
use crate::Result;
use crate::adapter::AdapterState;
use crate::load;
use crate::trainer::{Schedules, Trainer};

/// A trainer over a recorded folder's model, with whichever adapter is being checked.
pub struct Bench {
    pub config: ModelConfig,
    pub style: NameStyle,
    folder: PathBuf,
    trainer: Trainer,
    modules: Vec<scout_core::LoraModule>,
}

impl Bench {
    pub fn open(folder: &Path, config: ModelConfig) -> Result<Bench> {
        let files = ModelFolder::open(folder)?;
        let style = NameStyle::of_names(files.names());
        let units = UnitPlan::new(&config, style);
        files.check(&units.checkpoint_params(&config, style), &UnitPlan::STORED_AS)?;
        let plan = ShardPlan::new(units.units(), 1, WeightsMode::Resident, 0);
        let account = Account::new(None);
        let store = load::weights(&files, &plan, Rank(0), &account)?;
        let model = Model::new(&config, &units)?;
        let schedules = Schedules::of(&model);
        let job = Job::alone(Duration::from_secs(600));
        let adapter = without_adapter(&config, &account)?;
        let settings = Recipe::default().settings();
        let trainer = Trainer { model, plan, store, adapter, job, account, schedules, settings };
        Ok(Bench { config, style, folder: folder.to_path_buf(), trainer, modules: Vec::new() })
    }

    /// Puts `adapter_NAME` on the model.
    pub fn wear(&mut self, name: &str) -> Result<LoadedAdapter> {
        let loaded = load::adapter(&self.folder.join(format!("adapter_{name}")), &self.config)?;
        self.trainer.adapter = load::adapter_state(&loaded, &self.config, Mesh::solo(), &self.trainer.account)?;
        self.modules = loaded.modules.clone();
        Ok(loaded)
    }

    /// The tensors of `expected.safetensors`: a forward pass over the probe batch with every intermediate tensor.
    pub fn forward(&self, probe: &Padded) -> Result<Numbered> {
        let batch = self.batch(probe)?;
        let seen = Seen::default();
        let mut computed = self.logits_and_losses(probe, &batch, &seen)?;
        for (name, tensor) in seen.0.borrow().iter() {
            computed.insert(name.clone(), probe.spread(tensor)?);
        }
        let frequencies = rope::frequencies(&self.config.rope, self.config.head_dim);
        computed.insert("rope_inv_freq".to_string(), Numbers::floats(&[frequencies.len()], frequencies));
        Ok(computed)
    }

    /// The tensors of `adapter_X.expected.safetensors`: the same batch with the adapter, forward and backward.
    pub fn with_adapter(&self, probe: &Padded) -> Result<Numbered> {
        let batch = self.batch(probe)?;
        let mut computed = self.logits_and_losses(probe, &batch, &Seen::default())?;
        let seen = Seen::default();
        let lora = self.trainer.adapter.weights()?;
        let mut gradients = LoraGradients::zeros(self.trainer.adapter.layout().clone());
        let pass = self.trainer.pass(&batch, &lora, Some(0));
        let loss = self.trainer.forward_backward(&pass, &mut gradients, &mut &seen)?;
        computed.insert("loss".to_string(), Numbers::scalar(loss.weighted_sum));
        for (name, tensor) in seen.0.borrow().iter() {
            computed.insert(name.clone(), probe.spread(tensor)?);
        }
        let flat = gradients.into_flat();
        computed.extend(self.file_tensors(flat.f32s()?)?.into_iter().map(|(name, x)| (format!("grad.{name}"), x)));
        let norm = scout_kernels::norms::sum_of_squares(flat.f32s()?).sqrt();
        computed.insert("grad_norm".to_string(), Numbers::scalar(norm));

        let num_targets = probe.num_targets();
        let one_by_one = |weight: &dyn Fn(usize) -> f64| -> Result<f64> {
            (0..probe.num_rows).map(|row| self.loss(&self.batch_of(probe, row..row + 1, weight(row))?)).sum()
        };
        let accumulated = one_by_one(&|_| 1.0 / num_targets as f64)?;
        let of_means = one_by_one(&|row| 1.0 / (probe.num_targets_of(row) * probe.num_rows) as f64)?;
        computed.insert("accum_loss".to_string(), Numbers::scalar(accumulated));
        computed.insert("mean_of_row_means".to_string(), Numbers::scalar(of_means));
        Ok(computed)
    }

    /// The adapter's present factors under the names and in the shapes of its file.
    pub fn adapter_tensors(&self) -> Result<Numbered> {
        self.file_tensors(self.trainer.adapter.flat().f32s()?)
    }

    /// The loss of a padded batch, every target counted alike.
    pub fn probe_loss(&self, probe: &Padded) -> Result<f64> {
        self.loss(&self.batch(probe)?)
    }

    pub fn batch(&self, padded: &Padded) -> Result<Batch> {
        self.batch_of(padded, 0..padded.num_rows, 1.0 / padded.num_targets() as f64)
    }

    fn batch_of(&self, padded: &Padded, rows: std::ops::Range<usize>, weight: f64) -> Result<Batch> {
        padded.batch(rows, weight as f32, self.config.attention_chunk_size)
    }

    fn loss(&self, batch: &Batch) -> Result<f64> {
        self.trainer.evaluate(std::slice::from_ref(batch))
    }

    fn logits_and_losses(&self, probe: &Padded, batch: &Batch, seen: &Seen) -> Result<Numbered> {
        let lora = self.trainer.adapter.weights()?;
        let pass = self.trainer.pass(batch, &lora, None);
        let logits = self.trainer.logits(&pass, &mut &*seen)?;
        let loss = self.trainer.losses(&pass)?;
        Ok([
            ("logits", probe.spread(&logits)?),
            ("token_loss", probe.spread_losses(&loss.token_loss)?),
            ("loss", Numbers::scalar(loss.weighted_sum)),
            ("num_target_tokens", Numbers::integers(&[1], vec![probe.num_targets() as i64])),
        ]
        .map(|(name, numbers)| (name.to_string(), numbers))
        .into())
    }

    /// Values laid out like the adapter, under the names and in the shapes of its file.
    fn file_tensors(&self, flat: &[f32]) -> Result<Numbered> {
        let layout = self.trainer.adapter.layout();
        let factors = |index: usize| (&flat[layout.range(index, Factor::A)], &flat[layout.range(index, Factor::B)]);
        let tensors = adapter::file_tensors(adapter_layout(self.style), &self.modules, &factors);
        Ok(tensors
            .into_iter()
            .map(|(param, x)| (param.name, Numbers::floats(param.shape.dims(), x.into_owned())))
            .collect())
    }
}

pub fn adapter_layout(style: NameStyle) -> AdapterLayout {
    match style {
        NameStyle::Text => AdapterLayout::Text,
        NameStyle::Conditional => AdapterLayout::Conditional,
    }
}

fn without_adapter(config: &ModelConfig, account: &Account) -> Result<AdapterState> {
    let none = LoraSettings { rank: 1, alpha: 1.0, use_rslora: false, projections: BTreeSet::new() };
    AdapterState::new(Arc::new(LoraLayout::new(config, &none)), Vec::new(), Mesh::solo(), account)
}

/// Keeps every tensor it is shown.
#[derive(Default)]
struct Seen(RefCell<Vec<(String, Tensor)>>);

impl Trace for &Seen {
    fn is_on(&self) -> bool {
        true
    }

    fn record(&mut self, name: &str, tensor: &Tensor) {
        self.0.borrow_mut().push((name.to_string(), tensor.clone()));
    }
}

/// Runs the recorded training from the adapter that is worn and leaves the result on the bench.
pub fn train(bench: &mut Bench, batches: &[Padded], recipe: &Recipe) -> Result<TrainingRun> {
    bench.trainer.settings = recipe.settings();
    let mut run = TrainingRun::default();
    for (step, padded) in batches.iter().enumerate() {
        let batch = bench.batch(padded)?;
        let report = bench.trainer.step(&[batch], step)?;
        run.learning_rate.push(report.learning_rate);
        run.loss.push(report.loss);
        run.grad_norm.push(report.grad_norm);
    }
    Ok(run)
}

#[derive(Debug, Default)]
pub struct TrainingRun {
    pub learning_rate: Vec<f64>,
    pub loss: Vec<f64>,
    pub grad_norm: Vec<f64>,
}
