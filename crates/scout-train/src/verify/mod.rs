//! `verify`: a folder of recorded reference numbers against what this program computes. Every promised quantity becomes
//! a row, and a file or tensor that cannot be read is a failed row. Where the model or the probe batch itself cannot be
//! read, that row stands alone: there is nothing to compare with.

mod checks;
pub mod compare;
mod compute;
mod held;
mod natural;
mod padded;
mod promise;
mod recording;
mod texts;
mod threads;
mod together;
mod training;
mod verdict;

use std::path::Path;
use std::time::Duration;

use scout_comm::Job;
use scout_comm::gpu::Wish;
use scout_core::{ByteCount, Phase, Rank};
use scout_model::{Model, ModelConfig, NameStyle, UnitPlan};
use scout_shard::ring_bytes;

use checks::Checks;
use compare::{Kind, Precision};
pub use compare::{Numbered, Numbers, Row, Rule, Status, Values, compare, compare_all};
use compute::Bench;
pub use held::Held;
use padded::Padded;
use promise::{ADAPTERS, Manifest};
pub use recording::Recording;
use recording::{read_batches, read_probe, read_promised};
pub use threads::on_threads;
use together::agree;
use training::Recorded;
pub use verdict::{Group, Verdict};

use crate::error::{Result, TrainError};
use crate::machine::{ComputeType, Machine};
use crate::schedules::Schedules;
use crate::ways::Experts;

/// Why 4-bit rows wait.
const NO_FOUR_BIT: &str = "4-bit weights are not built yet";
const NO_PICTURES: &str = "pictures are not built yet";

/// Longer than any step of a comparison takes; ranks that fail end the others at once.
const DEADLINE: Duration = Duration::from_secs(600);

/// How ranks hold the weights that are compared.
#[derive(Debug, Clone, Copy)]
pub struct Holding {
    /// What gathers units between GPUs.
    pub wish: Wish,
    pub experts: Experts,
}

impl Default for Holding {
    fn default() -> Holding {
        Holding { wish: Wish::Auto, experts: Experts::Come }
    }
}

/// Compares everything in `folder`. An error means that there is nothing to compare with; everything else is a row.
pub fn verify(folder: &Path) -> Result<Verdict> {
    verify_on_rank(folder, &Job::alone(DEADLINE), (&1.into(), Holding::default()))
}

/// Bytes of a GPU that the weights of such a comparison take on each rank, whole units in use included.
pub fn weights_on_gpu(config: &ModelConfig, world_size: usize, compute: ComputeType) -> Result<ByteCount> {
    let units = UnitPlan::new(config, NameStyle::Text);
    let plan = compute::shards(&units, world_size, compute);
    let schedules = Schedules::of(&Model::new(config, &units)?);
    Ok(plan.kept_bytes() + ring_bytes(&plan, &[&schedules.train, &schedules.evaluate]))
}

/// What ranks that compare together must have in common, in a few bytes: which folder of numbers, of which model.
/// Files that cannot be read are no matter here; their rows will say so.
pub fn identity_of(folder: &Path) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for name in ["manifest.json", "config.json", "training.json"] {
        let text = std::fs::read(folder.join(name)).unwrap_or_default();
        hasher.update(&(text.len() as u64).to_le_bytes()).update(&text);
    }
    *hasher.finalize().as_bytes()
}

/// The same, computed sharded by `world_size` ranks that are threads of this process.
pub fn verify_on_threads(folder: &Path, world_size: usize, holding: Holding) -> Result<Verdict> {
    on_threads(world_size, DEADLINE, |job| verify_on_rank(folder, job, (&job.mesh().size().into(), holding)))
}

/// The same on one of the ranks of a job: row i of every batch belongs to rank i modulo their number, weights are
/// sharded, and every rank returns the same verdict. A GPU has tolerances of its own. Fails on all ranks when one of them
/// cannot go on.
pub fn verify_on_rank(folder: &Path, job: &Job, (machine, holding): (&Machine, Holding)) -> Result<Verdict> {
    let rank = job.mesh().rank();
    verdict_on(folder, job, (machine, holding))
        .inspect(|_| machine.leave())
        .inspect_err(|error| job.comm.abort(&format!("rank {rank}: {}", error.with_causes())))
}

