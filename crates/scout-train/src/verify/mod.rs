//! `verify`: a folder of recorded reference numbers against what this program computes. Every promised quantity becomes
//! a row, and a file or tensor that cannot be read is a failed row. Where the model or the probe batch itself cannot be
//! read, that row stands alone: there is nothing to compare with.

pub mod compare;
mod compute;
mod padded;
mod promise;
mod texts;
mod training;

use std::collections::BTreeMap;
use std::path::Path;

use scout_checkpoint::TensorFile;
use scout_core::DType;
use scout_model::{ModelConfig, NameStyle};

pub use compare::{Numbered, Numbers, Row, Rule, Status, Values, compare, compare_all};
use compute::Bench;
use padded::Padded;
use promise::{ADAPTERS, Manifest};
use training::Recorded;

use crate::{Result, TrainError};

/// What was recorded under a name, or why it cannot be read.
pub type Recording = BTreeMap<String, std::result::Result<Numbers, String>>;

/// Why 4-bit rows wait.
const NO_FOUR_BIT: &str = "4-bit weights are not built yet";
const NO_PICTURES: &str = "pictures are not built yet";

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
}

impl Verdict {
    pub fn all_rows(&self) -> Vec<Row> {
        self.groups.iter().flat_map(Group::compare).chain(self.rows.iter().cloned()).collect()
    }

    /// Adds the group that `make` returns, or the row that says why there is none.
    fn attempt(&mut self, name: &str, make: impl FnOnce() -> Result<Group>) {
        match make() {
            Ok(group) => self.groups.push(group),
            Err(error) => self.rows.push(Row::fail(name, "all", error.with_causes())),
        }
    }
}

/// Compares everything in `folder`. An error means that there is nothing to compare with; everything else is a row.
pub fn verify(folder: &Path) -> Result<Verdict> {
    let manifest = Manifest::read(folder)?;
    let mut verdict = Verdict::default();
    let config = match ModelConfig::read(&folder.join("config.json")) {
        Ok(config) => config,
        Err(error) => {
            verdict.rows.push(Row::fail("config.json", "all", TrainError::from(error).with_causes()));
            return Ok(verdict);
        }
    };
    verdict.rows.push(hub_spelling(folder, &config));
    let mut bench = match Bench::open(folder, config.clone()) {
        Ok(bench) => bench,
        Err(error) => {
            verdict.rows.push(Row::fail("model", "weights", error.with_causes()));
            return Ok(verdict);
        }
    };
    if manifest.vision_config.is_some() {
        verify_text_rows(folder, &mut bench, &mut verdict);
    } else {
        verify_text_folder(folder, &manifest, &mut bench, &mut verdict);
    }
    Ok(verdict)
}

fn verify_text_folder(folder: &Path, manifest: &Manifest, bench: &mut Bench, verdict: &mut Verdict) {
    let config = bench.config.clone();
    let expected =
        read(&folder.join("expected.safetensors")).and_then(|recorded| Ok((padded(&recorded, "")?, recorded)));
    let (probe, recorded) = match expected {
        Ok(read) => read,
        Err(error) => return verdict.rows.push(Row::fail("expected", "batch", error.with_causes())),
    };
    verdict.attempt("expected", || {
        let computed = bench.forward(&probe)?;
        Ok(Group::new("expected", manifest.expected_names(&config), recorded, computed))
    });
    let training = Recorded::read(folder);
    let batches = read_batches(folder, manifest);
    for adapter in ADAPTERS {
        let name = format!("adapter_{adapter}");
        let mut gradient_names = Vec::new();
        verdict.attempt(&name, || {
            bench.wear(adapter)?;
            gradient_names = bench.adapter_tensors()?.into_keys().collect();
            let promised = manifest.adapter_names(&config, adapter, &gradient_names);
            let recorded = read_promised(&folder.join(format!("{name}.expected.safetensors")), &promised);
            Ok(Group::new(&name, promised, recorded, bench.with_adapter(&probe)?))
        });
        match (&training, &batches) {
            (Ok(training), Ok(batches)) => {
                verify_training(folder, adapter, (training, batches, &probe), bench, verdict);
            }
            (Err(error), _) | (_, Err(error)) => {
                verdict.rows.push(Row::fail(&format!("training_{adapter}"), "all", error.with_causes()));
            }
        }
        if adapter == "all" && manifest.args.nf4 {
            verdict.rows.extend(four_bit_rows(folder, manifest, &config, &gradient_names));
        }
    }
    verdict.rows.extend(texts::rows(folder, &probe, batches.as_deref().unwrap_or_default()));
}

