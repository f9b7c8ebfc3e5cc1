//! LoRA: where the factors of every adapted projection lie in one flat run, and what they add to a projection's output
//! and to its backward pass. Adapters are small, so every rank keeps all of them whole for arithmetic.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, I input, O output, R rank, E experts")]

use std::collections::BTreeSet;
use std::sync::Arc;

use scout_core::{LoraModule, Projection};
use scout_device::{Buffer, Tensor};
use scout_kernels::lora::DropoutKey;
use scout_kernels::{grouped_matmul, lora, matmul};

use crate::Result;
use crate::config::ModelConfig;
use crate::pass::Pass;

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
    scale: f32,
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
    layout: Arc<LoraLayout>,
    factors: Vec<(Tensor, Tensor)>,
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

    /// The adapter of a projection, if it carries one.
    pub fn find(&self, layer_index: usize, projection: Projection) -> Option<Adapter<'_>> {
        let index = self.layout.find(layer_index, projection)?;
        let (a, b) = &self.factors[index];
        Some(Adapter { index, module: &self.layout.modules[index], a, b, scale: self.layout.scale })
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

    fn add(&mut self, module_index: usize, factor: Factor, gradient: &Tensor, scale: f32) -> Result<()> {
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

/// One adapted projection during a pass.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    index: usize,
    module: &'a LoraModule,
    a: &'a Tensor,
    b: &'a Tensor,
    scale: f32,
}

/// The narrow product between the two factors, kept for the backward pass.
#[derive(Debug)]
pub struct Narrow(Tensor);

impl Adapter<'_> {
    /// `y[:, column_start..] += scale · (x·Aᵀ)·Bᵀ`.
    pub fn forward_linear(
        &self,
        y: Tensor,
        column_start: usize,
        x_TI: &Tensor,
        pass: &Pass,
    ) -> Result<(Tensor, Narrow)> {
        let narrow_TR = match self.dropped(x_TI, pass)? {
            Some(dropped_TI) => matmul::nt(&dropped_TI, self.a)?,
            None => matmul::nt(x_TI, self.a)?,
        };
        let delta_TO = matmul::nt(&narrow_TR, self.b)?;
        Ok((lora::add_delta(y, column_start, &delta_TO, self.scale)?, Narrow(narrow_TR)))
    }

    /// Adds to the factors' gradients and to `dx`, given the gradient of the projection's output.
    pub fn backward_linear(&self, step: LinearBackward, pass: &Pass, gradients: &mut LoraGradients) -> Result<Tensor> {
        let LinearBackward { dy, column_start, x: x_TI, narrow: Narrow(narrow_TR), dx } = step;
        let is_whole = column_start == 0 && dy.dims()[1] == self.module.output;
        let dy_TO = if is_whole { dy.clone() } else { lora::columns(dy, column_start, self.module.output)? };
        gradients.add(self.index, Factor::B, &matmul::tn(&dy_TO, narrow_TR)?, self.scale)?;
        let dnarrow_TR = matmul::nn(&dy_TO, self.b)?;
        let dropped_TI = self.dropped(x_TI, pass)?;
        let seen_TI = dropped_TI.as_ref().unwrap_or(x_TI);
        gradients.add(self.index, Factor::A, &matmul::tn(&dnarrow_TR, seen_TI)?, self.scale)?;
        let mut through_TI = matmul::nn(&dnarrow_TR, self.a)?;
        if let Some(dropped) = self.dropped(&through_TI, pass)? {
            through_TI = dropped;
        }
        Ok(lora::add_delta(dx, 0, &through_TI, self.scale)?)
    }

    /// The same for stacked experts, whose rows are sorted: `y += scale · (u·B_e)·A_e`.
    pub fn forward_experts(&self, y: Tensor, u_TI: &Tensor, offsets: &[u32]) -> Result<(Tensor, Narrow)> {
        let narrow_TR = grouped_matmul::nn(u_TI, self.b, offsets)?;
        let delta_TO = grouped_matmul::nn(&narrow_TR, self.a, offsets)?;
        Ok((lora::add_delta(y, 0, &delta_TO, self.scale)?, Narrow(narrow_TR)))
    }

    pub fn backward_experts(&self, step: ExpertsBackward, gradients: &mut LoraGradients) -> Result<Tensor> {
        let ExpertsBackward { dy: dy_TO, u: u_TI, narrow: Narrow(narrow_TR), offsets, du } = step;
        gradients.add(self.index, Factor::A, &grouped_matmul::tn(narrow_TR, dy_TO, offsets)?, self.scale)?;
        let dnarrow_TR = grouped_matmul::nt(dy_TO, self.a, offsets)?;
        gradients.add(self.index, Factor::B, &grouped_matmul::tn(u_TI, &dnarrow_TR, offsets)?, self.scale)?;
        let through_TI = grouped_matmul::nt(&dnarrow_TR, self.b, offsets)?;
        Ok(lora::add_delta(du, 0, &through_TI, self.scale)?)
    }

    /// `x` with this adapter's dropout, or `None` where nothing is dropped. The mask is a pure function of seed, step,
    /// module, sample and position, so the backward pass makes it again instead of keeping it.
    fn dropped(&self, x_TI: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        let Some(dropout) = pass.dropout else { return Ok(None) };
        // Named by place, not by position in the list of targets: other targets change nothing here.
        let module = (self.module.layer_index * Projection::ALL.len() + self.module.projection as usize) as u64;
        let key = DropoutKey { seed: dropout.seed, step: dropout.step, module };
        Ok(Some(lora::dropout(x_TI, &pass.batch.token_keys, key, dropout.probability)?))
    }
}

/// What the backward pass of an adapted linear projection starts from.
pub struct LinearBackward<'a> {
    pub dy: &'a Tensor,
    pub column_start: usize,
    pub x: &'a Tensor,
    pub narrow: &'a Narrow,
    pub dx: Tensor,
}

pub struct ExpertsBackward<'a> {
    pub dy: &'a Tensor,
    pub u: &'a Tensor,
    pub narrow: &'a Narrow,
    pub offsets: &'a [u32],
    pub du: Tensor,
}

/// A frozen linear projection with its adapter, if it has one.
pub struct Linear<'a> {
    pub weight: Tensor,
    pub adapter: Option<Adapter<'a>>,
}

impl Linear<'_> {
    pub fn forward(&self, x_TI: &Tensor, pass: &Pass) -> Result<(Tensor, Option<Narrow>)> {
        let y_TO = matmul::nt(x_TI, &self.weight)?;
        match &self.adapter {
            None => Ok((y_TO, None)),
            Some(adapter) => {
                let (y_TO, narrow) = adapter.forward_linear(y_TO, 0, x_TI, pass)?;
                Ok((y_TO, Some(narrow)))
            }
        }
    }

    /// The gradient of the input; the factors' gradients are added to `gradients`.
    pub fn backward(
        &self,
        dy_TO: &Tensor,
        x_TI: &Tensor,
        narrow: Option<&Narrow>,
        pass: &Pass,
        gradients: &mut LoraGradients,
    ) -> Result<Tensor> {
        let dx = matmul::nn(dy_TO, &self.weight)?;
        match (&self.adapter, narrow) {
            (Some(adapter), Some(narrow)) => {
                let step = LinearBackward { dy: dy_TO, column_start: 0, x: x_TI, narrow, dx };
                adapter.backward_linear(step, pass, gradients)
            }
            _ => Ok(dx),
        }
    }
}
