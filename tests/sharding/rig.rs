//! A toy model with conversations, and short trainings of it on ranks of any backend. Asserts nothing but that they
//! succeed.

use std::path::{Path, PathBuf};

use scout_comm::Job;
use scout_config::RunConfig;
use scout_core::{ByteCount, DType};
use scout_device::Purpose;
use scout_shard::{ShardPlan, none_resident};
use scout_train::StepReport;
use scout_train::assemble::build;
use scout_train::prepare::{Prepared, prepare};
use scout_train::synth::{SynthRequest, SynthShape, write_folder};
use tempfile::TempDir;

use crate::backends::{Backend, on_every_rank};

/// Of every training here. A configuration may not ask for it together with adapters of routed experts, because other
/// programs would not load the result; the trainer can do both, and so both are sharded.
const DROPOUT: f32 = 0.1;

pub struct Toy {
    folder: TempDir,
}

impl Toy {
    pub fn new(dtype: DType) -> Toy {
        let folder = tempfile::tempdir().unwrap();
        let request = SynthRequest { shape: SynthShape::Tiny, num_layers: Some(2), dtype, seed: 3 };
        write_folder(&folder.path().join("model"), &request).unwrap();
        Toy { folder }
    }

    pub fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// Every adapter there is, two micro-batches an update and one row in each.
    pub fn config(&self, overrides: &[&str]) -> RunConfig {
        self.config_of(&self.model(), overrides)
    }

    /// The same over another copy of the model.
    pub fn config_of(&self, model: &Path, overrides: &[&str]) -> RunConfig {
        let (model, data) = (model.display(), self.model().join("data").display().to_string());
        let text = format!(
            "model_name_or_path: {model}\ndataset: toy_messages\ndataset_dir: {data}\ntemplate: llama4\n\
             cutoff_len: 64\nfinetuning_type: lora\nlora_rank: 4\nlora_target: all+experts\n\
             output_dir: none\nplot_loss: false\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 2\n\
             learning_rate: 1.0e-2\nnum_train_epochs: 4.0\nlr_scheduler_type: cosine\n"
        );
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let loaded = RunConfig::from_text("test.yaml", &text, &overrides, &[]).unwrap();
        loaded.check_for_training().unwrap();
        loaded.config
    }
}

/// A training of a few steps, and how it gathers.
pub struct Recipe<'a> {
    pub config: &'a RunConfig,
    pub world_size: usize,
    pub num_steps: usize,
    /// Units gathered ahead; `None` for as many as the plan says.
    pub lookahead: Option<usize>,
}

/// What one rank saw.
#[derive(Debug)]
pub struct Trained {
    pub reports: Vec<StepReport>,
    /// The adapter's bits, without padding.
    pub adapter: Vec<u32>,
    pub peak: Held,
    /// Highest sum of everything at one time.
    pub peak_total: ByteCount,
    /// When all is over.
    pub left_gathered: ByteCount,
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub shard: ByteCount,
    pub gathered: ByteCount,
    pub trained: ByteCount,
}

impl Recipe<'_> {
    /// Trains on every rank of one backend.
    pub fn train_on(&self, backend: Backend) -> Vec<Trained> {
        let prepared = self.prepare(self.config);
        on_every_rank(backend, self.world_size, |job| self.train_rank(self.config, &prepared, job))
    }

    /// The same where each rank has a configuration of its own.
    pub fn train_each(&self, backend: Backend, configs: &[RunConfig]) -> Vec<Trained> {
        on_every_rank(backend, self.world_size, |job| {
            let config = &configs[job.mesh().rank().0];
            self.train_rank(config, &self.prepare(config), job)
        })
    }

    pub fn prepare(&self, config: &RunConfig) -> Prepared {
        let mut prepared = prepare(config, self.world_size).unwrap();
        prepared.plan.settings.lora_dropout = DROPOUT;
        if let Some(lookahead) = self.lookahead {
            let plan = &mut prepared.plan;
            plan.shards = ShardPlan::new(plan.units.units(), self.world_size, &none_resident, lookahead);
        }
        prepared
    }

    fn train_rank(&self, config: &RunConfig, prepared: &Prepared, job: &Job) -> Trained {
        let mut trainer = build(config, prepared, job).unwrap();
        let chunk_size = prepared.plan.source.config.attention_chunk_size;
        let step = |step| {
            let (batches, _) = prepared.data.update(step, job.mesh().rank().0, chunk_size).unwrap();
            trainer.step(&batches, step).unwrap()
        };
        let reports = (0..self.num_steps).map(step).collect();
        trainer.leave().unwrap();
        let account = &trainer.account;
        let adapter = &trainer.adapter;
        let values = &adapter.values().unwrap()[..adapter.layout().num_elements()];
        Trained {
            reports,
            adapter: values.iter().map(|value| value.to_bits()).collect(),
            peak: Held {
                shard: account.peak(Purpose::Shard),
                gathered: account.peak(Purpose::Gathered),
                trained: account.peak(Purpose::Trained),
            },
            peak_total: account.peak_total(),
            left_gathered: account.in_use(Purpose::Gathered),
        }
    }
}
