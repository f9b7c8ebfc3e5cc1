//! The trainer: one step readable on a page. Gather, compute, release, reduce and update are visible calls in this
//! order; what is gathered when was decided by the plan before the first batch.

use std::cell::Cell;
use std::sync::Mutex;
use std::time::Duration;

use scout_comm::{Job, RoutedRows};
use scout_core::Phase;
use scout_device::{Account, Device, Evenness, Tensor};
use scout_model::head::Loss;
use scout_model::pass::Dropout;
use scout_model::{AttendedPairs, Batch, Keeping, KeptRows, LoraWeights, Model, NoTrace, Pass, Trace};
use scout_shard::{Ahead, Ring, Schedule, ShardPlan, ShardStore, Walk};

use crate::adapter::AdapterState;
use crate::error::{Result, TrainError};
use crate::gradients::{self, StepGradients};
use crate::learning_rate::LearningRate;
use crate::optimizer::{OptimizerSettings, Update};
use crate::reducer::Reducer;
use crate::schedules::Schedules;
use crate::sums::sum_over_ranks;
use crate::trained_weights::TrainedWeights;

/// How a step computes, apart from what it computes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    pub keep: Keeping,
    /// Of rows that come to experts, in all layers.
    pub most_kept_rows: usize,
    pub lora_dropout: f32,
    pub seed: u64,
    pub optimizer: OptimizerSettings,
    pub learning_rate: LearningRate,
}

/// A model with its weights, its adapter and its seat among the ranks. Either the adapter is trained or weights are.
pub struct Trainer {
    pub model: Model,
    pub plan: ShardPlan,
    pub store: ShardStore,
    /// How rows get to experts that stay with their ranks, where they do.
    pub rows: Option<RoutedRows>,
    pub adapter: AdapterState,
    pub weights: TrainedWeights,
    pub job: Job,
    /// Where weights, adapter and activations are.
    pub device: Device,
    pub account: Account,
    pub schedules: Schedules,
    pub settings: StepSettings,
    /// Units that are whole or under way for the next training pass. Behind a lock, because a pass only looks at the trainer.
    pub ahead: Mutex<Ahead>,
}

/// What one update did, summed over all ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    pub num_tokens: usize,
    pub attended_pairs: AttendedPairs,
    /// Of rows among ranks, where experts stay with theirs.
    pub evenness: Evenness,
}

impl Trainer {
    /// One optimizer update from all its micro-batches. `step` counts from 0.
    pub fn step(&mut self, micro_batches: &[Batch], step: usize) -> Result<StepReport> {
        let comm = &*self.job.comm;
        let lora = self.adapter.weights()?;
        let mut gradients = self.gradients(micro_batches.len())?;
        let mut losses = Vec::with_capacity(micro_batches.len());
        let mut evenness = Vec::with_capacity(micro_batches.len());
        for batch in micro_batches {
            self.job.whereabouts.enter_step(Phase::Forward, step as u64 + 1);
            let batch = batch.to_device(&self.device)?;
            let pass = self.pass(&batch, &lora, Some(step));
            losses.push(self.forward_backward(&pass, &mut gradients, &mut NoTrace)?);
            evenness.push(pass.evenness.get());
        }
        drop(lora); // it is about to change
        let num_tokens: usize = micro_batches.iter().map(Batch::num_tokens).sum();
        let pairs =
            |of: fn(AttendedPairs) -> u64| micro_batches.iter().map(|batch| of(batch.attended_pairs())).sum::<u64>();
        let [in_documents, in_chunks] = [pairs(|pairs| pairs.in_documents), pairs(|pairs| pairs.in_chunks)];
        self.job.whereabouts.enter_step(Phase::Reduce, step as u64 + 1);
        let loss_sum = weighted_sum(&losses)?; // a GPU is waited for here, once everything is queued
        let [loss, num_tokens, in_documents, in_chunks] =
            sum_over_ranks(comm, [loss_sum, num_tokens as f64, in_documents as f64, in_chunks as f64])?;
        if !loss.is_finite() {
            return Err(TrainError::NotANumber { what: "loss", step });
        }
        let gradient = gradients::reduce(gradients, &self.adapter, comm)?;
        self.job.whereabouts.enter(Phase::Update);
        let learning_rate = self.settings.learning_rate.at(step);
        let update = Update::new(&self.settings.optimizer, gradient.norm, learning_rate, step)?;
        self.adapter.update(&gradient.adapter_part, &update, comm)?;
        self.weights.update(&gradient.weight_parts, &update, &mut self.store, &self.plan, comm)?;
        Ok(StepReport {
            loss,
            grad_norm: gradient.norm,
            learning_rate,
            num_tokens: num_tokens as usize,
            attended_pairs: AttendedPairs { in_documents: in_documents as u64, in_chunks: in_chunks as u64 },
            evenness: evenness.into_iter().sum(),
        })
    }

