//! Reading an adapter folder of PEFT: both classes, both layouts of experts, and an error for every tensor that would
//! not take effect. PEFT itself only warns about those.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use scout_core::{DType, LoraModule, Projection};

use super::config::{self, AdapterConfig, CONFIG_FILE};
use super::experts;
use super::layout::{AdapterLayout, Factor, WEIGHTS_FILE, file_shape, old_file_shape, tensor_name};
use super::settings::AdapterSettings;
use crate::disagreement::Disagreement;
use crate::error::{CheckpointError, Result};
use crate::folder::Folder;
use crate::safetensors::TensorFile;

/// An adapter in memory.
#[derive(Debug)]
pub struct LoadedAdapter {
    pub settings: AdapterSettings,
    pub projections: BTreeSet<Projection>,
    pub layout: AdapterLayout,
    pub modules: Vec<LoraModule>,
    /// A and B of each module, in the shapes of [`LoraModule::a_shape`] and [`LoraModule::b_shape`].
    pub factors: Vec<(Vec<f32>, Vec<f32>)>,
}

/// Reads the adapter in `folder`; `modules_for` tells which modules the base model has for these settings and
/// projections.
///
/// Fails on settings that would change the arithmetic, and unless the file holds exactly the tensors of those modules,
/// in their shapes and finite.
pub fn read_adapter(
    folder: &Path,
    modules_for: &dyn Fn(&AdapterSettings, &BTreeSet<Projection>) -> Vec<LoraModule>,
) -> Result<LoadedAdapter> {
    let folder = Folder::open(folder, "adapter")?;
    let (config_path, weights_path) = match (folder.file(CONFIG_FILE)?, folder.file(WEIGHTS_FILE)?) {
        (Some(config_path), Some(weights_path)) => (config_path, weights_path),
        (None, Some(_)) => return Err(incomplete(&folder, CONFIG_FILE, WEIGHTS_FILE)),
        (Some(_), None) if folder.pickle_file()?.is_none() => {
            return Err(incomplete(&folder, WEIGHTS_FILE, CONFIG_FILE));
        }
        (_, None) => return Err(folder.without("adapter", WEIGHTS_FILE)),
    };
    let config = config::read(&config_path)?;
    let file = TensorFile::open(&weights_path)?;
    let layout = find_layout(&file)?;
    let projections = find_projections(&file, &config, layout)?;
    let modules = modules_for(&config.settings, &projections);

    let adapter = AdapterFile { file, config_path, layout, modules, projections };
    let era = adapter.check(config.peft_version.as_deref())?;
    let factors = adapter.modules.iter().map(|module| adapter.read(module, era)).collect::<Result<_>>()?;
    let AdapterFile { layout, modules, projections, .. } = adapter;
    Ok(LoadedAdapter { settings: config.settings, projections, layout, modules, factors })
}

fn incomplete(folder: &Folder, missing: &str, present: &str) -> CheckpointError {
    let problem = format!("is only a part of an adapter: it holds `{present}` and no `{missing}`");
    CheckpointError::File { path: folder.path().to_path_buf(), problem }
}

/// Which side of a stacked expert matrix factor A faces in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    /// PEFT 0.19.1 and later: the output.
    Current,
    /// PEFT 0.17.0 to 0.19.0: the input.
    Old,
}

struct AdapterFile {
    file: TensorFile,
    config_path: PathBuf,
    layout: AdapterLayout,
    modules: Vec<LoraModule>,
    projections: BTreeSet<Projection>,
}

impl AdapterFile {
    /// Accounts for every tensor of the file and every factor of the modules, and says how the experts are laid out.
    fn check(&self, peft_version: Option<&str>) -> Result<Era> {
        let mut found = Disagreement::default();
        let mut expected = BTreeSet::new();
        // A name of an expert tensor for each layout that its module allows alone.
        let (mut only_current, mut only_old, mut has_experts) = (None, None, false);
        for module in &self.modules {
            let [a, b] = [Factor::A, Factor::B].map(|factor| self.name(module, factor));
            let fits = |shape_of: fn(&LoraModule, Factor) -> _| {
                let has =
                    |name, factor| self.file.entry(name).is_ok_and(|entry| entry.shape == shape_of(module, factor));
                has(&a, Factor::A) && has(&b, Factor::B)
            };
            match (fits(file_shape), fits(old_file_shape)) {
                (true, false) => only_current = Some(a.clone()),
                (false, true) => only_old = Some(a.clone()),
                (true, true) => {}
                (false, false) => self.explain(module, &mut found),
            }
            has_experts |= module.num_experts.is_some();
            expected.extend([a, b]);
        }
        for entry in self.file.entries() {
            if !expected.contains(&entry.name) {
                found.unexpected.push(entry.name.clone());
            } else if !matches!(entry.element_type.dtype(), Some(DType::F32 | DType::BF16 | DType::F16)) {
                found.mistyped.push(format!("`{}` is {}, expected F32, BF16 or F16", entry.name, entry.element_type));
            }
        }
        if !found.is_empty() {
            return Err(CheckpointError::Tensors { path: self.file.path().to_path_buf(), found: Box::new(found) });
        }
        match (only_current, only_old) {
            (Some(current), Some(old)) => {
                let both = format!("`{current}` is in that of peft 0.19.1 and later, `{old}` in the older one");
                let problem = format!("mixes two layouts of experts: {both}");
                Err(CheckpointError::File { path: self.file.path().to_path_buf(), problem })
            }
            (Some(_), None) => Ok(Era::Current),
            (None, Some(_)) => Ok(Era::Old),
            (None, None) if !has_experts => Ok(Era::Current),
            (None, None) => era_of_version(peft_version).ok_or_else(|| CheckpointError::Setting {
                path: self.config_path.clone(),
                key: "peft_version".to_string(),
                found: peft_version.map_or("absent".to_string(), |version| format!("`{}`", version.escape_debug())),
                reason:
                    "the shapes alone do not tell the layout of the experts, so a release from 0.17.0 on is expected"
                        .to_string(),
            }),
        }
    }

