//! The trained numbers of LoRA: where the factors of every adapted projection lie in one flat run, as weights and as
//! gradients. What they do to a projection is in `adapted.rs`. Adapters are small, so every rank keeps all of them whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use scout_core::{LoraModule, Projection};
use scout_device::{Buffer, Tensor};

use crate::Result;
use crate::config::ModelConfig;

#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    pub rank: usize,
    pub alpha: f64,
    pub use_rslora: bool,
    pub projections: BTreeSet<Projection>,
}

impl LoraSettings {
    /// What the product of the factors is multiplied with.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (if self.use_rslora { self.alpha / rank.sqrt() } else { self.alpha / rank }) as f32
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factor {
    A,
    B,
}

/// All adapted projections, layer by layer, and where their factors lie in the flat run of trained numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraLayout {
    // Invariant: `starts[i]` is where factor A of module i begins; B follows A, and module i + 1 follows B.
    modules: Vec<LoraModule>,
    starts: Vec<usize>,
    num_elements: usize,
    pub(crate) scale: f32,
}

impl LoraLayout {
    pub fn new(config: &ModelConfig, settings: &LoraSettings) -> LoraLayout {
        let modules = modules(config, settings);
        let mut num_elements = 0;
        let mut starts = Vec::with_capacity(modules.len());
        for module in &modules {
            starts.push(num_elements);
            num_elements += module.a_shape().num_elements() + module.b_shape().num_elements();
        }
        LoraLayout { modules, starts, num_elements, scale: settings.scale() }
    }

    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    pub fn num_elements(&self) -> usize {
        self.num_elements
    }

    pub fn find(&self, layer_index: usize, projection: Projection) -> Option<usize> {
        // Modules are sorted by layer and then by projection.
        self.modules.binary_search_by_key(&(layer_index, projection), |m| (m.layer_index, m.projection)).ok()
    }

    pub fn range(&self, module_index: usize, factor: Factor) -> std::ops::Range<usize> {
        let module = &self.modules[module_index];
        let (start, a_len) = (self.starts[module_index], module.a_shape().num_elements());
        match factor {
            Factor::A => start..start + a_len,
            Factor::B => start + a_len..start + a_len + module.b_shape().num_elements(),
        }
    }
}

/// The modules that `settings` adapts, sorted by layer and projection.
pub fn modules(config: &ModelConfig, settings: &LoraSettings) -> Vec<LoraModule> {
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let q_width = config.num_heads * config.head_dim;
    let kv_width = config.num_kv_heads * config.head_dim;
    let module = |layer_index, projection: Projection| {
        let (input, output) = match projection {
            Projection::Q => (hidden, q_width),
            Projection::K | Projection::V => (hidden, kv_width),
            Projection::O => (q_width, hidden),
            Projection::SharedGate | Projection::SharedUp => (hidden, width),
            Projection::ExpertsGateUp => (hidden, 2 * width),
            Projection::SharedDown | Projection::ExpertsDown => (width, hidden),
        };
        let num_experts = projection.is_routed().then_some(config.num_experts);
        LoraModule { layer_index, projection, input, output, num_experts, rank: settings.rank }
    };
    (0..config.num_layers)
        .flat_map(|layer_index| settings.projections.iter().map(move |&projection| (layer_index, projection)))
        .map(|(layer_index, projection)| module(layer_index, projection))
        .collect()
}

/// The adapter's numbers as tensors, for one forward and backward pass.
#[derive(Debug)]
pub struct LoraWeights {
    pub(crate) layout: Arc<LoraLayout>,
    /// A and B of each module.
    pub(crate) factors: Vec<(Tensor, Tensor)>,
}

impl LoraWeights {
    /// Reads the factors out of the flat run that the optimizer writes.
    pub fn from_flat(layout: Arc<LoraLayout>, flat: &Buffer) -> Result<LoraWeights> {
        let factors = (0..layout.modules.len())
            .map(|index| {
                let module = &layout.modules[index];
                let a = flat.tensor(layout.range(index, Factor::A).start, module.a_shape())?;
                let b = flat.tensor(layout.range(index, Factor::B).start, module.b_shape())?;
                Ok((a, b))
            })
            .collect::<Result<_>>()?;
        Ok(LoraWeights { layout, factors })
    }
}

/// Sums of gradients, laid out like the adapter itself. They live across micro-batches.
#[derive(Debug)]
pub struct LoraGradients {
    layout: Arc<LoraLayout>,
    flat: Buffer,
}

impl LoraGradients {
    pub fn zeros(layout: Arc<LoraLayout>) -> LoraGradients {
        let flat = Buffer::from_f32(vec![0.0; layout.num_elements]);
        LoraGradients { layout, flat }
    }

    pub(crate) fn add(&mut self, module_index: usize, factor: Factor, gradient: &Tensor, scale: f32) -> Result<()> {
        let range = self.layout.range(module_index, factor);
        let sums = &mut self.flat.f32s_mut()?[range];
        for (sum, value) in sums.iter_mut().zip(gradient.f32s()?.iter()) {
            *sum += scale * value;
        }
        Ok(())
    }

    pub fn into_flat(self) -> Buffer {
        self.flat
    }
}
