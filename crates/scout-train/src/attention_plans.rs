//! Attention's plans, made before the first step: cuDNN compiles kernels for each size of batch that it meets, which takes
//! part of a second and would otherwise fall into the first steps. Knows batches by the lengths of their rows alone.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use scout_config::RunConfig;
use scout_core::ByteCount;
use scout_device::Device;
use scout_device::cuda::dnn::{self, AttentionShape, SumOrder};
use scout_kernels::attention;
use scout_model::{Batch, ModelConfig};

use crate::error::Result;
use crate::machine::Machine;
use crate::plan::RunPlan;
use crate::prepare::{RunData, evaluation_interval};

/// Updates that are looked at. Sizes that come later and are like none of these are prepared when they come.
const MOST_UPDATES: usize = 256;

/// Sizes of batches that a run will meet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Number of documents and tokens of the longest, with the most tokens of a batch like that.
    most_tokens: BTreeMap<(usize, usize), usize>,
}

impl Sizes {
    /// Of the first updates of a run on one rank, and of the rows that it is evaluated on.
    pub fn of_run(config: &RunConfig, plan: &RunPlan, data: &RunData, rank: usize) -> Sizes {
        let mut sizes = Sizes::default();
        let chunk_size = plan.source.config.attention_chunk_size;
        let steps = plan.steps.map_or(0, |steps| steps.total_steps).min(MOST_UPDATES);
        for step in 0..steps {
            for rows in &data.update_plan(step).ranks[rank] {
                sizes.add(rows.iter().map(|row| data.examples.length(row.row)), chunk_size);
            }
        }
        let updates_per_epoch = plan.steps.map_or(1, |steps| steps.updates_per_epoch);
        if evaluation_interval(config, updates_per_epoch).is_some() {
            for rows in data.scored_runs(config.train.per_device_train_batch_size) {
                sizes.add(rows.iter().map(|row| data.held_out.length(*row)), chunk_size);
            }
        }
        sizes
    }

    pub fn of_batches<'a>(batches: impl IntoIterator<Item = &'a Batch>, chunk_size: usize) -> Sizes {
        let mut sizes = Sizes::default();
        for batch in batches {
            sizes.add(batch.documents.borders().windows(2).map(|ends| (ends[1] - ends[0]) as usize), chunk_size);
        }
        sizes
    }

    /// A batch is met twice: whole documents on some layers, and on the others what chunks make of them.
    fn add(&mut self, lengths: impl IntoIterator<Item = usize>, chunk_size: usize) {
        let (mut documents, mut chunks, mut longest, mut tokens) = (0, 0, 0, 0);
        for length in lengths.into_iter().filter(|length| *length > 0) {
            documents += 1;
            chunks += length.div_ceil(chunk_size);
            longest = longest.max(length);
            tokens += length;
        }
        for size in [(documents, longest), (chunks, longest.min(chunk_size))] {
            let most = self.most_tokens.entry(size).or_insert(0);
            *most = tokens.max(*most);
        }
    }

    /// The shapes that plans are kept by, each with the most tokens of a batch of that shape.
    fn shapes(&self, config: &ModelConfig, order: SumOrder) -> Result<HashMap<AttentionShape, usize>> {
        let ModelConfig { num_heads: query, num_kv_heads: kv, head_dim: size, .. } = *config;
        let mut shapes = HashMap::new();
        for (&(documents, longest), &tokens) in self.most_tokens.iter().filter(|(_, tokens)| **tokens > 0) {
            let shape = AttentionShape::new(dnn::Heads { query, kv, size }, documents, longest, order)?;
            let most = shapes.entry(shape).or_insert(0);
            *most = tokens.max(*most);
        }
        Ok(shapes)
    }
}

/// Makes the plans for those sizes; returns what there is to say to people. Nothing where attention cannot be cuDNN's, and then
/// nobody is asked for sizes either.
pub fn prepare(machine: &Machine, config: &ModelConfig, sizes: impl FnOnce() -> Sizes) -> Result<Option<String>> {
    let Device::Cuda(gpu) = &machine.device else { return Ok(None) };
    if !attention::suits_cudnn(machine.compute.dtype(), config.head_dim) {
        return Ok(None);
    }
    let attention = match gpu.attention() {
        Ok(attention) => attention,
        Err(why) => return Ok(Some(format!("attention by our own kernels, which are slower than cuDNN's: {why}"))),
    };
    let begun = Instant::now();
    let (mut num_shapes, mut scratch) = (0, ByteCount(0));
    for (shape, num_tokens) in sizes().shapes(config, gpu.sum_order())? {
        scratch = scratch.max(attention.prepare_forward(&shape)?);
        // The others have a backward pass of our own.
        if dnn::backward_scratch(&shape, num_tokens) <= dnn::most_scratch(shape.sum_order()) {
            scratch = scratch.max(attention.prepare_backward(&shape, num_tokens)?);
        }
        num_shapes += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let sizes = format!("{num_shapes} sizes of batches, which need at most {scratch} of scratch memory");
    Ok(Some(format!("made attention's plans in {seconds:.1} s: for {sizes}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(batches: &[&[usize]]) -> Sizes {
        let mut sizes = Sizes::default();
        for lengths in batches {
            sizes.add(lengths.iter().copied(), 8192);
        }
        sizes
    }

    #[test]
    fn batches_of_like_size_share_a_plan_and_chunks_have_their_own() {
        let config = ModelConfig::scout();
        let found = |batches: &[&[usize]]| {
            let shapes = sizes(batches).shapes(&config, SumOrder::Any).unwrap();
            let mut found: Vec<_> =
                shapes.iter().map(|(shape, tokens)| (shape.num_slots(), shape.max_length(), *tokens)).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found(&[&[300, 40, 0, 500], &[2, 512, 7]]), [(4, 512, 840)]);
        assert_eq!(found(&[&[100], &[1000, 1000]]), [(1, 128, 100), (2, 1024, 2000)]);
        // A document of 20,000 tokens is three chunks where positions are rotated.
        assert_eq!(found(&[&[20_000]]), [(1, 32_768, 20_000), (4, 8192, 20_000)]);
        assert_eq!(found(&[&[], &[0]]), []);
    }

    #[test]
    fn a_batch_has_the_size_of_its_documents() {
        use scout_model::Document;
        let document = |len| Document { sample_id: 1, tokens: vec![3; len] };
        let batch = Batch::new(&[document(5), document(9)], &[], 4).unwrap();
        let found = Sizes::of_batches([&batch], 4);
        assert_eq!(found.most_tokens, BTreeMap::from([((2, 9), 14), ((5, 4), 14)]));
        // Those that attention itself makes of it.
        assert_eq!(batch.chunks.borders().len() - 1, 5);
    }
}