fn verdict_on(folder: &Path, job: &Job, on: (&Machine, Holding)) -> Result<Verdict> {
    let comm = &*job.comm;
    let manifest = Manifest::read(folder)?;
    let verdict = Verdict::default();
    let config = ModelConfig::read(&folder.join("config.json")).map_err(TrainError::from);
    let config = match agree(comm, config)? {
        Ok(config) => config,
        Err(reason) => return Ok(verdict.fail("config.json", "all", reason)),
    };
    let spelling = hub_spelling(folder, &config);
    job.whereabouts.enter(Phase::Load);
    let bench = match agree(comm, Bench::open(folder, config, job, on))? {
        Ok(bench) => bench,
        Err(reason) => {
            let verdict = Verdict { rows: vec![spelling], ..verdict };
            return Ok(verdict.fail("model", "weights", reason));
        }
    };
    let verdict = Verdict { rows: vec![spelling], ..verdict };
    let mut checks = Checks { folder, manifest: &manifest, job, bench, verdict };
    match (&manifest.vision_config, manifest.is_natural()) {
        (Some(_), _) => checks.text_rows()?,
        (None, true) => checks.natural_folder()?,
        (None, false) => checks.text_folder()?,
    }
    let Checks { mut bench, mut verdict, .. } = checks;
    if bench.precision() != Precision::Host {
        bench.leave()?;
        return Ok(verdict); // memory of a GPU is taken in grains: the account never says quite what the plan says
    }
    verdict.ranks = bench.held().of_all(comm)?;
    let failures = verdict.ranks.iter().enumerate().flat_map(|(rank, held)| held.failures(Rank(rank)));
    verdict.rows.extend(failures.collect::<Vec<_>>());
    Ok(verdict)
}

impl Checks<'_> {
    fn text_folder(&mut self) -> Result<()> {
        let (folder, manifest, comm) = (self.folder, self.manifest, &*self.job.comm);
        let config = self.bench.config.clone();
        let (probe, recorded) = match agree(comm, read_probe(folder, "", config.vocab_size))? {
            Ok(read) => read,
            Err(reason) => {
                self.fail("expected", "batch", reason);
                return Ok(());
            }
        };
        let training = agree(comm, Recorded::read(folder))?;
        let batches = agree(comm, read_batches(folder, manifest, config.vocab_size))?;
        self.bench.meet(std::iter::once(&probe).chain(batches.iter().flatten()))?;
        self.attempt(
            "expected",
            |bench| bench.follow(&recorded),
            |bench, ()| {
                let computed = bench.forward(&probe)?;
                Ok(Group::new("expected", manifest.expected_names(&config), recorded.clone(), computed)
                    .under(bench.precision()))
            },
        )?;
        for adapter in ADAPTERS {
            let gradient_names = self.adapter(adapter, &probe)?;
            match (&training, &batches) {
                (Ok(training), Ok(batches)) => self.training(adapter, training, batches, &probe)?,
                (Err(reason), _) | (_, Err(reason)) => self.fail(&format!("training_{adapter}"), "all", reason),
            }
            if adapter == "all" && manifest.args.nf4 {
                self.verdict.rows.extend(four_bit_rows(folder, manifest, &config, &gradient_names));
            }
        }
        self.verdict.rows.extend(texts::rows(folder, &probe, batches.as_deref().unwrap_or_default()));
        Ok(())
    }

    /// The probe batch with `adapter_X`; returns the names of its tensors, or none if it could not be read.
    fn adapter(&mut self, adapter: &str, probe: &Padded) -> Result<Vec<String>> {
        let (folder, manifest) = (self.folder, self.manifest);
        let name = format!("adapter_{adapter}");
        let mut gradient_names = Vec::new();
        self.attempt(
            &name,
            |bench| {
                bench.wear(adapter)?;
                gradient_names = bench.adapter_tensors()?.into_keys().collect();
                let promised = manifest.adapter_names(&bench.config, adapter, &gradient_names);
                let recorded = read_promised(&folder.join(format!("{name}.expected.safetensors")), &promised);
                bench.follow(&recorded)?;
                Ok((promised, recorded))
            },
            |bench, (promised, recorded)| {
                Ok(Group::new(&name, promised, recorded, bench.with_adapter(probe)?).under(bench.precision()))
            },
        )?;
        Ok(gradient_names)
    }

    /// The recorded run from `adapter_X`, and the adapter it ends with.
    fn training(&mut self, adapter: &str, training: &Recorded, batches: &[Padded], probe: &Padded) -> Result<()> {
        let name = format!("training_{adapter}");
        let Some(recorded) = training.runs.get(adapter) else {
            self.fail(&name, "all", "is not in training.json");
            return Ok(());
        };
        let path = self.folder.join(format!("adapter_{adapter}_trained")).join("adapter_model.safetensors");
        self.attempt(
            &name,
            |bench| bench.wear(adapter),
            |bench, _| {
                let run = compute::train(bench, batches, &training.recipe)?;
                let after = bench.probe_loss(probe)?;
                let series = [
                    ("lr", Kind::LearningRate, &recorded.lr, run.learning_rate),
                    ("loss", Kind::TrainingLoss, &recorded.loss, run.loss),
                    ("grad_norm", Kind::TrainingGradNorm, &recorded.grad_norm, run.grad_norm),
                    ("probe_loss_after", Kind::TrainingLoss, &vec![recorded.probe_loss_after], vec![after]),
                ];
                let precision = bench.precision();
                let mut group = Group::new(&name, Vec::new(), Recording::new(), Numbered::new());
                for (quantity, kind, recorded, computed) in series {
                    group.add(quantity, kind.rule(precision), Ok(as_numbers(recorded)), as_numbers(&computed));
                }
                let computed = bench.adapter_tensors()?;
                let mut trained = read_promised(&path, &computed.keys().cloned().collect::<Vec<_>>());
                for (tensor, computed) in computed {
                    let recorded = trained.remove(&tensor).unwrap_or_else(|| Err(missing(&path)));
                    group.add(&format!("trained.{tensor}"), Kind::TrainedAdapter.rule(precision), recorded, computed);
                }
                Ok(group)
            },
        )
    }

    /// What a folder of the multimodal class holds for the text model alone.
    fn text_rows(&mut self) -> Result<()> {
        let comm = &*self.job.comm;
        match agree(comm, read_probe(self.folder, "text_only.", self.bench.config.vocab_size))? {
            Err(reason) => self.fail("text_only", "batch", reason),
            Ok((probe, mut recorded)) => {
                self.bench.meet([&probe])?;
                self.attempt(
                    "text_only",
                    |_| Ok(()),
                    |bench, ()| {
                        let names = ["logits", "loss"].map(String::from).to_vec();
                        let of_text =
                            |name: &String| Some((name.clone(), recorded.remove(&format!("text_only.{name}"))?));
                        let recorded = names.iter().filter_map(of_text).collect();
                        let computed = bench.forward(&probe)?;
                        Ok(Group::new("text_only", names, recorded, computed).under(bench.precision()))
                    },
                )?
            }
        }
        let worn = self.bench.wear("all");
        match agree(comm, worn)? {
            Ok(_) if self.bench.style == NameStyle::Conditional => {
                self.verdict.rows.push(Row::ok("adapter_all", "names and shapes"));
            }
            Ok(_) => self.fail("model", "names", "expected those of the multimodal class"),
            Err(reason) => self.fail("adapter_all", "names and shapes", reason),
        }
        for group in ["expected", "adapter_all"] {
            self.verdict.rows.push(Row::later(group, "with pictures", NO_PICTURES));
        }
        Ok(())
    }
}

