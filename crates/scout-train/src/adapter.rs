//! The trained numbers of a LoRA run: the whole adapter as one flat run on every rank, how it begins, and the part of
//! it whose moments this rank keeps.

use std::borrow::Cow;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use scout_comm::Communicator;
use scout_core::{ByteCount, DType, LoraModule, Mesh};
use scout_device::{Account, Buffer, Device, Lease, Purpose, Tensor};
use scout_kernels::norms;
use scout_model::lora::Factor;
use scout_model::{LoraGradients, LoraLayout, LoraWeights};

use crate::adapter_on_gpu::AdapterOnGpu;
use crate::adapter_sums::AdapterSums;
use crate::buckets::Buckets;
use crate::error::{Result, TrainError};
use crate::machine::{Hardware, Kind, Machine};
use crate::optimizer::Update;

pub struct AdapterState {
    layout: Arc<LoraLayout>,
    mesh: Mesh,
    numbers: Numbers,
    // Held, never read: adapter, gradients and moments leave the account with this state.
    _lease: Option<Lease>,
}

enum Numbers {
    Host(OnHost),
    Gpu(Box<AdapterOnGpu>),
}

struct OnHost {
    // Invariant: `flat` is padded at its end to `world_size` equal parts; all ranks hold the same bits.
    flat: Buffer,
    /// AdamW's moments of this rank's part.
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
}

impl AdapterState {
    /// Starts from `values`, the factors of all modules one behind the other.
    pub fn new(layout: Arc<LoraLayout>, mut values: Vec<f32>, mesh: Mesh, account: &Account) -> Result<AdapterState> {
        debug_assert_eq!(values.len(), layout.num_elements(), "one value for each element of the layout");
        let part_len = values.len().div_ceil(mesh.size());
        values.resize(part_len * mesh.size(), 0.0);
        let flat = Buffer::from_f32(values);
        let lease = account.lease(Purpose::Trained, AdapterState::bytes(&layout, &mesh.size().into()))?;
        let moments = vec![0.0; part_len];
        let numbers = Numbers::Host(OnHost { flat, first_moment: moments.clone(), second_moment: moments });
        Ok(AdapterState { layout, mesh, numbers, _lease: Some(lease) })
    }

    /// The same state on the machine's device. Nothing may have been trained before. Every rank calls it.
    pub fn to_machine(self, machine: &Machine) -> Result<AdapterState> {
        let Device::Cuda(device) = &machine.device else { return Ok(self) };
        let values = self.values()?[..self.layout.num_elements()].to_vec();
        // The GPU's account is not to show both at one time: what the host held was never there.
        let AdapterState { layout, mesh, numbers, _lease } = self;
        drop((numbers, _lease));
        let on_gpu = AdapterOnGpu::new(device, machine.compute, &values, machine.gpus.as_ref())?;
        let numbers = Numbers::Gpu(Box::new(on_gpu));
        Ok(AdapterState { layout, mesh, numbers, _lease: None })
    }

    /// Bytes on each rank. On the host: the adapter and its gradient whole, two moments of one part.
    pub fn bytes(layout: &LoraLayout, hardware: &Hardware) -> ByteCount {
        let (len, world_size) = (layout.num_elements(), hardware.world_size);
        match hardware.kind {
            Kind::Host => DType::F32.size() * (len.div_ceil(world_size) * (2 * world_size + 2)) as u64,
            Kind::Gpu => AdapterOnGpu::bytes(len, world_size, hardware.compute),
        }
    }

    pub fn layout(&self) -> &Arc<LoraLayout> {
        &self.layout
    }

    /// The adapter for one pass.
    pub fn weights(&self) -> Result<LoraWeights> {
        Ok(match &self.numbers {
            Numbers::Host(host) => LoraWeights::from_flat(self.layout.clone(), &host.flat)?,
            Numbers::Gpu(gpu) => LoraWeights::on_gpu(self.layout.clone(), &gpu.for_compute())?,
        })
    }

    /// Gradients of nothing yet, where the adapter is.
    pub fn no_gradients(&self) -> Result<AdapterSums> {
        match &self.numbers {
            Numbers::Host(_) => Ok(AdapterSums::of_rank(LoraGradients::zeros(self.layout.clone()))),
            Numbers::Gpu(gpu) => gpu.no_gradients(&self.layout),
        }
    }

    /// The whole adapter on the host, as its layout says, with padding at its end.
    pub fn values(&self) -> Result<Cow<'_, [f32]>> {
        Ok(match &self.numbers {
            Numbers::Host(host) => Cow::Borrowed(host.flat.f32s()?),
            Numbers::Gpu(gpu) => Cow::Owned(gpu.values()?),
        })
    }

    /// Sums the gradients of all ranks, where they are not summed yet, and leaves this one with its part.
    pub fn reduce(&self, gradients: AdapterSums, comm: &dyn Communicator) -> Result<AdapterGradient> {
        let host = match &self.numbers {
            Numbers::Host(host) => host,
            Numbers::Gpu(gpu) => {
                return Ok(AdapterGradient::Gpu { part: gradients.into_gpu_part()?, buckets: gpu.buckets() });
            }
        };
        let part = Buffer::zeros(DType::F32, host.first_moment.len())?;
        if host.flat.is_empty() {
            return Ok(AdapterGradient::Host(part));
        }
        let mut full = Buffer::zeros(DType::F32, host.flat.len())?;
        full.copy_from(0, &gradients.own.into_flat()?)?;
        Ok(AdapterGradient::Host(comm.reduce_scatter(full, part)?.wait()?))
    }

    /// Moves the adapter by one step of AdamW: each rank its part, and then all of them have all parts.
    pub fn update(&mut self, gradient: &AdapterGradient, update: &Update, comm: &dyn Communicator) -> Result<()> {
        match (&mut self.numbers, gradient) {
            (Numbers::Host(host), AdapterGradient::Host(gradient)) => host.update(gradient, update, self.mesh, comm),
            (Numbers::Gpu(gpu), AdapterGradient::Gpu { part, .. }) => gpu.update(part, update),
            _ => unreachable!("a gradient is where the adapter is that reduced it"),
        }
    }
}

