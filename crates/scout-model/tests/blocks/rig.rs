//! A small model with values that look random, and passes through its parts as a trainer makes them. Checks only that
//! units are taken in the order a block promises.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use scout_core::{Projection, UnitId};
use scout_device::{Buffer, Tensor, UnitSource, UnitWeights};
use scout_model::config::{RopeBands, RopeConfig, Temperature};
use scout_model::{
    Batch, Block, Document, Gradients, Keep, KeptRows, LoraGradients, LoraLayout, LoraSettings, LoraWeights, Model,
    ModelConfig, NameStyle, NoTrace, Pass, Target, UnitPlan, WeightGradients,
};

/// Widths of which none equals another, one layer of each kind, and borders that fall inside short documents.
pub fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 48,
        hidden_size: 22,
        intermediate_size: 14,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 6,
        num_experts: 3,
        rope_layers: vec![true, false],
        attention_chunk_size: 5,
        temperature: Some(Temperature { attn_scale: 0.5, floor_scale: 3.0 }),
        rope: RopeConfig {
            theta: 50.0,
            bands: Some(RopeBands {
                factor: 4.0,
                low_freq_factor: 1.0,
                high_freq_factor: 1.0,
                original_max_position: 20.0,
            }),
        },
        ..ModelConfig::scout()
    }
}

/// Adapters of rank 3 on `projections`.
pub fn lora(projections: &[Projection]) -> LoraSettings {
    let projections: BTreeSet<Projection> = projections.iter().copied().collect();
    LoraSettings { rank: 3, alpha: 5.0, use_rslora: false, projections }
}

pub struct Rig {
    pub config: ModelConfig,
    pub units: UnitPlan,
    pub model: Model,
    pub layout: Arc<LoraLayout>,
    pub scale: f32,
    /// The adapter's factors one behind the other.
    pub flat: Vec<f32>,
    pub lora: LoraWeights,
    /// Weights of each unit, flat.
    pub weights: Vec<Tensor>,
}

impl Rig {
    pub fn new(config: ModelConfig, settings: &LoraSettings) -> Rig {
        let layout = LoraLayout::new(&config, settings);
        // Factors that carry about as much as the matrix they sit on, so that no mistake in them drowns.
        let flat = values(11, layout.num_elements(), 0.5);
        Rig::with_factors(config, settings, flat)
    }

    pub fn with_factors(config: ModelConfig, settings: &LoraSettings, flat: Vec<f32>) -> Rig {
        let layout = Arc::new(LoraLayout::new(&config, settings));
        let units = UnitPlan::new(&config, NameStyle::Text);
        let model = Model::new(&config, &units).unwrap();
        let lora = LoraWeights::from_flat(layout.clone(), &Buffer::from_f32(flat.clone())).unwrap();
        let weights = (0..units.units().len()).map(|index| unit_weights(&units, UnitId(index))).collect();
        Rig { config, units, model, layout, scale: settings.scale(), flat, lora, weights }
    }

    /// Tokens of each document follow from its sample id, so that a document is the same in every batch.
    pub fn batch(&self, documents: &[(u64, usize)]) -> Batch {
        let vocab_size = self.config.vocab_size as u64;
        let run: Vec<Document> = documents
            .iter()
            .map(|&(sample_id, len)| {
                let tokens = (0..len as u64).map(|at| (hash(sample_id, at) % vocab_size) as u32).collect();
                Document { sample_id, tokens }
            })
            .collect();
        let mut targets = Vec::new();
        let mut start = 0;
        for document in &run {
            // Every second position predicts the one behind it.
            for at in (1..document.tokens.len()).step_by(2) {
                let weight = 0.25 + 0.5 * (at % 3) as f32;
                targets.push(Target { row: (start + at - 1) as u32, token: document.tokens[at], weight });
            }
            start += document.tokens.len();
        }
        Batch::new(&run, &targets, self.config.attention_chunk_size).unwrap()
    }

    /// A pass that keeps everything and drops nothing.
    pub fn pass<'a>(&'a self, batch: &'a Batch) -> Pass<'a> {
        Pass {
            batch,
            lora: &self.lora,
            dropout: None,
            keep: Keep::Everything.into(),
            routes: None,
            exchange: None,
            kept_rows: KeptRows::at_most(0),
            evenness: Cell::default(),
        }
    }