/// The 4-bit file is read and must be whole; its numbers are compared once 4-bit weights are built.
fn four_bit_rows(folder: &Path, manifest: &Manifest, config: &ModelConfig, gradients: &[String]) -> Vec<Row> {
    let path = folder.join("nf4.expected.safetensors");
    let promised = manifest.nf4_names(config, gradients);
    let recorded = read_promised(&path, &promised);
    let row = |name: String| match recorded.get(&name) {
        Some(Ok(_)) => Row::later("nf4", &name, NO_FOUR_BIT),
        Some(Err(detail)) => Row::fail("nf4", &name, detail),
        None => Row::fail("nf4", &name, missing(&path)),
    };
    promised.into_iter().map(row).collect()
}

/// Both spellings of the configuration must mean the same model.
fn hub_spelling(folder: &Path, config: &ModelConfig) -> Row {
    let quantity = "same model as config.json";
    match ModelConfig::read(&folder.join("config_hub_style.json")) {
        Ok(other) if other == *config => Row::ok("config_hub_style.json", quantity),
        Ok(other) => {
            Row::fail("config_hub_style.json", quantity, format!("reads as {other:?}, config.json as {config:?}"))
        }
        Err(error) => Row::fail("config_hub_style.json", quantity, TrainError::from(error).with_causes()),
    }
}

fn as_numbers(values: &[f64]) -> Numbers {
    Numbers::floats(&[values.len()], values.iter().map(|&value| value as f32).collect())
}

fn missing(path: &Path) -> String {
    format!("promised by manifest.json, missing in {}", path.file_name().unwrap_or_default().to_string_lossy())
}
