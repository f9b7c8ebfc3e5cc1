//! `verify`: a folder of recorded reference numbers against what this program computes. Every promised quantity becomes
//! a row, and a file or tensor that cannot be read is a failed row. Where the model or the probe batch itself cannot be
//! read, that row stands alone: there is nothing to compare with.

pub mod compare;
mod compute;
mod held;
mod padded;
mod promise;
mod texts;
mod threads;
mod together;
mod training;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use scout_checkpoint::TensorFile;
use scout_comm::Job;
use scout_core::{DType, Phase, Rank};
use scout_model::{ModelConfig, NameStyle};

use compare::{Kind, Precision};
pub use compare::{Numbered, Numbers, Row, Rule, Status, Values, compare, compare_all};
use compute::Bench;
pub use held::Held;
use padded::Padded;
use promise::{ADAPTERS, Manifest};
pub use threads::on_threads;
use together::agree;
use training::Recorded;

use crate::machine::Machine;
use crate::{Result, TrainError};

/// What was recorded under a name, or why it cannot be read.
pub type Recording = BTreeMap<String, std::result::Result<Numbers, String>>;

/// Why 4-bit rows wait.
const NO_FOUR_BIT: &str = "4-bit weights are not built yet";
const NO_PICTURES: &str = "pictures are not built yet";

/// Longer than any step of a comparison takes; ranks that fail end the others at once.
const DEADLINE: Duration = Duration::from_secs(600);

/// One recorded file beside what was computed for it: enough to compare again with other numbers.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    pub promised: Vec<String>,
    pub recorded: Recording,
    pub computed: Numbered,
    /// Rules that the names alone do not tell.
    pub rules: BTreeMap<String, Rule>,
}

impl Group {
    pub fn compare(&self) -> Vec<Row> {
        compare_all(&self.name, &self.promised, &self.recorded, &self.computed, &self.rules)
    }
}

/// Everything there is to say about a folder.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Numbers against numbers.
    pub groups: Vec<Group>,
    /// Rows that are settled without a comparison of tensors.
    pub rows: Vec<Row>,
    /// What each rank held and read; empty where nothing could be computed.
    pub ranks: Vec<Held>,
}

impl Verdict {
    pub fn all_rows(&self) -> Vec<Row> {
        self.groups.iter().flat_map(Group::compare).chain(self.rows.iter().cloned()).collect()
    }

    fn fail(mut self, group: &str, quantity: &str, detail: impl Into<String>) -> Verdict {
        self.rows.push(Row::fail(group, quantity, detail));
        self
    }
}

/// Compares everything in `folder`. An error means that there is nothing to compare with; everything else is a row.
pub fn verify(folder: &Path) -> Result<Verdict> {
    verify_on_rank(folder, &Job::alone(DEADLINE))
}

/// The same on one GPU, under tolerances of its own.
pub fn verify_on_gpu(folder: &Path, machine: &Machine) -> Result<Verdict> {
    verdict_on(folder, &Job::alone(DEADLINE), machine)
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
pub fn verify_on_threads(folder: &Path, world_size: usize) -> Result<Verdict> {
    on_threads(world_size, DEADLINE, |job| verify_on_rank(folder, job))
}

/// The same on one of the ranks of a job: row i of every batch belongs to rank i modulo their number, weights are
/// sharded, and every rank returns the same verdict. Fails on all ranks when one of them cannot go on.
pub fn verify_on_rank(folder: &Path, job: &Job) -> Result<Verdict> {
    let rank = job.mesh().rank();
    verdict_on(folder, job, &job.mesh().size().into())
        .inspect_err(|error| job.comm.abort(&format!("rank {rank}: {}", error.with_causes())))
}

fn verdict_on(folder: &Path, job: &Job, machine: &Machine) -> Result<Verdict> {
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
    let bench = match agree(comm, Bench::open(folder, config, job, machine))? {
        Ok(bench) => bench,
        Err(reason) => {
            let verdict = Verdict { rows: vec![spelling], ..verdict };
            return Ok(verdict.fail("model", "weights", reason));
        }
    };
    let verdict = Verdict { rows: vec![spelling], ..verdict };
    let mut checks = Checks { folder, manifest: &manifest, job, bench, verdict };
    match manifest.vision_config {
        Some(_) => checks.text_rows()?,
        None => checks.text_folder()?,
    }
    let Checks { bench, mut verdict, .. } = checks;
    if bench.precision() != Precision::Host {
        return Ok(verdict); // memory of a GPU is taken in grains, and nothing of it is shared out
    }
    verdict.ranks = bench.held().of_all(comm)?;
    let failures = verdict.ranks.iter().enumerate().flat_map(|(rank, held)| held.failures(Rank(rank)));
    verdict.rows.extend(failures.collect::<Vec<_>>());
    Ok(verdict)
}

/// The comparison while it goes on, on one rank. Everything that may fail on one rank alone is agreed upon before the
/// next collective.
struct Checks<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    job: &'a Job,
    bench: Bench,
    verdict: Verdict,
}