/// The recorded run from `adapter_X`, and the adapter it ends with.
fn verify_training(
    folder: &Path,
    adapter: &str,
    (training, batches, probe): (&Recorded, &[Padded], &Padded),
    bench: &mut Bench,
    verdict: &mut Verdict,
) {
    let name = format!("training_{adapter}");
    let Some(recorded) = training.runs.get(adapter) else {
        return verdict.rows.push(Row::fail(&name, "all", "is not in training.json"));
    };
    verdict.attempt(&name, || {
        bench.wear(adapter)?;
        let run = compute::train(bench, batches, &training.recipe)?;
        let after = bench.probe_loss(probe)?;
        let series = [
            ("lr", compare::LEARNING_RATE, &recorded.lr, run.learning_rate),
            ("loss", compare::TRAINING_LOSS, &recorded.loss, run.loss),
            ("grad_norm", compare::TRAINING_GRAD_NORM, &recorded.grad_norm, run.grad_norm),
            ("probe_loss_after", compare::TRAINING_LOSS, &vec![recorded.probe_loss_after], vec![after]),
        ];
        let mut group = Group::new(&name, Vec::new(), Recording::new(), Numbered::new());
        for (quantity, rule, recorded, computed) in series {
            group.add(quantity, rule, Ok(as_numbers(recorded)), as_numbers(&computed));
        }
        let path = folder.join(format!("adapter_{adapter}_trained")).join("adapter_model.safetensors");
        let computed = bench.adapter_tensors()?;
        let mut trained = read_promised(&path, &computed.keys().cloned().collect::<Vec<_>>());
        for (tensor, computed) in computed {
            let recorded = trained.remove(&tensor).unwrap_or_else(|| Err(missing(&path)));
            group.add(&format!("trained.{tensor}"), compare::TRAINED_ADAPTER, recorded, computed);
        }
        Ok(group)
    });
}

/// What a folder of the multimodal class holds for the text model alone.
fn verify_text_rows(folder: &Path, bench: &mut Bench, verdict: &mut Verdict) {
    let expected = read(&folder.join("expected.safetensors"));
    match expected.and_then(|recorded| Ok((padded(&recorded, "text_only.")?, recorded))) {
        Err(error) => verdict.rows.push(Row::fail("text_only", "batch", error.with_causes())),
        Ok((probe, mut recorded)) => verdict.attempt("text_only", || {
            let names = ["logits", "loss"].map(String::from).to_vec();
            let of_text = |name: &String| Some((name.clone(), recorded.remove(&format!("text_only.{name}"))?));
            let recorded = names.iter().filter_map(of_text).collect();
            Ok(Group::new("text_only", names, recorded, bench.forward(&probe)?))
        }),
    }
    match bench.wear("all") {
        Ok(_) if bench.style == NameStyle::Conditional => verdict.rows.push(Row::ok("adapter_all", "names and shapes")),
        Ok(_) => verdict.rows.push(Row::fail("model", "names", "expected those of the multimodal class")),
        Err(error) => verdict.rows.push(Row::fail("adapter_all", "names and shapes", error.with_causes())),
    }
    for group in ["expected", "adapter_all"] {
        verdict.rows.push(Row::later(group, "with pictures", NO_PICTURES));
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

fn read_batches(folder: &Path, manifest: &Manifest) -> Result<Vec<Padded>> {
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
            Padded::new(&shape[1..], part(&ids), part(&labels), part(&mask))
        })
        .collect()
}

fn as_numbers(values: &[f64]) -> Numbers {
    Numbers::floats(&[values.len()], values.iter().map(|&value| value as f32).collect())
}

fn missing(path: &Path) -> String {
    format!("promised by manifest.json, missing in {}", path.file_name().unwrap_or_default().to_string_lossy())
}
