//! The trained numbers of LoRA: where the factors of every adapted projection lie in one flat run, as weights and as
//! gradients. What they do to a projection is in `adapted.rs` and `adapted_experts.rs`. Adapters are small, so every rank
//! keeps all of them whole.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use scout_core::{DType, LoraModule, Projection, Shape};
use scout_device::cuda::{CudaDevice, DeviceBuffer};
use scout_device::{Buffer, DeviceError, Purpose, Tensor};
use scout_kernels::matmul::Columns;
use scout_kernels::{grouped_matmul, lora, matmul};

use crate::config::ModelConfig;
use crate::error::Result;

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

/// What a projection reads. Those of a layer that read the same are neighbours in the list of modules. Their factors A
/// lie one under the other, and so do their factors B: what reads the input, or the gradients of the outputs, does so
/// once for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// The normed input of attention: q, k and v.
    Attention,
    /// What attention found: o.
    Context,
    /// The normed input of the shared expert: gate and up.
    Shared,
    SharedHidden,
    Routed,
    RoutedHidden,
}

impl Input {
    fn of(projection: Projection) -> Input {
        match projection {
            Projection::Q | Projection::K | Projection::V => Input::Attention,
            Projection::O => Input::Context,
            Projection::SharedGate | Projection::SharedUp => Input::Shared,
            Projection::SharedDown => Input::SharedHidden,
            Projection::ExpertsGateUp => Input::Routed,
            Projection::ExpertsDown => Input::RoutedHidden,
        }
    }
}

/// All adapted projections, layer by layer, and where their factors lie in the flat run of trained numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraLayout {
    modules: Vec<LoraModule>,
    // Invariant: `starts[i]` is where the factors A and B of module i begin. Of modules that read the same input come first
    // all factors A, then all factors B.
    starts: Vec<[usize; 2]>,
    num_elements: usize,
    pub(crate) scale: f32,
}