impl Checks<'_> {
    /// Adds the group that `compute` makes of what `prepare` returns, or the row that says why there is none. `prepare`
    /// reads files and waits for nobody; `compute` fails on all ranks at the same point, or ends the comparison.
    fn attempt<P>(
        &mut self,
        name: &str,
        prepare: impl FnOnce(&mut Bench) -> Result<P>,
        compute: impl FnOnce(&mut Bench, P) -> Result<Group>,
    ) -> Result<()> {
        let prepared = prepare(&mut self.bench);
        let failed = match agree(&*self.job.comm, prepared)? {
            Err(reason) => reason,
            Ok(prepared) => match compute(&mut self.bench, prepared) {
                Ok(group) => {
                    self.verdict.groups.push(group);
                    return Ok(());
                }
                // All ranks see the same sums. Other failures may be of one rank, which the others then wait for.
                Err(error @ TrainError::NotANumber { .. }) => error.with_causes(),
                Err(error) if self.job.mesh().size() == 1 => error.with_causes(),
                Err(error) => return Err(error),
            },
        };
        self.fail(name, "all", failed);
        Ok(())
    }

    fn fail(&mut self, group: &str, quantity: &str, detail: impl Into<String>) {
        self.verdict.rows.push(Row::fail(group, quantity, detail));
    }

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
        self.attempt(
            "expected",
            |bench| bench.follow(&recorded),
            |bench, ()| {
                let computed = bench.forward(&probe)?;
                Ok(Group::new("expected", manifest.expected_names(&config), recorded.clone(), computed)
                    .under(bench.precision()))
            },
        )?;
        let training = agree(comm, Recorded::read(folder))?;
        let batches = agree(comm, read_batches(folder, manifest, config.vocab_size))?;
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
            Ok((probe, mut recorded)) => self.attempt(
                "text_only",
                |_| Ok(()),
                |bench, ()| {
                    let names = ["logits", "loss"].map(String::from).to_vec();
                    let of_text = |name: &String| Some((name.clone(), recorded.remove(&format!("text_only.{name}"))?));
                    let recorded = names.iter().filter_map(of_text).collect();
                    let computed = bench.forward(&probe)?;
                    Ok(Group::new("text_only", names, recorded, computed).under(bench.precision()))
                },
            )?,
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

impl Group {
    fn new(name: &str, promised: Vec<String>, recorded: Recording, computed: Numbered) -> Group {
        Group { name: name.to_string(), promised, recorded, computed, rules: BTreeMap::new() }
    }

    /// The same group, computed in this arithmetic.
    fn under(mut self, precision: Precision) -> Group {
        if precision != Precision::Host {
            let rule = |name: &String| (name.clone(), Kind::of_name(name).rule(precision));
            self.rules = self.promised.iter().map(rule).collect();
        }
        self
    }

    fn add(&mut self, name: &str, rule: Rule, recorded: std::result::Result<Numbers, String>, computed: Numbers) {
        self.promised.push(name.to_string());
        self.recorded.insert(name.to_string(), recorded);
        self.computed.insert(name.to_string(), computed);
        self.rules.insert(name.to_string(), rule);
    }
}