    /// An input or an upstream gradient for `batch`.
    pub fn activations(&self, seed: u64, batch: &Batch) -> Tensor {
        let dims = [batch.num_tokens(), self.config.hidden_size];
        Tensor::from_f32(values(seed, dims[0] * dims[1], 1.0), dims).unwrap()
    }

    pub fn block(&self, index: usize, x: &Tensor, dy: &Tensor, pass: &Pass) -> BlockOutcome {
        self.block_with_two_passes(index, x, dy, (pass, pass))
    }

    /// Forward with one pass, backward with another: what a backward pass must not look at may differ between them.
    pub fn block_with_two_passes(
        &self,
        index: usize,
        x: &Tensor,
        dy: &Tensor,
        (forward, backward): (&Pass, &Pass),
    ) -> BlockOutcome {
        let block = &self.model.blocks[index];
        let mut source = self.source(block.forward_units());
        let (y, saved) = block.forward(&mut source, x.clone(), forward, &mut NoTrace).unwrap();
        source.expect_all_taken();
        let mut lora = LoraGradients::zeros(self.layout.clone());
        let mut collected = self.collected();
        let mut gradients = Gradients { lora: &mut lora, weights: &mut collected };
        let mut source = self.source(block.backward_units());
        let dx = block.backward(&mut source, dy.clone(), saved, backward, &mut gradients).unwrap();
        source.expect_all_taken();
        let (y, dx) = (y.to_f32_vec().unwrap(), dx.to_f32_vec().unwrap());
        BlockOutcome { y, dx, gradients: floats(lora), weights: collected.found }
    }

    /// Wants the gradient of every weight.
    pub fn collected(&self) -> Collected<'_> {
        Collected { units: &self.units, wants: &|_, _| true, found: BTreeMap::new() }
    }

    /// From tokens to loss and back again.
    pub fn whole(&self, pass: &Pass) -> WholeOutcome {
        let embedding = &self.model.embedding;
        let mut x = embedding.forward(&mut self.source(vec![embedding.unit]), pass.batch, &mut NoTrace).unwrap();
        let mut tape = Vec::new();
        for block in &self.model.blocks {
            let (y, saved) = block.forward(&mut self.source(block.forward_units()), x, pass, &mut NoTrace).unwrap();
            tape.push(saved);
            x = y;
        }
        let head = &self.model.head;
        let mut source = self.source(vec![head.unit]);
        let (mut lora, mut collected) = (LoraGradients::zeros(self.layout.clone()), self.collected());
        let mut gradients = Gradients { lora: &mut lora, weights: &mut collected };
        let (loss, mut dx) = head.loss_and_gradient(&mut source, &x, pass.batch, &mut gradients, &mut NoTrace).unwrap();
        for (block, saved) in self.model.blocks.iter().zip(tape).rev() {
            dx = block.backward(&mut self.source(block.backward_units()), dx, saved, pass, &mut gradients).unwrap();
        }
        embedding.backward(&dx, pass.batch, &mut gradients).unwrap();
        WholeOutcome {
            hidden: x.to_f32_vec().unwrap(),
            loss: loss.weighted_sum().unwrap(),
            token_loss: loss.token_loss.to_f32_vec().unwrap(),
            dx: dx.to_f32_vec().unwrap(),
            gradients: floats(lora),
            weights: collected.found,
        }
    }

    pub fn source(&self, units: Vec<UnitId>) -> InOrder<'_> {
        InOrder { rig: self, next: units.into() }
    }

    /// Index of the block of `layer_index` that attends, or of the one that routes.
    pub fn block_index(&self, layer_index: usize, attends: bool) -> usize {
        let of_layer = |block: &Block| match block {
            Block::Attention(block) => attends && block.layer_index == layer_index,
            Block::Experts(block) => !attends && block.layer_index == layer_index,
        };
        self.model.blocks.iter().position(of_layer).unwrap()
    }
}

