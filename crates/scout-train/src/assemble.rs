//! A trainer put together: weights read or made, and placed as the plan says; the adapter, and the ways between ranks.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use scout_checkpoint::{LoadedAdapter, ModelFolder};
use scout_comm::gpu::Wish;
use scout_comm::{Job, RoutedRows};
use scout_config::{Gather, RunConfig};
use scout_core::{Rank, UnitSpec};
use scout_device::{Account, Device};
use scout_model::{LoraLayout, Model};
use scout_shard::{ShardPlan, ShardStore};

use crate::adapter::{AdapterState, initial_values};
use crate::error::Result;
use crate::gpu_store::{GpuRoom, Trial};
use crate::load::Reading;
use crate::machine::Machine;
use crate::plan::RunPlan;
use crate::prepare::Prepared;
use crate::readers::Readers;
use crate::seated::Seated;
use crate::trained_weights::TrainedWeights;
use crate::trainer::Trainer;
use crate::{gpu_weights, load, synth};

/// What a trainer is put together from.
pub struct Parts<'a> {
    config: &'a RunConfig,
    plan: &'a RunPlan,
    machine: &'a Machine,
    /// The adapter that training goes on from.
    start: Option<&'a LoadedAdapter>,
    account: Account,
}

/// What this rank keeps, with the plan to walk it by; what was read for it, which is nothing where weights are random; and how
/// it will be gathered, for people.
pub struct Weights {
    pub shards: ShardPlan,
    pub store: ShardStore,
    pub reading: Option<Reading>,
    pub said: Vec<String>,
}

/// Reads this rank's weights and puts the trainer together.
pub fn build(config: &RunConfig, prepared: &Prepared, job: &Job) -> Result<Seated> {
    let parts = Parts::of(config, prepared);
    let weights = parts.weights(job, &mut Readers::default())?;
    parts.assemble(job, weights)
}

/// The same for a plan without data, with random weights: what a benchmark runs on. Beside it what there is to say to people.
pub fn build_random(config: &RunConfig, plan: &RunPlan, machine: &Machine, job: &Job) -> Result<(Seated, Vec<String>)> {
    let mut config = config.clone();
    config.model.random_weights = true;
    let parts = Parts::new(&config, plan, machine, None);
    let mut weights = parts.weights(job, &mut Readers::default())?;
    let said = std::mem::take(&mut weights.said);
    Ok((parts.assemble(job, weights)?, said))
}

impl<'a> Parts<'a> {
    pub fn of(config: &'a RunConfig, prepared: &'a Prepared) -> Parts<'a> {
        let Prepared { plan, machine, start, .. } = prepared;
        Parts::new(config, plan, machine, start.as_ref())
    }

    fn new(
        config: &'a RunConfig,
        plan: &'a RunPlan,
        machine: &'a Machine,
        start: Option<&'a LoadedAdapter>,
    ) -> Parts<'a> {
        // A GPU keeps an account of its own, in which weights, adapter and activations stand.
        let account = match &machine.device {
            Device::Cpu => Account::new(config.device.device_memory),
            Device::Cuda(gpu) => gpu.account().clone(),
        };
        Parts { config, plan, machine, start, account }
    }

    /// Reads or makes what this rank keeps. Every rank calls it.
    pub fn weights(&self, job: &Job, readers: &mut Readers) -> Result<Weights> {
        let Parts { config, plan, machine, account, .. } = self;
        let (rank, seed) = (job.mesh().rank(), config.train.seed);
        let files = match (&plan.source.folder, config.model.random_weights) {
            (Some(folder), false) => Some(ModelFolder::open(folder)?),
            _ => None,
        };
        let (shards, store, took, said) = match (&machine.device, &files) {
            (Device::Cpu, files) => {
                let begun = Instant::now();
                let store = match files {
                    Some(files) => load::weights_by(files, &plan.shards, rank, account, readers)?,
                    None => random_weights(plan, seed, rank, account)?,
                };
                (plan.shards.clone(), store, begun.elapsed(), Vec::new())
            }
            (Device::Cuda(gpu), files) => {
                let trial =
                    Trial { wish: wish(config), exposed: plan.way.time.map_or(0.0, |time| time.exposed_share()) };
                let mut room = GpuRoom::new(&plan.shards, &plan.schedules, gpu, trial, job)?;
                let said = std::mem::take(&mut room.said);
                let begun = Instant::now(); // trials are over
                let kept = match files {
                    Some(files) => gpu_weights::read(files, &plan.shards, rank, (gpu, room.arena()), readers)?,
                    None => gpu_weights::random(&plan.shards, rank, seed, (gpu, room.arena()))?,
                };
                let took = begun.elapsed(); // mapping what others have read waits for them
                let (shards, store) = room.store(kept)?;
                (shards, store, took, said)
            }
        };
        let reading = files.map(|files| Reading { bytes: files.bytes_read(), took });
        Ok(Weights { shards, store, reading, said })
    }

    /// Every rank calls it: where experts stay, the ways of rows are made here.
    pub fn assemble(self, job: &Job, Weights { shards, store, .. }: Weights) -> Result<Seated> {
        let Parts { config, plan, machine, start, account } = self;
        let mesh = job.mesh();
        let model_config = &plan.source.config;
        let adapter = match start {
            Some(start) => load::adapter_state(start, model_config, mesh, &account)?,
            None => {
                let layout = Arc::new(LoraLayout::new(model_config, &plan.lora));
                let values = initial_values(&layout, config.train.seed);
                AdapterState::new(layout, values, mesh, &account)?
            }
        };
        let weights = TrainedWeights::new(plan.weights.clone(), &shards, &account)?;
        let adapter = adapter.to_machine(machine)?;
        let device = machine.device.clone();
        let connect = || RoutedRows::connect(&device, job, plan.rows_size());
        let rows = shards.leaves_experts().then(connect).transpose()?;
        let model = Model::new(model_config, &plan.units)?.to_device(&device)?;
        let (schedules, settings) = (plan.schedules.clone(), plan.settings);
        let hands_on = schedules.train.repeats();
        assert!(weights.set().is_empty() || !hands_on, "weights that change are not handed on to the next pass");
        let trainer = Trainer {
            model,
            plan: shards,
            store,
            rows,
            adapter,
            weights,
            job: job.clone(),
            device,
            account,
            schedules,
            settings,
            ahead: Mutex::default(),
        };
        Ok(trainer.into())
    }
}

fn wish(config: &RunConfig) -> Wish {
    match config.device.gather {
        Gather::Auto => Wish::Auto,
        Gather::Copy => Wish::Copy,
        Gather::Nccl => Wish::Nccl,
    }
}

fn random_weights(plan: &RunPlan, seed: u64, rank: Rank, account: &Account) -> Result<ShardStore> {
    ShardStore::load(&plan.shards, rank, account, &mut |unit: &UnitSpec, range, out: &mut [f32]| {
        load::each_param(unit, range, out, |param, range, out| {
            synth::fill(seed, param, range, out);
            Ok(())
        })
    })
}