    /// Says what is wrong with the tensors of a module that fit neither layout together.
    fn explain(&self, module: &LoraModule, found: &mut Disagreement) {
        let mut is_explained = false;
        for factor in [Factor::A, Factor::B] {
            let name = self.name(module, factor);
            let (current, old) = (file_shape(module, factor), old_file_shape(module, factor));
            let Ok(entry) = self.file.entry(&name) else {
                found.missing.push(name);
                is_explained = true;
                continue;
            };
            // Two factors that are right alone and wrong together come from different layouts: blame the second.
            let is_mix = factor == Factor::B && !is_explained;
            if is_mix || (entry.shape != current && entry.shape != old) {
                let older = if old == current { String::new() } else { format!(" (from a peft before 0.19.1: {old})") };
                found.misshapen.push(format!("`{name}` is {}, expected {current}{older}", entry.shape));
                is_explained = true;
            }
        }
    }

    fn read(&self, module: &LoraModule, era: Era) -> Result<(Vec<f32>, Vec<f32>)> {
        let (_, a) = self.file.read_f32_all(&self.name(module, Factor::A))?;
        let (_, b) = self.file.read_f32_all(&self.name(module, Factor::B))?;
        Ok(match (module.num_experts, era) {
            (None, _) => (a, b),
            (Some(num_experts), Era::Current) => (a, experts::b_from_file(&b, module, num_experts)),
            (Some(num_experts), Era::Old) => {
                (experts::a_from_old_b(&b, module, num_experts), experts::b_from_old_a(&a, module))
            }
        })
    }

    fn name(&self, module: &LoraModule, factor: Factor) -> String {
        tensor_name(self.layout, module, factor, &self.projections)
    }
}

fn find_layout(file: &TensorFile) -> Result<AdapterLayout> {
    let bad = |problem: String| CheckpointError::File { path: file.path().to_path_buf(), problem };
    let first = |layout: AdapterLayout| file.entries().iter().find(|entry| entry.name.starts_with(layout.prefix()));
    match (first(AdapterLayout::Text), first(AdapterLayout::Conditional)) {
        (Some(_), None) => Ok(AdapterLayout::Text),
        (None, Some(_)) => Ok(AdapterLayout::Conditional),
        (Some(text), Some(full)) => {
            Err(bad(format!("mixes the names of two classes: `{}` and `{}`", text.name, full.name)))
        }
        (None, None) => {
            let found = file.entries().first().map_or("nothing".to_string(), |entry| format!("`{}`", entry.name));
            let [text, full] = [AdapterLayout::Text.prefix(), AdapterLayout::Conditional.prefix()];
            Err(bad(format!("holds no adapter of a decoder layer: found {found}, expected `{text}…` or `{full}…`")))
        }
    }
}

fn find_projections(file: &TensorFile, config: &AdapterConfig, layout: AdapterLayout) -> Result<BTreeSet<Projection>> {
    let linear = config.linear.clone().unwrap_or_else(|| {
        let holds = |projection: &Projection| {
            let part = format!(".{}.lora_", projection.path_in_layer());
            let mut entries = file.entries().iter();
            entries.any(|entry| entry.name.strip_prefix(layout.prefix()).is_some_and(|rest| rest.contains(&part)))
        };
        Projection::ALL.into_iter().filter(|projection| !projection.is_routed()).filter(holds).collect()
    });
    let projections: BTreeSet<Projection> = linear.into_iter().chain(config.routed.iter().copied()).collect();
    if projections.is_empty() {
        let problem = "holds no tensor that its settings target".to_string();
        return Err(CheckpointError::File { path: file.path().to_path_buf(), problem });
    }
    Ok(projections)
}

/// The layout that a release of PEFT writes. A development version of 0.19.1 may stand on either side of the change.
fn era_of_version(version: Option<&str>) -> Option<Era> {
    let version = version?;
    let mut parts = version.split('.');
    let mut number = || parts.next()?.parse::<u32>().ok();
    let release = (number()?, number()?, number()?);
    let is_development = parts.next().is_some();
    match release {
        (0, 19, 1) if is_development => None,
        release if release >= (0, 19, 1) => Some(Era::Current),
        release if release >= (0, 17, 0) => Some(Era::Old),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_that_wrote_a_square_adapter_tells_its_layout() {
        let check = |version: Option<&str>, expected| assert_eq!(era_of_version(version), expected, "{version:?}");
        check(Some("0.21.2"), Some(Era::Current));
        check(Some("0.19.1"), Some(Era::Current));
        check(Some("1.0.0"), Some(Era::Current));
        check(Some("0.20.0.dev0"), Some(Era::Current));
        check(Some("0.19.0"), Some(Era::Old));
        check(Some("0.17.1"), Some(Era::Old));
        check(Some("0.18.0.dev0@abc"), Some(Era::Old));
        check(Some("0.19.1.dev0"), None);
        check(Some("0.16.0"), None);
        check(Some("0.19"), None);
        check(Some("newest"), None);
        check(None, None);
    }
}
