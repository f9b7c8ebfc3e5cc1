//! A synthetic model folder with toy conversations, configurations over it, and short trainings. Asserts nothing but that
//! they succeed.

use std::path::PathBuf;
use std::time::Duration;

use scout_comm::{Job, local_group};
use scout_config::RunConfig;
use scout_core::{ByteCount, DType};
use scout_device::{Purpose, UnitSource};
use scout_shard::{Schedule, Walk};
use scout_telemetry::Progress;
use scout_train::prepare::{Prepared, prepare};
use scout_train::session::Outcome;
use scout_train::synth::{SynthRequest, SynthShape, write_folder};
use scout_train::{Result, Seated, StepReport, Trainer};
use scout_train::{assemble, run};
use tempfile::TempDir;

/// Longer than any test takes; a rank that fails leaves the others waiting this long at most.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct Bench {
    folder: TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let request = SynthRequest { shape: SynthShape::Tiny, num_layers: None, dtype: DType::F32, seed: 3 };
        write_folder(&folder.path().join("model"), &request).unwrap();
        Bench { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A small recipe over the toy data, with `overrides` as on the command line.
    pub fn config(&self, overrides: &[&str]) -> RunConfig {
        let model = self.path("model").display().to_string();
        let run = self.path("run").display().to_string();
        let text = format!(
            "model_name_or_path: {model}\ndataset: toy_messages\ndataset_dir: {model}/data\ntemplate: llama4\n\
             cutoff_len: 128\nfinetuning_type: lora\nlora_rank: 4\nlora_target: all+experts\noutput_dir: {run}\n\
             logging_steps: 1\nplot_loss: false\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 1\n\
             learning_rate: 1.0e-2\nnum_train_epochs: 1.0\nlr_scheduler_type: cosine\n"
        );
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let loaded = RunConfig::from_text("test.yaml", &text, &overrides, &[]).unwrap();
        loaded.check_for_training().unwrap();
        loaded.config
    }
}

/// One rank's view of a short training.
pub struct Trained {
    pub reports: Vec<StepReport>,
    /// The adapter without its padding.
    pub adapter: Vec<f32>,
    /// All weights of the model, unit by unit, as they are at the end.
    pub weights: Vec<f32>,
    /// Highest account of shard, gathered units and trained state.
    pub peaks: [ByteCount; 3],
    /// Still gathered when the training was over.
    pub left_gathered: ByteCount,
}

pub fn alone() -> Job {
    Job::alone(DEADLINE)
}

pub fn trainer(config: &RunConfig) -> (Prepared, Seated) {
    let prepared = prepare(config, 1).unwrap();
    let trainer = assemble::build(config, &prepared, &alone()).unwrap();
    (prepared, trainer)
}

/// The first `num_steps` updates on one rank.
pub fn train(config: &RunConfig, num_steps: usize) -> Trained {
    train_on_ranks(config, 1, num_steps).remove(0)
}

/// The first `num_steps` updates on `world_size` ranks that are threads.
pub fn train_on_ranks(config: &RunConfig, world_size: usize, num_steps: usize) -> Vec<Trained> {
    let prepared = prepare(config, world_size).unwrap();
    on_every_rank(world_size, |job| train_rank(config, &prepared, &job, num_steps).unwrap())
}

fn train_rank(config: &RunConfig, prepared: &Prepared, job: &Job, num_steps: usize) -> Result<Trained> {
    let rank = job.mesh().rank().0;
    let mut trainer = assemble::build(config, prepared, job)?;
    let mut reports = Vec::new();
    for step in 0..num_steps {
        let (batches, _) = prepared.data.update(step, rank, prepared.plan.source.config.attention_chunk_size)?;
        reports.push(trainer.step(&batches, step)?);
    }
    let account = trainer.account.clone();
    // Asked before the weights are gathered once more for comparison.
    let peaks = [Purpose::Shard, Purpose::Gathered, Purpose::Trained].map(|purpose| account.peak(purpose));
    let left_gathered = account.in_use(Purpose::Gathered);
    let (adapter, weights) = (adapter_of(&trainer), weights_of(&trainer));
    Ok(Trained { reports, adapter, weights, peaks, left_gathered })
}

pub fn on_every_rank<R: Send>(world_size: usize, body: impl Fn(Job) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let group = local_group(world_size, DEADLINE);
        let body = &body;
        let ranks: Vec<_> = group.into_iter().map(|comm| scope.spawn(move || body(Job::over(comm)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A whole run on one rank, with its folder.
pub fn run_alone(config: &RunConfig) -> Result<Outcome> {
    run::run(config, prepare(config, 1)?, &alone(), &mut Progress::silent())
}

pub fn adapter_of(trainer: &Trainer) -> Vec<f32> {
    trainer.adapter.values().unwrap()[..trainer.adapter.layout().num_elements()].to_vec()
}

/// Every rank must ask: the units are gathered.
pub fn weights_of(trainer: &Trainer) -> Vec<f32> {
    let plan = trainer.plan.one_at_a_time();
    let mut schedule = Schedule::default();
    plan.units().iter().for_each(|unit| schedule.push(&[unit.spec.id]));
    let mut walk = Walk::new(&plan, &trainer.store, &trainer.job, &trainer.account, &schedule);
    let mut weights = Vec::new();
    for unit in plan.units() {
        let whole = walk.gather(&[unit.spec.id]).unwrap().take(unit.spec.id).unwrap();
        for index in 0..unit.spec.params.len() {
            weights.extend_from_slice(&whole.param(index).unwrap().f32s().unwrap());
        }
    }
    weights
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub fn assert_near(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{what}: {found}, expected {expected}");
}

/// Each element within `tolerance` of the largest expected magnitude.
pub fn assert_all_near(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    assert!(largest > 0.0, "{what}: there is something to compare");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= tolerance * largest, "{what}: element {at} is {found}, expected {expected} (of {largest})");
    }
}
