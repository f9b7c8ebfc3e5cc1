//! What a run leaves behind: the adapter, or the whole trained model in the layout of Hugging Face. A model is gathered
//! unit by unit, in the order in which the first rank writes it, so that no rank ever holds more than one unit.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use scout_checkpoint::{
    AdapterSettings, ModelFolder, copy_file, remove_model, write_adapter, write_typed_model, written_order,
};
use scout_config::RunConfig;
use scout_core::{DType, ParamSpec, UnitId};
use scout_device::{UnitSource, UnitWeights};
use scout_model::lora::Factor;
use scout_shard::{Schedule, Walk};

use crate::error::{Result, TrainError};
use crate::plan::RunPlan;
use crate::prepare::Prepared;
use crate::synth::MAX_SHARD_BYTES;
use crate::trainer::Trainer;

/// Whoever serves the result wants the tokenizer it was trained with beside it.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// What makes weights a model; the last three come with models that see.
const MODEL_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
];
/// Left from an earlier run, they would make loaders put an adapter on the model.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Writes what was trained into `folder`. All ranks call it; the first one writes.
pub fn save(config: &RunConfig, prepared: &Prepared, trainer: &Trainer, folder: &Path) -> Result<()> {
    let plan = &prepared.plan;
    let is_first = trainer.job.mesh().is_first();
    if !plan.weights.is_empty() {
        if is_first {
            for name in ADAPTER_FILES {
                remove(&folder.join(name))?;
            }
            remove_model(folder)?;
            copy_files(plan, &MODEL_FILES, folder)?;
            copy_files(plan, &TOKENIZER_FILES, folder)?;
        }
        return save_model(config, plan, trainer, folder);
    }
    if is_first {
        save_adapter(config, prepared, trainer, folder)?;
        copy_files(plan, &TOKENIZER_FILES, folder)?;
    }
    Ok(())
}

fn save_adapter(config: &RunConfig, prepared: &Prepared, trainer: &Trainer, folder: &Path) -> Result<()> {
    let plan = &prepared.plan;
    let settings = AdapterSettings {
        rank: plan.lora.rank,
        alpha: plan.lora.alpha,
        dropout: match &prepared.start {
            Some(start) => start.settings.dropout,
            None => config.lora.lora_dropout,
        },
        use_rslora: plan.lora.use_rslora,
        base_model_name: config.model.model_name_or_path.as_ref().map(|path| path.display().to_string()),
    };
    let layout = trainer.adapter.layout();
    let flat = trainer.adapter.values()?;
    let factors = |index: usize| (&flat[layout.range(index, Factor::A)], &flat[layout.range(index, Factor::B)]);
    Ok(write_adapter(folder, plan.adapter_layout, &settings, layout.modules(), &factors)?)
}

/// Every tensor of the base checkpoint under its name and in its element type: trained units as they are now, what is not
/// part of the text model as it was.
fn save_model(config: &RunConfig, plan: &RunPlan, trainer: &Trainer, folder: &Path) -> Result<()> {
    let base = Base::open(config, plan)?;
    let tensors = base.tensors(plan)?;
    let places = places(plan);
    let mut schedule = Schedule::default();
    let mut last = None;
    for param in written_order(&tensors, MAX_SHARD_BYTES) {
        let unit = places.get(param.name.as_str()).map(|(unit, _)| *unit);
        if let Some(unit) = unit.filter(|_| unit != last) {
            schedule.push(&[unit]);
            last = Some(unit);
        }
    }
    let one_by_one = trainer.plan.one_at_a_time();
    let mut walk = Walk::new(&one_by_one, &trainer.store, &trainer.job, &trainer.account, &schedule);
    if !trainer.job.mesh().is_first() {
        for &unit in schedule.order() {
            drop(walk.gather(&[unit])?.take(unit)?);
        }
        return Ok(());
    }
    let mut held: Option<(UnitId, UnitWeights)> = None;
    write_typed_model(folder, &tensors, MAX_SHARD_BYTES, &mut |param, range: Range<usize>, out| {
        let Some(&(unit, index)) = places.get(param.name.as_str()) else { return base.read(param, range, out) };
        if held.as_ref().is_none_or(|(held, _)| *held != unit) {
            held = None; // given back before the next one is gathered
            held = Some((unit, walk.gather(&[unit])?.take(unit)?));
        }
        let (_, weights) = held.as_ref().expect("gathered above");
        out.copy_from_slice(&weights.param(index)?.f32s()?[range]);
        Ok::<(), TrainError>(())
    })
}

/// Unit and place in it, by the names of the text model's parameters.
fn places(plan: &RunPlan) -> HashMap<&str, (UnitId, usize)> {
    let mut places = HashMap::new();
    for unit in plan.units.units() {
        for (index, param) in unit.params.iter().enumerate() {
            places.insert(param.name.as_str(), (unit.id, index));
        }
    }
    places
}

/// The checkpoint that training began from; random weights have none.
struct Base(Option<ModelFolder>);

impl Base {
    fn open(config: &RunConfig, plan: &RunPlan) -> Result<Base> {
        match &plan.source.folder {
            Some(folder) if !config.model.random_weights => Ok(Base(Some(ModelFolder::open(folder)?))),
            _ => Ok(Base(None)),
        }
    }

    fn tensors(&self, plan: &RunPlan) -> Result<Vec<(ParamSpec, DType)>> {
        let params = plan.units.checkpoint_params(&plan.source.config, plan.source.style);
        let Some(files) = &self.0 else { return Ok(params.into_iter().map(|param| (param, DType::F32)).collect()) };
        let typed = |param: ParamSpec| {
            let dtype = files.element_type(&param.name)?.dtype().unwrap_or(DType::F32);
            Ok((param, dtype))
        };
        params.into_iter().map(typed).collect()
    }

    fn read(&self, param: &ParamSpec, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Base(files) = self;
        let files = files.as_ref().expect("random weights are those of the text model alone");
        Ok(files.read_f32(&param.name, range, out)?)
    }
}

fn copy_files(plan: &RunPlan, names: &[&str], folder: &Path) -> Result<()> {
    for name in names {
        let Some(from) = plan.source.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.is_file())
        else {
            continue;
        };
        copy_file(&from, &folder.join(name))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::Io { act: "replace", path: path.display().to_string(), cause })
        }
        _ => Ok(()),
    }
}