/// Every tensor of a file, each with its own reason if it cannot be read; an error when the file itself cannot.
fn read(path: &Path) -> Result<Recording> {
    let file = TensorFile::open(path)?;
    let read_one = |name: &str, dtype| -> scout_checkpoint::Result<Numbers> {
        Ok(match dtype {
            Some(DType::I64) => {
                let (shape, values) = file.read_i64(name)?;
                Numbers::integers(shape.dims(), values)
            }
            Some(DType::U8) => {
                let (shape, values) = file.read_u8(name)?;
                Numbers::integers(shape.dims(), values.into_iter().map(i64::from).collect())
            }
            _ => {
                let (shape, values) = file.read_f32_all(name)?;
                Numbers::floats(shape.dims(), values)
            }
        })
    };
    let entries = file.entries().iter();
    let read = entries.map(|entry| {
        let read =
            read_one(&entry.name, entry.element_type.dtype()).map_err(|error| TrainError::from(error).with_causes());
        (entry.name.clone(), read)
    });
    Ok(read.collect())
}

/// The same for a file whose tensors are `promised`: one that cannot be opened fails each of them with its reason.
fn read_promised(path: &Path, promised: &[String]) -> Recording {
    read(path).unwrap_or_else(|error| {
        let reason = error.with_causes();
        promised.iter().map(|name| (name.clone(), Err(reason.clone()))).collect()
    })
}

/// `expected.safetensors` and the batch it was made with.
fn read_probe(folder: &Path, prefix: &str, vocab_size: usize) -> Result<(Padded, Recording)> {
    let recorded = read(&folder.join("expected.safetensors"))?;
    Ok((padded(&recorded, prefix)?.inside_vocabulary(vocab_size)?, recorded))
}

/// The batch that a recording was made with; its ids may stand under a prefix, the rest is shared.
fn padded(recorded: &Recording, prefix: &str) -> Result<Padded> {
    let (shape, ids) = integers(recorded, &format!("{prefix}input_ids"))?;
    let (_, labels) = integers(recorded, "labels")?;
    let (_, mask) = integers(recorded, "attention_mask")?;
    Padded::new(&shape, ids, labels, mask)
}

fn integers(recorded: &Recording, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
    let problem = match recorded.get(name) {
        Some(Ok(Numbers { shape, values: Values::Integers(values) })) => return Ok((shape.clone(), values.clone())),
        Some(Ok(_)) => "does not hold whole numbers".to_string(),
        Some(Err(detail)) => detail.clone(),
        None => "is missing".to_string(),
    };
    Err(TrainError::Input { path: name.to_string(), problem, code: scout_core::ExitCode::BadData })
}

fn read_batches(folder: &Path, manifest: &Manifest, vocab_size: usize) -> Result<Vec<Padded>> {
    let recorded = read(&folder.join("train_batches.safetensors"))?;
    let [(shape, ids), (_, labels), (_, mask)] = ["input_ids", "labels", "attention_mask"]
        .map(|name| integers(&recorded, name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        .try_into()
        .expect("three names give three tensors");
    let args = &manifest.args;
    if shape != [args.steps, args.batch, args.seq] || [ids.len(), labels.len()] != [mask.len(); 2] {
        return Err(TrainError::Input {
            path: "train_batches.safetensors".to_string(),
            problem: format!("has shape {shape:?}, expected [{}, {}, {}]", args.steps, args.batch, args.seq),
            code: scout_core::ExitCode::BadData,
        });
    }
    let step_len = args.batch * args.seq;
    (0..args.steps)
        .map(|step| {
            let part = |values: &[i64]| values[step * step_len..(step + 1) * step_len].to_vec();
            Padded::new(&shape[1..], part(&ids), part(&labels), part(&mask))?.inside_vocabulary(vocab_size)
        })
        .collect()
}

fn as_numbers(values: &[f64]) -> Numbers {
    Numbers::floats(&[values.len()], values.iter().map(|&value| value as f32).collect())
}

fn missing(path: &Path) -> String {
    format!("promised by manifest.json, missing in {}", path.file_name().unwrap_or_default().to_string_lossy())
}