impl LoraLayout {
    pub fn new(config: &ModelConfig, settings: &LoraSettings) -> LoraLayout {
        let modules = modules(config, settings);
        let mut num_elements = 0;
        let mut next = |shape: Shape| {
            let start = num_elements;
            num_elements += shape.num_elements();
            start
        };
        let mut starts = Vec::with_capacity(modules.len());
        for stack in modules.chunk_by(|a, b| place_of_input(a) == place_of_input(b)) {
            let of_a: Vec<usize> = stack.iter().map(|module| next(module.a_shape())).collect();
            starts.extend(of_a.into_iter().zip(stack).map(|(a, module)| [a, next(module.b_shape())]));
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

    /// The modules that read this input.
    pub(crate) fn stack(&self, layer_index: usize, input: Input) -> Range<usize> {
        let place = (layer_index, input);
        let start = self.modules.partition_point(|module| place_of_input(module) < place);
        start..start + self.modules[start..].partition_point(|module| place_of_input(module) == place)
    }

    pub fn range(&self, module_index: usize, factor: Factor) -> Range<usize> {
        let (module, [a, b]) = (&self.modules[module_index], self.starts[module_index]);
        match factor {
            Factor::A => a..a + module.a_shape().num_elements(),
            Factor::B => b..b + module.b_shape().num_elements(),
        }
    }

    /// One factor of all modules that read the same input; there is at least one.
    pub(crate) fn range_of_stack(&self, stack: &Range<usize>, factor: Factor) -> Range<usize> {
        self.range(stack.start, factor).start..self.range(stack.end - 1, factor).end
    }
}

fn place_of_input(module: &LoraModule) -> (usize, Input) {
    (module.layer_index, Input::of(module.projection))
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
    flat: Tensor,
}

impl LoraWeights {
    /// Reads the factors out of the flat run that the optimizer writes.
    pub fn from_flat(layout: Arc<LoraLayout>, flat: &Buffer) -> Result<LoraWeights> {
        let flat = flat.tensor(0, [layout.num_elements].into())?;
        Ok(LoraWeights { layout, flat })
    }

    /// Looks at the factors in a flat run on a GPU, which cannot be written until the result is dropped.
    pub fn on_gpu(layout: Arc<LoraLayout>, flat: &Tensor) -> Result<LoraWeights> {
        let flat = flat.rows(0, layout.num_elements)?;
        Ok(LoraWeights { layout, flat })
    }

    pub(crate) fn factor(&self, module_index: usize, factor: Factor) -> Result<Tensor> {
        let module = &self.layout.modules[module_index];
        let shape = match factor {
            Factor::A => module.a_shape(),
            Factor::B => module.b_shape(),
        };
        self.part(self.layout.range(module_index, factor), shape)
    }

    /// The factors A of modules that read the same input, one under the other; there is at least one.
    pub(crate) fn stacked_a(&self, stack: &Range<usize>) -> Result<Tensor> {
        let LoraModule { rank, input, .. } = self.layout.modules[stack.start];
        self.part(self.layout.range_of_stack(stack, Factor::A), [stack.len() * rank, input].into())
    }

    /// The same for factors B.
    pub(crate) fn stacked_b(&self, stack: &Range<usize>) -> Result<Tensor> {
        let modules = &self.layout.modules[stack.clone()];
        let num_rows = modules.iter().map(|module| module.output).sum();
        self.part(self.layout.range_of_stack(stack, Factor::B), [num_rows, modules[0].rank].into())
    }

    fn part(&self, range: Range<usize>, shape: Shape) -> Result<Tensor> {
        Ok(self.flat.rows(range.start, range.len())?.reshape(shape)?)
    }
}

/// Sums of gradients, laid out like the adapter itself. They live across micro-batches.
pub struct LoraGradients {
    layout: Arc<LoraLayout>,
    sums: Sums,
    /// Elements from this one on are complete: others may be at work on them.
    complete_from: usize,
}

/// In f32, wherever they are.
enum Sums {
    Host(Buffer),
    Gpu(DeviceBuffer),
}

impl LoraGradients {
    pub fn zeros(layout: Arc<LoraLayout>) -> LoraGradients {
        let (flat, complete_from) = (Buffer::from_f32(vec![0.0; layout.num_elements]), layout.num_elements);
        LoraGradients { layout, sums: Sums::Host(flat), complete_from }
    }

    /// On a GPU, in a run of `padded_len` elements: those of the layout, and what lets ranks have equal parts.
    pub fn zeros_on(device: &Arc<CudaDevice>, layout: Arc<LoraLayout>, padded_len: usize) -> Result<LoraGradients> {
        let bytes = DType::F32.size() * padded_len as u64;
        let block = device.working_memory().take(Purpose::Trained, bytes.0 as usize)?;
        let mut flat = DeviceBuffer::new(device, block, DType::F32, [padded_len])?;
        flat.clear()?;
        let complete_from = layout.num_elements;
        Ok(LoraGradients { layout, sums: Sums::Gpu(flat), complete_from })
    }

    pub fn layout(&self) -> &LoraLayout {
        &self.layout
    }

    /// From now on nothing may be added to `element` and those behind it.
    pub fn complete(&mut self, element: usize) {
        self.complete_from = self.complete_from.min(element);
    }

    /// The run on a GPU as it is so far; none on the host.
    pub fn on_gpu(&self) -> Option<&DeviceBuffer> {
        match &self.sums {
            Sums::Host(_) => None,
            Sums::Gpu(flat) => Some(flat),
        }
    }

    /// Adds `dnarrowᵀ·x`, times the scale of the adapters, to the elements of `range`: the gradients of factors A that
    /// lie one under the other.
    pub(crate) fn add_a(&mut self, range: Range<usize>, dnarrow: Columns, x: Columns) -> Result<()> {
        self.must_be_open(&range)?;
        let scale = self.layout.scale;
        match &mut self.sums {
            Sums::Host(flat) => add_scaled(&mut flat.f32s_mut()?[range], &matmul::tn(dnarrow, x)?, scale)?,
            Sums::Gpu(flat) => matmul::add_tn(flat, range.start, dnarrow, x, scale)?,
        }
        Ok(())
    }

    /// Adds `dyᵀ·narrow` of each adapter, times the scale, to the elements of `range`: the gradients of factors B that
    /// lie one under the other, as they do in `b`. Returns the gradients of the narrow products, side by side.
    pub(crate) fn add_b(
        &mut self,
        range: Range<usize>,
        dys: &[Columns],
        b: &Tensor,
        narrow: &Tensor,
    ) -> Result<Tensor> {
        self.must_be_open(&range)?;
        let scale = self.layout.scale;
        match &mut self.sums {
            Sums::Host(flat) => {
                let outputs = lora::outputs(dys, b, narrow)?;
                for output in &outputs {
                    let product = matmul::tn(output.dy, output.narrow)?;
                    let start = range.start + output.first_row * b.dims()[1];
                    add_scaled(&mut flat.f32s_mut()?[start..start + product.num_elements()], &product, scale)?;
                }
                let pairs: Vec<_> = outputs.iter().map(|output| (output.dy, &output.b)).collect();
                Ok(matmul::side_by_side_nn(&pairs)?)
            }
            Sums::Gpu(flat) => Ok(lora::outputs_backward((flat, range.start), dys, b, narrow, scale)?),
        }
    }

    /// The same expert by expert, for rows that are sorted by them.
    pub(crate) fn add_by_expert(&mut self, range: Range<usize>, rows: [&Tensor; 2], offsets: &[u32]) -> Result<()> {
        self.must_be_open(&range)?;
        let scale = self.layout.scale;
        match &mut self.sums {
            Sums::Host(flat) => {
                let product = grouped_matmul::tn(rows[0], rows[1], offsets)?;
                add_scaled(&mut flat.f32s_mut()?[range], &product, scale)?;
            }
            Sums::Gpu(flat) => grouped_matmul::add_tn(flat, range.start, rows, offsets, scale)?,
        }
        Ok(())
    }

    fn must_be_open(&self, range: &Range<usize>) -> Result<()> {
        if range.end <= self.complete_from {
            return Ok(());
        }
        let problem = format!("found more for elements {range:?}, expected none from {} on", self.complete_from);
        Err(DeviceError::Value { what: "gradients of an adapter", problem }.into())
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

fn add_scaled(sums: &mut [f32], product: &Tensor, scale: f32) -> Result<()> {
    sums.iter_mut().zip(product.f32s()?.iter()).for_each(|(sum, value)| *sum += scale * value);
    Ok(())
}

fn elsewhere(expected: &str, found: String) -> DeviceError {
    DeviceError::Place { what: "gradients of an adapter", found, expected: expected.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_INPUTS: [Input; 6] =
        [Input::Attention, Input::Context, Input::Shared, Input::SharedHidden, Input::Routed, Input::RoutedHidden];

    fn layout(projections: &[Projection]) -> LoraLayout {
        let config = ModelConfig { num_layers: 2, hidden_size: 64, intermediate_size: 96, ..ModelConfig::scout() };
        let projections = projections.iter().copied().collect();
        LoraLayout::new(&config, &LoraSettings { rank: 4, alpha: 8.0, use_rslora: false, projections })
    }

    #[test]
    fn every_element_of_the_run_belongs_to_one_factor() {
        for projections in [&Projection::ALL[..], &[Projection::K, Projection::SharedUp], &[]] {
            let layout = layout(projections);
            let mut owners = vec![0; layout.num_elements()];
            for index in 0..layout.modules().len() {
                for factor in [Factor::A, Factor::B] {
                    owners[layout.range(index, factor)].iter_mut().for_each(|owners| *owners += 1);
                }
            }
            assert!(owners.iter().all(|&owners| owners == 1), "{projections:?}");
        }
    }

    #[test]
    fn factors_of_one_input_lie_one_under_the_other() {
        use Projection::{K, O, Q, SharedGate, SharedUp, V};
        for (projections, expected) in [
            (&Projection::ALL[..], [3, 1, 2, 1, 1, 1]),
            (&[Q, V, SharedUp], [2, 0, 1, 0, 0, 0]),
            (&[K, O, SharedGate, SharedUp], [1, 1, 2, 0, 0, 0]),
            (&[], [0; 6]),
        ] {
            let layout = layout(projections);
            for layer_index in 0..2 {
                for (input, expected) in ALL_INPUTS.into_iter().zip(expected) {
                    let stack = layout.stack(layer_index, input);
                    assert_eq!(stack.len(), expected, "{projections:?} {input:?}");
                    for index in stack.clone() {
                        let module = &layout.modules()[index];
                        assert_eq!((module.layer_index, Input::of(module.projection)), (layer_index, input));
                    }
                    for factor in [Factor::A, Factor::B] {
                        for index in stack.clone().skip(1) {
                            assert_eq!(layout.range(index, factor).start, layout.range(index - 1, factor).end);
                        }
                        if !stack.is_empty() {
                            let lens = stack.clone().map(|index| layout.range(index, factor).len());
                            assert_eq!(layout.range_of_stack(&stack, factor).len(), lens.sum::<usize>());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_added_to_what_is_complete() {
        let layout = Arc::new(layout(&[Projection::Q, Projection::O]));
        let mut gradients = LoraGradients::zeros(layout.clone());
        // One element of factor A of the last projection, and one of the first.
        let (last, first) = (layout.range(layout.modules().len() - 1, Factor::A), layout.range(0, Factor::A));
        let one = Tensor::from_f32(vec![1.0], [1, 1]).unwrap();
        let add = |gradients: &mut LoraGradients, element: usize| {
            gradients.add_a(element..element + 1, (&one).into(), (&one).into())
        };
        gradients.complete(last.start + 1);
        add(&mut gradients, last.start).unwrap();
        let error = add(&mut gradients, last.start + 1).unwrap_err().to_string();
        assert!(error.contains(&format!("expected none from {} on", last.start + 1)), "{error}");
        // What is complete stays so.
        gradients.complete(layout.num_elements());
        assert!(add(&mut gradients, last.start + 1).is_err());
        assert!(gradients.add_by_expert(last, [&one, &one], &[0, 1]).is_err());
        add(&mut gradients, first.start).unwrap();
        gradients.complete(0);
        assert!(add(&mut gradients, first.start).is_err());
    }
}
