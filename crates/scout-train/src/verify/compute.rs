//! Computes anew, with the code that trains, everything a recorded folder holds numbers for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use scout_checkpoint::{AdapterLayout, LoadedAdapter, ModelFolder, adapter};
use scout_comm::gpu::{self, Ranks, Wish};
use scout_comm::{Job, RoutedRows};
use scout_core::{ByteCount, ExitCode, Mesh};
use scout_device::{Account, Device, Purpose, Tensor};
use scout_model::head::Loss;
use scout_model::lora::Factor;
use scout_model::{
    Batch, LoraLayout, LoraSettings, Model, ModelConfig, NameStyle, NoTrace, Routes, Trace, UnitPlan, rope,
};
use scout_shard::{ShardPlan, none_resident};

use super::Holding;
use super::compare::{Numbered, Numbers, Precision};
use super::held::Held;
use super::padded::Padded;
use super::recording::{Recording, integers};
use super::together::{agree, merge_rows};
use super::training::Recipe;
use crate::adapter::AdapterState;
use crate::error::{Result, TrainError};
use crate::gpu_store::{GpuRoom, Trial};
use crate::gradients;
use crate::machine::{ComputeType, Machine};
use crate::readers::Readers;
use crate::schedules::Schedules;
use crate::seated::Seated;
use crate::sums::sum_over_ranks;
use crate::trained_weights::TrainedWeights;
use crate::trainer::Trainer;
use crate::ways::{Experts, LOOKAHEAD, rows_size};
use crate::{choice, gpu_weights, load};

/// A trainer over a recorded folder's model, with whichever adapter is being checked, on one of the ranks. What it
/// computes is whole on every rank.
pub struct Bench {
    pub config: ModelConfig,
    pub style: NameStyle,
    folder: PathBuf,
    trainer: Seated,
    modules: Vec<scout_core::LoraModule>,
    read: [ByteCount; 2],
    machine: Machine,
    /// Which expert of each layer takes which token of the probe batch, padded as recorded. Where arithmetic is coarse a
    /// token between two experts would go astray, and everything behind it be another computation.
    routes: Option<Vec<Vec<i64>>>,
}

/// Everything that can be sharded is, so that all of it is gathered.
pub fn shards(units: &UnitPlan, world_size: usize, compute: ComputeType) -> ShardPlan {
    ShardPlan::new(units.units(), world_size, &none_resident, LOOKAHEAD).stored_as(compute.dtype())
}

/// The same with experts that stay with their ranks. All ranks fail alike.
fn leaving_experts(plan: ShardPlan, config: &ModelConfig, (device, job): (&Device, &Job)) -> Result<ShardPlan> {
    let sees_peers = match device {
        Device::Cuda(device) if job.mesh().size() > 1 => gpu::see_each_other(Ranks { device, comm: &*job.comm })?,
        Device::Cuda(_) | Device::Cpu => true,
    };
    match choice::cannot_stay(config, job.mesh().size(), sees_peers) {
        Some(problem) => Err(choice::refused(&problem)),
        None => Ok(plan.leaving_experts()),
    }
}

impl Bench {
    /// Reads this rank's weights. On GPUs all ranks go on together or not at all.
    pub fn open(
        folder: &Path,
        config: ModelConfig,
        job: &Job,
        (machine, holding): (&Machine, Holding),
    ) -> Result<Bench> {
        let files = ModelFolder::open(folder)?;
        let style = NameStyle::of_names(files.names());
        let units = UnitPlan::new(&config, style);
        files.check(&units.checkpoint_params(&config, style), &UnitPlan::STORED_AS)?;
        let mesh = job.mesh();
        let plan = shards(&units, mesh.size(), machine.compute);
        let plan = match holding.experts {
            Experts::Stay => leaving_experts(plan, &config, (&machine.device, job))?,
            Experts::Come => plan,
        };
        let model = Model::new(&config, &units)?.to_device(&machine.device)?;
        let schedules = Schedules::of(&model);
        let (account, plan, store) = match &machine.device {
            Device::Cpu => {
                let account = Account::new(None);
                let store = load::weights(&files, &plan, mesh.rank(), &account)?;
                (account, plan, store)
            }
            Device::Cuda(gpu) => {
                let plan = if holding.wish == Wish::Nccl { plan } else { plan.reading_in_place() };
                let room = GpuRoom::new(&plan, &schedules, gpu, Trial { wish: holding.wish, exposed: 0.0 }, job)?;
                let mut readers = Readers::default();
                let kept = gpu_weights::read(&files, &plan, mesh.rank(), (gpu, room.arena()), &mut readers);
                let kept = agree(&*job.comm, kept)?.map_err(|problem| TrainError::Input {
                    path: folder.display().to_string(),
                    problem,
                    code: ExitCode::BadData,
                })?;
                let (plan, store) = room.store(kept)?;
                (gpu.account().clone(), plan, store)
            }
        };
        let read = [files.bytes_read(), load::stored_bytes(&files, &plan, mesh.rank())?];
        let adapter = without_adapter(&config, mesh, &account)?.to_machine(machine)?;
        let settings = Recipe::default().settings();
        let weights = TrainedWeights::new(Arc::default(), &plan, &account)?;
        let (job, device, ahead) = (job.clone(), machine.device.clone(), Mutex::default());
        let trainer = Trainer {
            model,
            plan,
            store,
            rows: None,
            adapter,
            weights,
            job,
            device,
            account,
            schedules,
            settings,
            ahead,
        };
        let trainer = trainer.into();
        let (folder, machine) = (folder.to_path_buf(), machine.clone());
        Ok(Bench { config, style, folder, trainer, modules: Vec::new(), read, machine, routes: None })
    }

