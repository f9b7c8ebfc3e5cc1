//! The trained numbers of LoRA: where the factors of every adapted projection lie in one flat run, as weights and as
//! gradients. What they do to a projection is in `adapted.rs`. Adapters are small, so every rank keeps all of them whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use scout_core::{DType, LoraModule, Projection, Shape};
use scout_device::cuda::{CudaDevice, DeviceBuffer};
use scout_device::{Buffer, DeviceError, Tensor};
use scout_kernels::{grouped_matmul, matmul};

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
        LoraWeights::new(layout, |start, shape| flat.tensor(start, shape))
    }

    /// Looks at the factors in a flat run on a GPU, which cannot be written until the result is dropped.
    pub fn on_gpu(layout: Arc<LoraLayout>, flat: &Tensor) -> Result<LoraWeights> {
        LoraWeights::new(layout, |start, shape| flat.rows(start, shape.num_elements())?.reshape(shape))
    }

    fn new(
        layout: Arc<LoraLayout>,
        part: impl Fn(usize, Shape) -> scout_device::Result<Tensor>,
    ) -> Result<LoraWeights> {
        let factors = (0..layout.modules.len())
            .map(|index| {
                let module = &layout.modules[index];
                let a = part(layout.range(index, Factor::A).start, module.a_shape())?;
                let b = part(layout.range(index, Factor::B).start, module.b_shape())?;
                Ok((a, b))
            })
            .collect::<Result<_>>()?;
        Ok(LoraWeights { layout, factors })
    }
}

/// Sums of gradients, laid out like the adapter itself. They live across micro-batches.
pub struct LoraGradients {
    layout: Arc<LoraLayout>,
    sums: Sums,
}

/// In f32, wherever they are.
enum Sums {
    Host(Buffer),
    Gpu(DeviceBuffer),
}

/// The gradient of a factor: the product of two runs of rows, one transposed, summed over all rows or expert by expert.
pub(crate) struct OuterProduct<'a> {
    pub rows: [&'a Tensor; 2],
    pub offsets: Option<&'a [u32]>,
    pub scale: f32,
}

impl LoraGradients {
    pub fn zeros(layout: Arc<LoraLayout>) -> LoraGradients {
        let flat = Buffer::from_f32(vec![0.0; layout.num_elements]);
        LoraGradients { layout, sums: Sums::Host(flat) }
    }

    /// On a GPU, as many elements as the layout has.
    pub fn zeros_on(device: &Arc<CudaDevice>, layout: Arc<LoraLayout>) -> Result<LoraGradients> {
        let flat = device.zeros(DType::F32, [layout.num_elements])?;
        Ok(LoraGradients { layout, sums: Sums::Gpu(flat) })
    }

    pub(crate) fn add(&mut self, module_index: usize, factor: Factor, gradient: OuterProduct) -> Result<()> {
        let range = self.layout.range(module_index, factor);
        let OuterProduct { rows: [a, b], offsets, scale } = gradient;
        match (&mut self.sums, offsets) {
            (Sums::Host(flat), _) => {
                let product = match offsets {
                    None => matmul::tn(a, b)?,
                    Some(offsets) => grouped_matmul::tn(a, b, offsets)?,
                };
                for (sum, value) in flat.f32s_mut()?[range].iter_mut().zip(product.f32s()?.iter()) {
                    *sum += scale * value;
                }
            }
            (Sums::Gpu(flat), None) => matmul::add_tn(flat, range.start, a, b, scale)?,
            (Sums::Gpu(flat), Some(offsets)) => grouped_matmul::add_tn(flat, range.start, [a, b], offsets, scale)?,
        }
        Ok(())
    }

    /// The sums, on the host. Fails for those of a GPU.
    pub fn into_flat(self) -> scout_device::Result<Buffer> {
        match self.sums {
            Sums::Host(flat) => Ok(flat),
            Sums::Gpu(flat) => Err(elsewhere("the host", format!("{:?}", flat.device()))),
        }
    }

    /// The sums, on a GPU. Fails for those of the host.
    pub fn into_gpu(self) -> scout_device::Result<Tensor> {
        match self.sums {
            Sums::Gpu(flat) => Ok(flat.into_tensor()),
            Sums::Host(_) => Err(elsewhere("a GPU", "the host".to_string())),
        }
    }
}

fn elsewhere(expected: &str, found: String) -> DeviceError {
    DeviceError::Place { what: "gradients of an adapter", found, expected: expected.to_string() }
}
