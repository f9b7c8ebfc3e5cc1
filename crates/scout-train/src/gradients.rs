//! The gradients of an update: where a backward pass leaves them, and their sum over all ranks with its norm. Moves no
//! parameter.

use std::collections::BTreeMap;

use scout_comm::Communicator;
use scout_core::{LoraModule, Projection, UnitId};
use scout_device::Buffer;
use scout_kernels::norms;
use scout_model::lora::Factor;
use scout_model::{Block, Gradients, LoraLayout};

use crate::adapter::{AdapterGradient, AdapterState};
use crate::adapter_sums::AdapterSums;
use crate::error::Result;
use crate::reducer::Reducer;
use crate::sums::each_summed_over_ranks;

/// What the micro-batches of an update add up to. A run trains adapters or weights; the other of the two stays empty.
pub struct StepGradients<'a> {
    adapter: AdapterSums,
    weights: Reducer<'a>,
    /// Those to come, the one under way included.
    num_passes: usize,
}

impl<'a> StepGradients<'a> {
    /// Of nothing yet, for so many micro-batches.
    pub fn new(adapter: AdapterSums, weights: Reducer<'a>, num_passes: usize) -> StepGradients<'a> {
        StepGradients { adapter, weights, num_passes }
    }

    /// Where a backward pass leaves its gradients.
    pub fn sink(&mut self) -> Gradients<'_> {
        Gradients { lora: &mut self.adapter.own, weights: &mut self.weights }
    }

    /// Gives those of a block to all ranks, when its backward pass is done: of weights each time, for a whole model's would
    /// not fit; of an adapter after the last micro-batch, when they are complete.
    pub fn send(&mut self, block: &Block) -> Result<()> {
        self.weights.send(&block.backward_units())?;
        if self.num_passes == 1 {
            // Blocks are walked back, so all that follows in the run has been added as well.
            self.adapter.send(first_element(self.adapter.own.layout(), block))?;
        }
        Ok(())
    }

    /// The same for units beside the blocks.
    pub fn send_units(&mut self, units: &[UnitId]) -> Result<()> {
        self.weights.send(units)
    }

    /// The end of a micro-batch.
    pub fn end_pass(&mut self) -> Result<()> {
        self.num_passes = self.num_passes.saturating_sub(1);
        self.weights.drain()
    }
}

/// Where the trained numbers of a block begin in an adapter's run. Blocks have theirs one behind the other.
fn first_element(layout: &LoraLayout, block: &Block) -> usize {
    let first = match block {
        Block::Attention(block) => (block.layer_index, Projection::Q),
        Block::Experts(block) => (block.layer_index, Projection::SharedGate),
    };
    let is_before = |module: &LoraModule| (module.layer_index, module.projection) < first;
    let index = layout.modules().partition_point(is_before);
    if index == layout.modules().len() { layout.num_elements() } else { layout.range(index, Factor::A).start }
}

/// This rank's parts of the gradient, summed over all ranks.
#[derive(Debug)]
pub struct ReducedGradient {
    pub adapter_part: AdapterGradient,
    /// Of each unit of which something is trained.
    pub weight_parts: BTreeMap<UnitId, Buffer>,
    /// L2 norm of the whole gradient, before clipping.
    pub norm: f64,
}

/// Sums the gradients of all ranks and leaves each with its parts. Returns at the same point on every rank.
pub fn reduce(gradients: StepGradients, adapter: &AdapterState, comm: &dyn Communicator) -> Result<ReducedGradient> {
    let adapter_part = adapter.reduce(gradients.adapter, comm)?;
    let weight_parts = gradients.weights.into_sums()?;
    // Unit by unit and within it rank by rank, however the weights are held.
    let mut squares = vec![adapter_part.sum_of_squares()?];
    for part in weight_parts.values() {
        squares.push(norms::sum_of_squares(part.f32s()?));
    }
    let norm = each_summed_over_ranks(comm, &squares)?.into_iter().sum::<f64>().sqrt();
    Ok(ReducedGradient { adapter_part, weight_parts, norm })
}

#[cfg(test)]
mod tests {
    use super::*;
    use scout_model::units::{NameStyle, UnitPlan};
    use scout_model::{LoraSettings, Model, ModelConfig};

    /// The blocks whose pass adds to a module.
    fn has(block: &Block, module: &LoraModule) -> bool {
        use Projection::{K, O, Q, V};
        let is_of_attention = matches!(module.projection, Q | K | V | O);
        match block {
            Block::Attention(block) => block.layer_index == module.layer_index && is_of_attention,
            Block::Experts(block) => block.layer_index == module.layer_index && !is_of_attention,
        }
    }

    #[test]
    fn what_a_block_and_those_behind_it_train_lies_from_its_first_element_on() {
        use Projection::{O, SharedDown};
        let config = ModelConfig {
            num_layers: 3,
            hidden_size: 64,
            intermediate_size: 96,
            rope_layers: ModelConfig::scout().rope_layers[..3].to_vec(),
            ..ModelConfig::scout()
        };
        let model = Model::new(&config, &UnitPlan::new(&config, NameStyle::Text)).unwrap();
        for projections in [&Projection::ALL[..], &[O], &[SharedDown], &[O, SharedDown], &[]] {
            let projections = projections.iter().copied().collect();
            let settings = LoraSettings { rank: 4, alpha: 8.0, use_rslora: false, projections };
            let layout = LoraLayout::new(&config, &settings);
            for (index, block) in model.blocks.iter().enumerate() {
                let first = first_element(&layout, block);
                let walked = &model.blocks[index..];
                for (module_index, module) in layout.modules().iter().enumerate() {
                    let is_walked = walked.iter().any(|block| has(block, module));
                    for range in [Factor::A, Factor::B].map(|factor| layout.range(module_index, factor)) {
                        assert_eq!(range.start >= first, is_walked, "{module:?} from {first} of block {index}");
                        assert!(is_walked || range.end <= first, "{module:?} from {first} of block {index}");
                    }
                }
            }
            assert_eq!(first_element(&layout, &model.blocks[0]), 0);
        }
    }
}
