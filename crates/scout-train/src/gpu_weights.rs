//! Weights into the memory of a GPU, whole: one arena, filled unit by unit through a little pinned memory, so that the host
//! never holds more than two chunks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use scout_checkpoint::ModelFolder;
use scout_core::{ByteCount, ParamSpec, UnitSpec};
use scout_device::cuda::{Arena, Copying, CudaDevice, DeviceBuffer, Pinned};
use scout_device::{DeviceError, Purpose};
use scout_kernels::noise;
use scout_shard::{Placement, ShardPlan, ShardStore};

use crate::error::Result;
use crate::{load, synth};

/// Elements on their way at a time.
const CHUNK: usize = 16 << 20;
/// One is read from disk while the other is copied.
const MOST_UNDER_WAY: usize = 2;
/// What an arena adds to a unit at most.
const GRAIN: u64 = 512;

/// Reads all weights of `files`.
pub fn read(files: &ModelFolder, plan: &ShardPlan, device: &Arc<CudaDevice>) -> Result<ShardStore> {
    let mut loader = Loader { device, under_way: VecDeque::new() };
    let mut values = Vec::new();
    fill(plan, device, |unit, buffer| {
        for range in chunks(unit.num_elements(), CHUNK) {
            values.resize(range.len(), 0.0);
            let read = |param: &ParamSpec, range, out: &mut [f32]| Ok(files.read_f32(&param.name, range, out)?);
            load::each_param(unit, range.clone(), &mut values, read)?;
            loader.send(&values, buffer, range)?;
        }
        Ok(())
    })
    .and_then(|store| loader.finish().map(|()| store))
}

/// The numbers of [`synth::fill`], made on the GPU: 22 GB of them on the host would take minutes.
pub fn random(plan: &ShardPlan, seed: u64, device: &Arc<CudaDevice>) -> Result<ShardStore> {
    let mut loader = Loader { device, under_way: VecDeque::new() };
    fill(plan, device, |unit, buffer| {
        let mut start = 0;
        for param in &unit.params {
            let len = param.num_elements();
            if param.shape.dims().len() == 1 {
                // Norms lie around one, and are few.
                let mut values = vec![0.0; len];
                synth::fill(seed, param, 0..len, &mut values);
                loader.send(&values, buffer, start..start + len)?;
            } else {
                let (stream, half_width) = (synth::stream(seed, param), synth::half_width(param));
                for (index, range) in chunks(len, synth::PIECE).enumerate() {
                    let seed = stream.of_piece(index);
                    let noise = noise::tensor_on(device, buffer.dtype(), [range.len()], seed, half_width)?;
                    buffer.copy_from(start + range.start, &noise)?;
                }
            }
            start += len;
        }
        Ok(())
    })
    .and_then(|store| loader.finish().map(|()| store))
}

/// One arena of all units, each filled by `fill_unit`.
fn fill(
    plan: &ShardPlan,
    device: &Arc<CudaDevice>,
    mut fill_unit: impl FnMut(&UnitSpec, &mut DeviceBuffer) -> Result<()>,
) -> Result<ShardStore> {
    if plan.units().iter().any(|unit| unit.placement == Placement::Sharded) {
        let reason = "weights that are shared out among several GPUs are not built yet".to_string();
        return Err(DeviceError::Unavailable { wanted: "cuda".to_string(), reason }.into());
    }
    let bytes = plan.kept_bytes() + ByteCount(GRAIN * plan.units().len() as u64);
    let arena: Arena = device.arena("weights", Purpose::Shard, bytes, device.compute())?;
    let mut units = Vec::with_capacity(plan.units().len());
    for unit in plan.units() {
        let len = unit.spec.num_elements();
        let block = arena.take(Purpose::Shard, (plan.dtype().size() * len as u64).0 as usize)?;
        let mut buffer = DeviceBuffer::new(device, block, plan.dtype(), [len])?;
        fill_unit(&unit.spec, &mut buffer)?;
        units.push(buffer.into_tensor());
    }
    Ok(ShardStore::of_whole_units(units))
}

fn chunks(len: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(chunk).map(move |start| start..len.min(start + chunk))
}

/// Copies chunks of f32 to a GPU, rounded to what is kept there.
struct Loader<'a> {
    device: &'a Arc<CudaDevice>,
    under_way: VecDeque<Copying>,
}

impl Loader<'_> {
    fn send(&mut self, values: &[f32], to: &mut DeviceBuffer, range: Range<usize>) -> Result<()> {
        let oldest = match self.under_way.len() {
            MOST_UNDER_WAY.. => self.under_way.pop_front(),
            _ => None,
        };
        let mut pinned = match oldest {
            Some(copying) => copying.wait(self.device.patience())?,
            None => Pinned::zeros(self.device.context(), CHUNK * size_of::<f32>())?,
        };
        pinned.write_f32s(values, to.dtype())?;
        // On the compute stream: nothing else is to be done yet, and whatever comes later finds the weights there.
        self.under_way.push_back(pinned.upload_part(to, range, self.device.compute())?);
        Ok(())
    }

    fn finish(self) -> Result<()> {
        for copying in self.under_way {
            copying.wait(self.device.patience())?;
        }
        Ok(())
    }
}