impl OnHost {
    fn update(&mut self, gradient: &Buffer, update: &Update, mesh: Mesh, comm: &dyn Communicator) -> Result<()> {
        if self.flat.is_empty() {
            return Ok(());
        }
        // Elements whose moments this rank keeps and which it updates.
        let part_len = self.first_moment.len();
        let start = mesh.rank().0 * part_len;
        let mut own = self.flat.f32s()?[start..start + part_len].to_vec();
        let moments = (&mut self.first_moment[..], &mut self.second_moment[..]);
        update.apply(&mut own, gradient.f32s()?, moments, true)?;
        let full = Buffer::zeros(DType::F32, self.flat.len())?;
        self.flat = comm.all_gather(&Buffer::from_f32(own), full)?.wait()?;
        Ok(())
    }
}

/// This rank's part of the adapter's gradient.
#[derive(Debug)]
pub enum AdapterGradient {
    Host(Buffer),
    /// Slices of all buckets one behind the other.
    Gpu {
        part: Tensor,
        buckets: Buckets,
    },
}

impl AdapterGradient {
    /// Its sum of squares, in f64. Waits for a GPU.
    pub fn sum_of_squares(&self) -> Result<f64> {
        Ok(match self {
            AdapterGradient::Host(part) => norms::sum_of_squares(part.f32s()?),
            AdapterGradient::Gpu { part, .. } => norms::measure(part)?.get()?.sum_of_squares,
        })
    }

    /// The whole gradient on the host, as the adapter's layout says, with padding at its end.
    pub fn of_all_ranks(&self, comm: &dyn Communicator) -> Result<Vec<f32>> {
        let gathered = |part: &Buffer| {
            let parts = Buffer::zeros(DType::F32, part.len() * comm.mesh().size())?;
            Ok::<Vec<f32>, TrainError>(comm.all_gather(part, parts)?.wait()?.f32s()?.to_vec())
        };
        match self {
            AdapterGradient::Host(part) => gathered(part),
            AdapterGradient::Gpu { part, buckets } => {
                Ok(buckets.whole(&gathered(&Buffer::from_f32(part.to_host()?.to_f32_vec()?))?))
            }
        }
    }
}

/// PEFT's own start: every factor A uniform within one over the root of its last dimension, every factor B zero. Each
/// factor has a stream of its own, so that a value depends on seed and place alone.
pub fn initial_values(layout: &LoraLayout, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; layout.num_elements()];
    for (module_index, module) in layout.modules().iter().enumerate() {
        let bound = 1.0 / (last_dim(module) as f32).sqrt();
        let mut stream = ChaCha8Rng::seed_from_u64(seed);
        stream.set_stream((module.layer_index as u64) << 8 | module.projection as u64);
        for value in &mut values[layout.range(module_index, Factor::A)] {
            // 24 bits make every f32 in [0, 1) of that spacing equally likely.
            let unit = (stream.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
            *value = bound * (2.0 * unit - 1.0);
        }
    }
    values
}

/// Second dimension of factor A as PEFT shapes it, `[rank, input]` or `[experts · rank, output]`.
fn last_dim(module: &LoraModule) -> usize {
    *module.a_shape().dims().last().expect("a factor has at least two dimensions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use scout_core::Projection;
    use scout_model::{LoraSettings, ModelConfig};

    #[test]
    fn an_adapter_begins_without_effect_and_independent_of_the_other_targets() {
        let config = ModelConfig { num_layers: 2, hidden_size: 64, intermediate_size: 96, ..ModelConfig::scout() };
        let values_of = |projections: &[Projection]| {
            let projections = projections.iter().copied().collect();
            let layout =
                LoraLayout::new(&config, &LoraSettings { rank: 4, alpha: 8.0, use_rslora: false, projections });
            let values = initial_values(&layout, 7);
            let index = layout.find(1, Projection::SharedDown).unwrap();
            let (a, b) = (layout.range(index, Factor::A), layout.range(index, Factor::B));
            (values[a].to_vec(), values[b].to_vec())
        };
        let (a, b) = values_of(&Projection::ALL);
        assert_eq!(values_of(&[Projection::Q, Projection::SharedDown]), (a.clone(), b.clone()));
        assert!(b.iter().all(|&value| value == 0.0));
        let bound = 1.0 / 96f32.sqrt();
        assert!(a.iter().all(|value| value.abs() <= bound));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < bound / 5.0 && a.iter().any(|value| value.abs() > 0.9 * bound), "mean {mean}");
    }
}