pub struct BlockOutcome {
    pub y: Vec<f32>,
    pub dx: Vec<f32>,
    pub gradients: Vec<f32>,
    pub weights: ByParam,
}

/// Gradients of weights, by unit and place in it.
pub type ByParam = BTreeMap<(UnitId, usize), Vec<f32>>;

/// Keeps the gradients of the weights it wants, and lets no other be made.
pub struct Collected<'a> {
    pub units: &'a UnitPlan,
    pub wants: &'a dyn Fn(UnitId, usize) -> bool,
    pub found: ByParam,
}

impl WeightGradients for Collected<'_> {
    fn wants(&self, unit: UnitId, param: usize) -> bool {
        (self.wants)(unit, param)
    }

    fn add(&mut self, unit: UnitId, param: usize, gradient: &Tensor) -> scout_device::Result<()> {
        assert!((self.wants)(unit, param), "parameter {param} of {unit:?} is frozen");
        assert_eq!(gradient.shape(), &self.units.unit(unit).params[param].shape, "parameter {param} of {unit:?}");
        let twice = self.found.insert((unit, param), gradient.to_f32_vec()?);
        assert!(twice.is_none(), "parameter {param} of {unit:?} got two gradients in one pass");
        Ok(())
    }
}

pub struct WholeOutcome {
    pub hidden: Vec<f32>,
    pub loss: f64,
    pub token_loss: Vec<f32>,
    /// Of the embedding's output.
    pub dx: Vec<f32>,
    pub gradients: Vec<f32>,
    pub weights: ByParam,
}

/// Hands out the units of one block, and none in another order.
pub struct InOrder<'a> {
    rig: &'a Rig,
    next: VecDeque<UnitId>,
}

impl InOrder<'_> {
    fn expect_all_taken(&self) {
        assert!(self.next.is_empty(), "units {:?} were promised and not taken", self.next);
    }
}

impl UnitSource for InOrder<'_> {
    fn take(&mut self, unit: UnitId) -> scout_device::Result<UnitWeights> {
        assert_eq!(self.next.pop_front(), Some(unit), "units are taken in the promised order");
        UnitWeights::new(self.rig.units.unit(unit).clone(), self.rig.weights[unit.0].clone(), None)
    }
}

fn unit_weights(units: &UnitPlan, id: UnitId) -> Tensor {
    let unit = units.unit(id);
    let mut flat = Vec::with_capacity(unit.num_elements());
    for (at, param) in unit.params.iter().enumerate() {
        let seed = 100 + 10 * id.0 as u64 + at as u64;
        let dims = param.shape.dims();
        let fan_in = if dims.len() == 3 { dims[1] } else { dims[dims.len() - 1] };
        let is_norm = param.name.contains("norm");
        let width = if is_norm { 0.5 } else { 2.0 / (fan_in as f32).sqrt() };
        let middle = if is_norm { 1.0 } else { 0.0 };
        flat.extend(values(seed, param.num_elements(), width).into_iter().map(|value| middle + value));
    }
    let num_elements = flat.len();
    Tensor::from_f32(flat, [num_elements]).unwrap()
}

fn floats(gradients: LoraGradients) -> Vec<f32> {
    gradients.into_flat().unwrap().f32s().unwrap().to_vec()
}

/// Evenly spread between `-width` and `width`, the same in every run.
pub fn values(seed: u64, len: usize, width: f32) -> Vec<f32> {
    (0..len as u64).map(|at| width * ((hash(seed, at) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)).collect()
}

fn hash(seed: u64, at: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95) ^ at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        z = (z ^ (z >> 29)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    }
    z ^ (z >> 32)
}

pub fn bits_by_param(weights: &ByParam) -> BTreeMap<(UnitId, usize), Vec<u32>> {
    weights.iter().map(|(&place, gradient)| (place, bits(gradient))).collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Each element within `tolerance` of the largest expected magnitude.
pub fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    // Where everything is rounding noise around 0, only the noise of the other quantities can be the measure.
    let largest = expected.iter().fold(1e-2f64, |largest, value| largest.max(value.abs()));
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= tolerance * largest, "{what}: element {at} is {found}, expected {expected} (of {largest})");
    }
}

pub fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}