    /// To be called with all batches to come, before the first of them. Every rank calls it: rows of batches as large as these
    /// can go to experts of other ranks, where experts stay.
    pub fn meet<'a>(&mut self, batches: impl IntoIterator<Item = &'a Padded>) -> Result<()> {
        let of_rank = |batch: &Padded| batch.num_rows.div_ceil(self.mesh().size()) * batch.seq_len;
        let most_rows = batches.into_iter().map(of_rank).max().unwrap_or(0);
        let size = rows_size(&self.config, most_rows, self.machine.compute);
        let Trainer { plan, device, job, .. } = &*self.trainer;
        let connect = || RoutedRows::connect(device, job, size);
        self.trainer.rows = plan.leaves_experts().then(connect).transpose()?;
        Ok(())
    }

    /// How near to the recorded numbers this machine has to come.
    pub fn precision(&self) -> Precision {
        match (&self.machine.device, self.machine.compute) {
            (Device::Cpu, _) => Precision::Host,
            (Device::Cuda(_), ComputeType::F32) => Precision::GpuF32,
            (Device::Cuda(_), ComputeType::Bf16) => Precision::GpuBf16,
        }
    }

    /// From now on tokens of the probe batch go where they went when `recorded` was made, if arithmetic is too coarse to
    /// find out.
    pub fn follow(&mut self, recorded: &Recording) -> Result<()> {
        if self.precision() != Precision::GpuBf16 {
            return Ok(());
        }
        let of_layer = |layer_index| Ok(integers(recorded, &format!("layer.{layer_index}.router_expert"))?.1);
        self.routes = Some((0..self.config.num_layers).map(of_layer).collect::<Result<_>>()?);
        Ok(())
    }

    /// Puts `adapter_NAME` on the model. Waits for no other rank.
    pub fn wear(&mut self, name: &str) -> Result<LoadedAdapter> {
        let loaded = load::adapter(&self.folder.join(format!("adapter_{name}")), &self.config)?;
        let state = load::adapter_state(&loaded, &self.config, self.mesh(), &self.trainer.account)?;
        self.trainer.adapter = state.to_machine(&self.machine)?;
        self.modules = loaded.modules.clone();
        Ok(loaded)
    }

    /// The tensors of `expected.safetensors`: a forward pass over the probe batch with every intermediate tensor.
    pub fn forward(&self, probe: &Padded) -> Result<Numbered> {
        let seen = Seen::default();
        let (mut rows, mut computed) = self.logits_and_losses(probe, &seen)?;
        rows.extend(self.spread(probe, &seen)?);
        computed.extend(self.merged(probe, rows)?);
        let frequencies = rope::frequencies(&self.config.rope, self.config.head_dim);
        computed.insert("rope_inv_freq".to_string(), Numbers::floats(&[frequencies.len()], frequencies));
        Ok(computed)
    }

    /// The tensors of `adapter_X.expected.safetensors`: the same batch with the adapter, forward and backward.
    pub fn with_adapter(&self, probe: &Padded) -> Result<Numbered> {
        let (rows, mut computed) = self.logits_and_losses(probe, &Seen::default())?;
        computed.extend(self.merged(probe, rows)?);
        computed.extend(self.forward_backward(probe, &Seen::default())?);
        let num_targets = probe.num_targets();
        let accumulated = self.row_by_row(probe, |_| 1.0 / num_targets as f64)?;
        let of_means = self.row_by_row(probe, |row| 1.0 / (probe.num_targets_of(row) * probe.num_rows) as f64)?;
        computed.insert("accum_loss".to_string(), Numbers::scalar(accumulated));
        computed.insert("mean_of_row_means".to_string(), Numbers::scalar(of_means));
        Ok(computed)
    }

    /// Loss and routing of the probe batch with whatever adapter is worn; nothing as wide as the vocabulary is kept.
    pub fn losses_and_routes(&self, probe: &Padded) -> Result<Numbered> {
        let batch = self.batch(probe)?.to_device(&self.trainer.device)?;
        let seen = Seen::routes();
        let lora = self.trainer.adapter.weights()?;
        let loss = self.trainer.losses(&self.trainer.pass(&batch, &lora, None), &mut &seen)?;
        let mut computed = self.loss_of_all_ranks(&loss, &batch)?;
        computed.extend(self.merged(probe, self.spread(probe, &seen)?)?);
        Ok(computed)
    }

    /// The same and the gradients of the adapter: a training step without its update.
    pub fn losses_routes_and_gradients(&self, probe: &Padded) -> Result<Numbered> {
        self.forward_backward(probe, &Seen::routes())
    }

    /// The adapter's present factors under the names and in the shapes of its file.
    pub fn adapter_tensors(&self) -> Result<Numbered> {
        self.file_tensors(&self.trainer.adapter.values()?)
    }

    /// The loss of a padded batch, every target counted alike.
    pub fn probe_loss(&self, probe: &Padded) -> Result<f64> {
        self.trainer.evaluate(&[self.free_batch(probe)?])
    }

    /// What this rank has held and read so far.
    pub fn held(&self) -> Held {
        let Trainer { account, plan, schedules, .. } = &*self.trainer;
        let gathered = [&schedules.train, &schedules.evaluate].map(|schedule| plan.gathered_peak(schedule));
        let [read, read_planned] = self.read;
        Held {
            shard: account.peak(Purpose::Shard),
            shard_planned: plan.kept_bytes(),
            gathered: account.peak(Purpose::Gathered),
            gathered_planned: gathered[0].max(gathered[1]),
            read,
            read_planned,
        }
    }

    /// Every rank calls it at the end.
    pub fn leave(&mut self) -> Result<()> {
        self.trainer.leave()
    }

    fn mesh(&self) -> Mesh {
        self.trainer.job.mesh()
    }

    /// This rank's rows of any padded batch, every target of all ranks counted alike.
    fn free_batch(&self, padded: &Padded) -> Result<Batch> {
        let weight = 1.0 / padded.num_targets() as f64;
        padded.batch(&padded.rows_of(self.mesh()), weight as f32, self.config.attention_chunk_size)
    }

    /// The same of the probe batch, whose routing may be recorded.
    fn batch(&self, probe: &Padded) -> Result<Batch> {
        let rows = probe.rows_of(self.mesh());
        Ok(Batch { routes: self.routes_of(probe, &rows)?, ..self.free_batch(probe)? })
    }

    fn routes_of(&self, probe: &Padded, rows: &[usize]) -> Result<Option<Routes>> {
        let Some(routes) = &self.routes else { return Ok(None) };
        Ok(Some(routes.iter().map(|of_layer| probe.flat(rows, of_layer)).collect::<Result<_>>()?))
    }

    /// One pass and back over the probe batch: loss, gradients, and whatever is seen on the way.
    fn forward_backward(&self, probe: &Padded, seen: &Seen) -> Result<Numbered> {
        let comm = &*self.trainer.job.comm;
        let batch = self.batch(probe)?.to_device(&self.trainer.device)?;
        let lora = self.trainer.adapter.weights()?;
        let mut gradients = self.trainer.gradients(1)?;
        let pass = self.trainer.pass(&batch, &lora, Some(0));
        let loss = self.trainer.forward_backward(&pass, &mut gradients, &mut &*seen)?;
        let mut computed = self.loss_of_all_ranks(&loss, &batch)?;
        computed.extend(self.merged(probe, self.spread(probe, seen)?)?);

        let reduced = gradients::reduce(gradients, &self.trainer.adapter, comm)?;
        let whole = reduced.adapter_part.of_all_ranks(comm)?;
        computed.extend(self.file_tensors(&whole)?.into_iter().map(|(name, x)| (format!("grad.{name}"), x)));
        computed.insert("grad_norm".to_string(), Numbers::scalar(reduced.norm));
        Ok(computed)
    }

    /// The loss of each row as a micro-batch of its own, added up.
    fn row_by_row(&self, probe: &Padded, weight: impl Fn(usize) -> f64) -> Result<f64> {
        let own = probe.rows_of(self.mesh());
        let loss_of = |row: usize| {
            // Ranks that do not have the row walk along with none.
            let rows: &[usize] = if own.contains(&row) { &[row] } else { &[] };
            let batch = probe.batch(rows, weight(row) as f32, self.config.attention_chunk_size)?;
            let batch = Batch { routes: self.routes_of(probe, rows)?, ..batch };
            self.trainer.evaluate(&[batch])
        };
        (0..probe.num_rows).map(loss_of).sum()
    }

    /// Tensors with one row for each row of `probe`, this rank's filled, and numbers that are whole.
    fn logits_and_losses(&self, probe: &Padded, seen: &Seen) -> Result<(Numbered, Numbered)> {
        let batch = self.batch(probe)?.to_device(&self.trainer.device)?;
        let own = probe.rows_of(self.mesh());
        let lora = self.trainer.adapter.weights()?;
        let pass = self.trainer.pass(&batch, &lora, None);
        let logits = self.trainer.logits(&pass, &mut &*seen)?;
        let loss = self.trainer.losses(&pass, &mut NoTrace)?;
        let rows = [
            ("logits".to_string(), probe.spread(&own, &logits)?),
            ("token_loss".to_string(), probe.spread_losses(&own, &loss.token_loss)?),
        ];
        Ok((rows.into(), self.loss_of_all_ranks(&loss, &batch)?))
    }

    /// From each rank's part of a batch to the loss over all of it.
    fn loss_of_all_ranks(&self, own: &Loss, batch: &Batch) -> Result<Numbered> {
        let sums = [own.weighted_sum()?, batch.num_targets() as f64];
        let [weighted_sum, num_targets] = sum_over_ranks(&*self.trainer.job.comm, sums)?;
        let whole = [
            ("loss".to_string(), Numbers::scalar(weighted_sum)),
            ("num_target_tokens".to_string(), Numbers::integers(&[1], vec![num_targets as i64])),
        ];
        Ok(whole.into())
    }

    fn spread(&self, probe: &Padded, seen: &Seen) -> Result<Numbered> {
        let own = probe.rows_of(self.mesh());
        seen.kept.borrow().iter().map(|(name, tensor)| Ok((name.clone(), probe.spread(&own, tensor)?))).collect()
    }

    fn merged(&self, probe: &Padded, rows: Numbered) -> Result<Numbered> {
        merge_rows(&*self.trainer.job.comm, probe.num_rows, rows)
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

fn without_adapter(config: &ModelConfig, mesh: Mesh, account: &Account) -> Result<AdapterState> {
    let none = LoraSettings { rank: 1, alpha: 1.0, use_rslora: false, projections: BTreeSet::new() };
    AdapterState::new(Arc::new(LoraLayout::new(config, &none)), Vec::new(), mesh, account)
}

/// Keeps the tensors it is shown: all of them, or those of which a layer has one by this name.
#[derive(Default)]
struct Seen {
    only: Option<&'static str>,
    kept: RefCell<Vec<(String, Tensor)>>,
}

impl Seen {
    /// Which expert each layer sent each token to.
    fn routes() -> Seen {
        Seen { only: Some(".router_expert"), kept: RefCell::default() }
    }
}

impl Trace for &Seen {
    fn is_on(&self) -> bool {
        true
    }

    fn record(&mut self, name: &str, tensor: &Tensor) {
        if self.only.is_none_or(|ending| name.ends_with(ending)) {
            self.kept.borrow_mut().push((name.to_string(), tensor.clone()));
        }
    }
}

/// Runs the recorded training from the adapter that is worn and leaves the result on the bench.
pub fn train(bench: &mut Bench, batches: &[Padded], recipe: &Recipe) -> Result<TrainingRun> {
    bench.trainer.settings = recipe.settings();
    let mut run = TrainingRun::default();
    for (step, padded) in batches.iter().enumerate() {
        let batch = bench.free_batch(padded)?;
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
