//! Writing an adapter folder that PEFT, transformers and vLLM load. Takes factors in memory and decides nothing about
//! them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use scout_core::{DType, LoraModule, ParamSpec, Projection};

use super::config::{self, CONFIG_FILE};
use super::experts;
use super::layout::{AdapterLayout, Factor, WEIGHTS_FILE, file_shape, tensor_name};
use super::settings::AdapterSettings;
use crate::atomic_file::{create_folder, write_whole};
use crate::error::{CheckpointError, Result};
use crate::safetensors::TensorWriter;

/// Writes weights, model card and, last, the settings into `folder`, each file whole or not at all.
///
/// `factors` gives A and B of `modules[index]` in the shapes of [`LoraModule::a_shape`] and [`LoraModule::b_shape`].
/// Weights are f32; weights and settings equal, byte for byte, what PEFT 0.21.2 writes for the same numbers.
pub fn write_adapter<'a>(
    folder: &Path,
    layout: AdapterLayout,
    settings: &AdapterSettings,
    modules: &[LoraModule],
    factors: &dyn Fn(usize) -> (&'a [f32], &'a [f32]),
) -> Result<()> {
    let projections: BTreeSet<Projection> = modules.iter().map(|module| module.projection).collect();
    check_request(folder, settings, modules)?;
    create_folder(folder)?;

    let path = folder.join(WEIGHTS_FILE);
    let tensors = file_tensors(layout, modules, factors);
    let declared = tensors.iter().map(|(param, _)| (param.clone(), DType::F32)).collect();
    let mut writer = TensorWriter::create(&path, declared)?;
    for (param, values) in &tensors {
        if values.len() != param.num_elements() {
            let mistake = format!("`{}` is {} and got {} values", param.name, param.shape, values.len());
            return Err(CheckpointError::Misuse { path, mistake });
        }
        writer.write_f32(&param.name, values)?;
    }
    writer.finish()?;
    write_whole(&folder.join("README.md"), model_card(settings, &projections).as_bytes())?;
    write_whole(&folder.join(CONFIG_FILE), config::render(settings, layout, &projections).as_bytes())
}

/// The factors of all modules under the names, in the shapes and in the order they have in the file.
pub fn file_tensors<'a>(
    layout: AdapterLayout,
    modules: &[LoraModule],
    factors: &dyn Fn(usize) -> (&'a [f32], &'a [f32]),
) -> Vec<(ParamSpec, Cow<'a, [f32]>)> {
    let projections: BTreeSet<Projection> = modules.iter().map(|module| module.projection).collect();
    let mut tensors = Vec::with_capacity(2 * modules.len());
    for (module_index, module) in modules.iter().enumerate() {
        let (a, b) = factors(module_index);
        let b = match module.num_experts {
            Some(num_experts) => Cow::Owned(experts::b_to_file(b, module, num_experts)),
            None => Cow::Borrowed(b),
        };
        for (factor, values) in [(Factor::A, Cow::Borrowed(a)), (Factor::B, b)] {
            let name = tensor_name(layout, module, factor, &projections);
            tensors.push((ParamSpec { name, shape: file_shape(module, factor) }, values));
        }
    }
    // The order of the safetensors library, which PEFT writes with.
    tensors.sort_by(|left, right| left.0.name.cmp(&right.0.name));
    tensors
}

fn check_request(folder: &Path, settings: &AdapterSettings, modules: &[LoraModule]) -> Result<()> {
    let misuse = |mistake: String| Err(CheckpointError::Misuse { path: folder.to_path_buf(), mistake });
    if modules.is_empty() {
        return misuse("an adapter without modules".to_string());
    }
    if let Some(module) = modules.iter().find(|module| module.rank != settings.rank) {
        return misuse(format!(
            "rank {} for {:?}, and {} for the adapter",
            module.rank, module.projection, settings.rank
        ));
    }
    if let Some(module) = modules.iter().find(|module| module.projection.is_routed() != module.num_experts.is_some()) {
        return misuse(format!("{:?} with {:?} experts", module.projection, module.num_experts));
    }
    if !settings.alpha.is_finite() || !(0.0..1.0).contains(&settings.dropout) {
        return misuse(format!("alpha {} and dropout {}", settings.alpha, settings.dropout));
    }
    // PEFT refuses to load such an adapter.
    if settings.dropout != 0.0 && modules.iter().any(|module| module.projection.is_routed()) {
        return misuse(format!("dropout {} for an adapter of routed experts, expected 0", settings.dropout));
    }
    Ok(())
}

const LOADING: &str = "Written by scout-dist in the layout of PEFT; load it with
`PeftModel.from_pretrained(base_model, this_folder)`.";

fn model_card(settings: &AdapterSettings, projections: &BTreeSet<Projection>) -> String {
    let mut card = String::from("---\n");
    if let Some(base) = &settings.base_model_name {
        // A JSON string is also a YAML string, whatever characters a path has.
        card += &format!("base_model: {}\n", serde_json::Value::from(base.as_str()));
    }
    card += "library_name: peft\npipeline_tag: text-generation\ntags:\n";
    if let Some(base) = &settings.base_model_name {
        card += &format!("- {}\n", serde_json::Value::from(format!("base_model:adapter:{base}")));
    }
    card += "- lora\n- transformers\n---\n\n# LoRA adapter for Llama 4\n\n";
    let leaf_names: Vec<_> = projections.iter().map(|projection| format!("`{}`", projection.leaf_name())).collect();
    card += &format!(
        "Rank {}, alpha {}{}, on {}.\n\n{LOADING}\n",
        settings.rank,
        settings.alpha,
        if settings.use_rslora { " (rank-stabilised)" } else { "" },
        leaf_names.join(", "),
    );
    if projections.iter().any(|projection| projection.is_routed()) {
        card +=
            "\nThe routed experts need PEFT 0.19.1 or later. For serving, merge the adapter into the model first.\n";
    }
    card
}
