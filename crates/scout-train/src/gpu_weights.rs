//! The weights that a rank keeps, into the memory of its GPU: one arena of all units, filled from files or with random
//! numbers made there.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use scout_checkpoint::ModelFolder;
use scout_core::{ByteCount, Rank, UnitSpec};
use scout_device::cuda::{Arena, Copying, CudaDevice, DeviceBuffer, Pinned};
use scout_device::{Device, Purpose, Tensor};
use scout_kernels::noise;
use scout_shard::ShardPlan;

use crate::error::Result;
use crate::fill::{Chunk, Sink, fill};
use crate::readers::Readers;
use crate::{load, synth};

/// Bytes of an arena that has room for what a rank keeps: the same on all of them.
pub fn bytes(plan: &ShardPlan) -> ByteCount {
    plan.kept_bytes() + ByteCount((Arena::GRAIN * plan.units().len()) as u64)
}

/// Reads what `rank` keeps, and nothing else, into `arena`: of each unit a flat tensor, padded with zeros, in the order of
/// the plan. The same units lie at the same places on every rank.
pub fn read(
    files: &ModelFolder,
    plan: &ShardPlan,
    rank: Rank,
    (device, arena): (&Arc<CudaDevice>, &Arena),
    readers: &mut Readers,
) -> Result<Vec<Tensor>> {
    let buffers = room(plan, rank, (device, arena))?;
    // Padding is written on the stream of arithmetic.
    device.copy().wait_for(&device.compute().record()?)?;
    let gpu = Gpu { device, buffers: Mutex::new(buffers) };
    // Every reader waits for its copies, so whatever is queued afterwards, on any stream, finds the weights there.
    fill(files, (plan, rank), &gpu, readers)?;
    let buffers = gpu.buffers.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(buffers.into_iter().map(DeviceBuffer::into_tensor).collect())
}

/// The numbers of [`synth::fill`], made on the GPU: 22 GB of them on the host would take minutes. Queued as arithmetic is.
pub fn random(
    plan: &ShardPlan,
    rank: Rank,
    seed: u64,
    (device, arena): (&Arc<CudaDevice>, &Arena),
) -> Result<Vec<Tensor>> {
    let mut buffers = room(plan, rank, (device, arena))?;
    for (unit, buffer) in plan.units().iter().zip(&mut buffers) {
        make(&unit.spec, plan.kept(unit.spec.id, rank), seed, buffer)?;
    }
    Ok(buffers.into_iter().map(DeviceBuffer::into_tensor).collect())
}

/// Room for what `rank` keeps of every unit, where padding is zero already.
fn room(plan: &ShardPlan, rank: Rank, (device, arena): (&Arc<CudaDevice>, &Arena)) -> Result<Vec<DeviceBuffer>> {
    let mut buffers = Vec::with_capacity(plan.units().len());
    for unit in plan.units() {
        let len = unit.shard_len;
        let block = arena.take(Purpose::Shard, (plan.dtype().size() * len as u64).0 as usize)?;
        let mut buffer = DeviceBuffer::new(device, block, plan.dtype(), [len])?;
        if plan.kept(unit.spec.id, rank).len() < len {
            buffer.clear()?;
        }
        buffers.push(buffer);
    }
    Ok(buffers)
}

/// Fills `buffer` with the random numbers of the elements `kept` of a unit.
fn make(unit: &UnitSpec, kept: Range<usize>, seed: u64, buffer: &mut DeviceBuffer) -> Result<()> {
    let (device, dtype) = (buffer.device().clone(), buffer.dtype());
    let mut next = 0;
    for (param, range) in load::pieces(unit, kept) {
        if param.shape.dims().len() == 1 {
            // Norms lie around one, and are few.
            let mut values = vec![0.0; range.len()];
            synth::fill(seed, param, range.clone(), &mut values);
            let values = Tensor::from_f32(values, [range.len()])?;
            buffer.copy_from(next, &values.to_device_as(&Device::Cuda(device.clone()), dtype)?)?;
            next += range.len();
            continue;
        }
        let (stream, half_width) = (synth::stream(seed, param), synth::half_width(param));
        for part in synth::within_pieces(range, param.num_elements()) {
            // Made whole where a part is wanted: that takes a fraction of a millisecond.
            let piece = noise::tensor_on(&device, dtype, [part.piece_len], stream.of_piece(part.piece), half_width)?;
            let wanted = piece.rows(part.elements.start, part.elements.len())?;
            buffer.copy_from(next, &wanted)?;
            next += part.elements.len();
        }
    }
    Ok(())
}

/// Takes chunks through pinned memory to the buffers of their units.
struct Gpu<'a> {
    device: &'a Arc<CudaDevice>,
    /// Locked while a copy is queued, not while it runs.
    buffers: Mutex<Vec<DeviceBuffer>>,
}

impl Sink for Gpu<'_> {
    type Buffer = Pinned;
    type UnderWay = Copying;

    fn buffer(&self, bytes: usize) -> Result<Pinned> {
        Ok(Pinned::zeros(self.device.context(), bytes)?)
    }

    fn bytes_of<'b>(&self, buffer: &'b mut Pinned) -> &'b mut [u8] {
        buffer.bytes_mut()
    }

    fn send(&self, buffer: Pinned, chunk: &Chunk) -> Result<Copying> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(buffer.upload_part(&mut buffers[chunk.unit_index], chunk.to.clone(), self.device.copy())?)
    }

    fn wait(&self, under_way: Copying) -> Result<Pinned> {
        Ok(under_way.wait(self.device.patience())?)
    }
}