    /// How long this rank has stood still for others: its thread, and arithmetic on its GPU. Waits for the GPU.
    pub fn waited(&self) -> Result<Duration> {
        let on_gpu = self.store.ring().map(Ring::waited).transpose()?.unwrap_or_default();
        let for_rows = self.rows.as_ref().map(RoutedRows::waited).transpose()?.unwrap_or_default();
        Ok(self.job.comm.waited() + on_gpu + for_rows)
    }

    /// The end of all gathering, see [`crate::Seated::leave`].
    pub(crate) fn end_gathering(&mut self) -> Result<()> {
        self.take_ahead().let_go()?;
        if let Some(rows) = self.rows.take() {
            rows.leave(&*self.job.comm)?;
        }
        match self.store.take_ring() {
            Some(ring) => Ok(ring.leave(&*self.job.comm)?),
            None => Ok(()),
        }
    }

    /// Nothing found yet, for so many micro-batches of one update.
    pub fn gradients(&self, num_micro_batches: usize) -> Result<StepGradients<'_>> {
        let weights = Reducer::new(self.weights.set(), &self.plan, &self.job, &self.account);
        Ok(StepGradients::new(self.adapter.no_gradients()?, weights, num_micro_batches))
    }

    /// One pass through all blocks and back. Activation gradients are overwritten on the way; those of what is trained are
    /// added to `gradients`, for only they live across micro-batches.
    pub fn forward_backward(&self, pass: &Pass, gradients: &mut StepGradients, trace: &mut dyn Trace) -> Result<Loss> {
        let first_backward = self.schedules.first_backward;
        let mut walk = self.walk(&self.schedules.train).going_on_with(self.take_ahead());
        let embedding = &self.model.embedding;
        let mut x = embedding.forward(&mut walk.gather(&[embedding.unit])?, pass.batch, trace)?;
        let mut tape = Vec::with_capacity(self.model.blocks.len());
        for (index, block) in self.model.blocks.iter().enumerate() {
            let mut weights = walk.gather(&block.forward_units())?; // waits for these units, starts the next ones
            let (y, saved) = block.forward(&mut weights, x, pass, trace)?;
            if index >= first_backward {
                tape.push(saved);
            }
            x = y;
        } // weights go back here, every turn
        self.job.whereabouts.enter(Phase::Loss);
        let head = &self.model.head;
        let (loss, mut dx) = {
            let mut weights = walk.gather(&[head.unit])?;
            head.loss_and_gradient(&mut weights, &x, pass.batch, &mut gradients.sink(), trace)?
        };
        gradients.send_units(&[head.unit])?;
        drop(x);
        self.job.whereabouts.enter(Phase::Backward);
        for (block, saved) in self.model.blocks[first_backward..].iter().zip(tape).rev() {
            if let Some(layer_index) = block.closes_layer()
                && trace.is_on()
            {
                trace.record(&format!("grad_of.layer.{layer_index}.out"), &dx);
            }
            let mut weights = walk.gather(&block.backward_units())?;
            dx = block.backward(&mut weights, dx, saved, pass, &mut gradients.sink())?;
            gradients.send(block)?; // summed by all ranks under the next block
        }
        embedding.backward(&dx, pass.batch, &mut gradients.sink())?; // wants nothing where the walk ended further up
        gradients.send_units(&[embedding.unit])?;
        gradients.end_pass()?;
        *self.ahead.lock().expect("no holder of this lock panics") = walk.end();
        Ok(loss)
    }

    /// The weighted loss over `batches` on all ranks, without gradients and without dropout.
    pub fn evaluate(&self, batches: &[Batch]) -> Result<f64> {
        let lora = self.adapter.weights()?;
        let mut losses = Vec::with_capacity(batches.len());
        for batch in batches {
            self.job.whereabouts.enter(Phase::Evaluate); // each is progress
            let batch = batch.to_device(&self.device)?;
            losses.push(self.losses(&self.pass(&batch, &lora, None), &mut NoTrace)?);
        }
        let [loss] = sum_over_ranks(&*self.job.comm, [weighted_sum(&losses)?])?;
        Ok(loss)
    }

    /// The losses of one batch on this rank.
    pub fn losses(&self, pass: &Pass, trace: &mut dyn Trace) -> Result<Loss> {
        let mut walk = self.walk_forward()?;
        let x = self.forward(&mut walk, pass, trace)?;
        let head = &self.model.head;
        Ok(head.loss(&mut walk.gather(&[head.unit])?, &x, pass.batch)?)
    }

    /// Logits of every position, for comparisons.
    pub fn logits(&self, pass: &Pass, trace: &mut dyn Trace) -> Result<Tensor> {
        let mut walk = self.walk_forward()?;
        let x = self.forward(&mut walk, pass, trace)?;
        let head = &self.model.head;
        Ok(head.logits(&mut walk.gather(&[head.unit])?, &x, trace)?)
    }

    fn forward(&self, walk: &mut Walk, pass: &Pass, trace: &mut dyn Trace) -> Result<Tensor> {
        let embedding = &self.model.embedding;
        let mut x = embedding.forward(&mut walk.gather(&[embedding.unit])?, pass.batch, trace)?;
        for block in &self.model.blocks {
            let mut weights = walk.gather(&block.forward_units())?;
            (x, _) = block.forward(&mut weights, x, pass, trace)?;
        }
        Ok(x)
    }

    /// A pass over `batch`; `step` is given while training, when dropout acts.
    pub fn pass<'a>(&'a self, batch: &'a Batch, lora: &'a LoraWeights, step: Option<usize>) -> Pass<'a> {
        let StepSettings { keep, lora_dropout: probability, seed, .. } = self.settings;
        let dropout = step.filter(|_| probability > 0.0).map(|step| Dropout { probability, seed, step: step as u64 });
        let exchange = self.rows.as_ref().map(RoutedRows::exchange);
        let kept_rows = KeptRows::at_most(self.settings.most_kept_rows);
        Pass {
            batch,
            lora,
            dropout,
            keep,
            routes: batch.routes.as_ref(),
            exchange,
            kept_rows,
            evenness: Cell::default(),
        }
    }

    /// Training goes on behind it as at its beginning: what was under way for it makes room.
    fn walk_forward(&self) -> Result<Walk<'_>> {
        self.take_ahead().let_go()?;
        Ok(self.walk(&self.schedules.evaluate))
    }

    fn take_ahead(&self) -> Ahead {
        std::mem::take(&mut *self.ahead.lock().expect("no holder of this lock panics"))
    }

    fn walk<'a>(&'a self, schedule: &'a Schedule) -> Walk<'a> {
        Walk::new(&self.plan, &self.store, &self.job, &self.account, schedule)
    }
}

/// Micro-batch by micro-batch, in their order.
fn weighted_sum(losses: &[Loss]) -> Result<f64> {
    losses.iter().try_fold(0.0, |sum, loss| Ok(sum + loss.weighted_sum()?))
}
