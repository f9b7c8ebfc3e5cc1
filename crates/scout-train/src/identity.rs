//! What all ranks of a job must have in common, as digests that fit into an introduction: the configuration as resolved
//! and the model as its files describe it. Weights themselves are not read; whoever owns them does that.

use blake3::Hasher;
use scout_checkpoint::ModelFolder;
use scout_comm::{Communicator, words};
use scout_config::RunConfig;
use scout_core::ExitCode;

use crate::error::{Result, TrainError};
use crate::plan::ModelSource;
use crate::prepare::Planned;

/// Equal for equal values of all keys, wherever they were set.
pub fn of_config(config: &RunConfig) -> [u8; 32] {
    // The text names every key with its value; both sides are the same version of this program.
    *blake3::hash(format!("{config:?}").as_bytes()).as_bytes()
}

/// Equal for models of the same shapes, held in the same tensors.
pub fn of_model(source: &ModelSource, random_weights: bool) -> Result<[u8; 32]> {
    let mut hasher = Hasher::new();
    hasher.update(format!("{:?} {:?}", source.config, source.style).as_bytes());
    if let (Some(folder), false) = (&source.folder, random_weights) {
        let files = ModelFolder::open(folder)?;
        for name in files.names() {
            hasher.update(format!("{name} {} {}\n", files.shape(name)?, files.element_type(name)?).as_bytes());
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// What follows from data and adapter as well, which every rank reads for itself: how weights are held and in how many runs
/// an update is computed decides which transfers there are. Fails on all ranks where one of them plans otherwise.
pub fn must_plan_alike(planned: &Planned, comm: &dyn Communicator) -> Result<()> {
    let Planned { plan, data, .. } = planned;
    let mut hasher = Hasher::new();
    hasher.update(format!("{:?} {:?} {:?} {:?}", plan.way, plan.steps, plan.lora, plan.schedules).as_bytes());
    for set in [&data.examples, &data.held_out] {
        for row in 0..set.len() {
            hasher.update(&(set.length(row) as u64).to_le_bytes());
            let labels = set.labels(row).map(|label| label.unwrap_or(u32::MAX));
            let tokens: Vec<u8> = set.ids(row).iter().copied().chain(labels).flat_map(u32::to_le_bytes).collect();
            hasher.update(&tokens);
        }
    }
    let of_ranks = words::of_all_ranks(comm, *hasher.finalize().as_bytes())?;
    match of_ranks.iter().position(|other| *other != of_ranks[0]) {
        None => Ok(()),
        Some(rank) => Err(TrainError::Input {
            path: format!("what rank {rank} has read"),
            problem: "is other data, or another adapter, than what rank 0 has read: its plan is another one"
                .to_string(),
            code: ExitCode::BadData,
        }),
    }
}

#[cfg(test)]
mod tests {
    use scout_core::DType;

    use super::*;
    use crate::synth::{SynthRequest, SynthShape, write_folder};

    fn config_of(text: &str) -> RunConfig {
        RunConfig::from_text("test.yaml", text, &[], &[]).unwrap().config
    }

    #[test]
    fn a_configuration_is_known_by_its_values_and_not_by_its_spelling() {
        let one = of_config(&config_of("random_weights: true\nlearning_rate: 1.0e-4\nseed: 7\n"));
        assert_eq!(of_config(&config_of("seed: 7 # the same\nlearning_rate: 0.0001\nrandom_weights: true\n")), one);
        assert_ne!(of_config(&config_of("random_weights: true\nlearning_rate: 1.0e-4\nseed: 8\n")), one);
    }

    #[test]
    fn a_model_is_known_by_its_shapes_and_element_types() {
        let parent = tempfile::tempdir().unwrap();
        let digest = |name: &str, num_layers, dtype| {
            let folder = parent.path().join(name);
            let request = SynthRequest { shape: SynthShape::Tiny, num_layers: Some(num_layers), dtype, seed: 1 };
            write_folder(&folder, &request).unwrap();
            let config = config_of(&format!("model_name_or_path: {}\n", folder.display()));
            of_model(&ModelSource::find(&config, false).unwrap(), false).unwrap()
        };
        let one = digest("one", 1, DType::F32);
        assert_eq!(digest("same", 1, DType::F32), one);
        assert_ne!(digest("deeper", 2, DType::F32), one);
        assert_ne!(digest("narrower", 1, DType::BF16), one);
    }
}
