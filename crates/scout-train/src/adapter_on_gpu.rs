//! The trained numbers of a LoRA run on GPUs. Each rank moves its part of them in f32, with moments of its own; the parts of
//! all ranks are then brought together, bucket by bucket, in f32 and in the element type that arithmetic uses.

use std::sync::Arc;

use scout_comm::gpu::GpuGroup;
use scout_core::{ByteCount, DType};
use scout_device::cuda::{CudaDevice, DeviceBuffer, Pinned};
use scout_device::{Purpose, Tensor};
use scout_kernels::adamw::GpuState;
use scout_model::{LoraGradients, LoraLayout};

use crate::adapter_sums::AdapterSums;
use crate::buckets::Buckets;
use crate::error::Result;
use crate::machine::ComputeType;
use crate::optimizer::Update;

pub struct AdapterOnGpu {
    device: Arc<CudaDevice>,
    buckets: Buckets,
    /// What this rank moves, its slices of all buckets one behind the other: with one rank everything.
    own: Part,
    first_moment: DeviceBuffer,
    second_moment: DeviceBuffer,
    /// None with one rank.
    of_all: Option<OfAll>,
}

/// A run of parameters.
struct Part {
    parameters: DeviceBuffer,
    /// The same in bf16, where the model computes in it.
    rounded: Option<DeviceBuffer>,
}

/// All buckets, with the slices of all ranks and the padding that makes them equal.
struct OfAll {
    group: Arc<GpuGroup>,
    whole: Part,
}

impl AdapterOnGpu {
    /// `values` are those of the whole adapter, without padding, and the same on every rank.
    pub fn new(
        device: &Arc<CudaDevice>,
        compute: ComputeType,
        values: &[f32],
        group: Option<&Arc<GpuGroup>>,
    ) -> Result<AdapterOnGpu> {
        let (rank, size) = group.map_or((0, 1), |group| (group.mesh().rank().0, group.mesh().size()));
        let buckets = Buckets::new(values.len(), size);
        let own = Part::upload(device, compute, &buckets.part(rank, values))?;
        let zeros = || {
            let mut buffer = run(device, DType::F32, buckets.part_len())?;
            buffer.clear()?;
            Ok::<DeviceBuffer, scout_device::DeviceError>(buffer)
        };
        let (first_moment, second_moment) = (zeros()?, zeros()?);
        let of_all = match group {
            Some(group) => {
                Some(OfAll { group: group.clone(), whole: Part::room(device, compute, buckets.padded_len())? })
            }
            None => None,
        };
        let mut adapter = AdapterOnGpu { device: device.clone(), buckets, own, first_moment, second_moment, of_all };
        adapter.gather()?;
        Ok(adapter)
    }

    /// Bytes of `len` parameters with gradients and moments on each of `world_size` ranks.
    pub fn bytes(len: usize, world_size: usize, compute: ComputeType) -> ByteCount {
        let buckets = Buckets::new(len, world_size);
        let (part_len, all) = (buckets.part_len() as u64, buckets.padded_len() as u64);
        let several = world_size > 1;
        let of_part = |len: u64| match compute {
            ComputeType::F32 => DType::F32.size() * len,
            ComputeType::Bf16 => (DType::F32.size() + DType::BF16.size()) * len,
        };
        let moments = DType::F32.size() * (2 * part_len);
        let gradients = DType::F32.size() * (all + if several { part_len } else { 0 });
        let whole = if several { of_part(all) } else { ByteCount(0) };
        of_part(part_len) + moments + gradients + whole
    }

    pub fn buckets(&self) -> Buckets {
        self.buckets
    }

    /// What the model computes with. Nothing can be updated before it is dropped.
    pub fn for_compute(&self) -> Tensor {
        let Part { parameters, rounded } = self.whole();
        rounded.as_ref().unwrap_or(parameters).view()
    }

    /// A copy on the host, padding included. Waits for the GPU.
    pub fn values(&self) -> Result<Vec<f32>> {
        Ok(self.whole().parameters.view().to_host()?.to_f32_vec()?)
    }

    fn whole(&self) -> &Part {
        self.of_all.as_ref().map_or(&self.own, |of_all| &of_all.whole)
    }

    /// Gradients of nothing yet.
    pub fn no_gradients(&self, layout: &Arc<LoraLayout>) -> Result<AdapterSums> {
        let own = LoraGradients::zeros_on(&self.device, layout.clone(), self.buckets.padded_len())?;
        match &self.of_all {
            None => Ok(AdapterSums::of_rank(own)),
            Some(OfAll { group, .. }) => AdapterSums::of_gpus(own, &self.device, group, self.buckets),
        }
    }

    /// One step of AdamW on this rank's part, of which all ranks then have all; queued.
    pub fn update(&mut self, gradient: &Tensor, update: &Update) -> Result<()> {
        let len = self.own.parameters.num_elements();
        let state = GpuState {
            parameters: &mut self.own.parameters,
            first_moment: &mut self.first_moment,
            second_moment: &mut self.second_moment,
            rounded: self.own.rounded.as_mut(),
        };
        update.apply_on_gpu(state, gradient, 0..len)?;
        self.gather()
    }

    /// Brings the parts of all ranks together; queued.
    fn gather(&mut self) -> Result<()> {
        let Some(OfAll { group, whole }) = &mut self.of_all else { return Ok(()) };
        let gather = |own: &DeviceBuffer, whole: &mut DeviceBuffer| {
            let mut buckets = self.buckets.all();
            buckets.try_for_each(|bucket| {
                let (from, to) = (self.buckets.in_part(bucket), self.buckets.in_whole(bucket));
                group.all_gather((own, from), (&mut *whole, to))
            })
        };
        gather(&self.own.parameters, &mut whole.parameters)?;
        if let (Some(own), Some(whole)) = (&self.own.rounded, &mut whole.rounded) {
            // Half as many bytes again, instead of a kernel that would round what the others have rounded already.
            gather(own, whole)?;
        }
        Ok(group.check()?)
    }
}

impl Part {
    /// Memory that nobody has written yet.
    fn room(device: &Arc<CudaDevice>, compute: ComputeType, len: usize) -> scout_device::Result<Part> {
        let rounded = match compute {
            ComputeType::F32 => None,
            ComputeType::Bf16 => Some(run(device, DType::BF16, len)?),
        };
        Ok(Part { parameters: run(device, DType::F32, len)?, rounded })
    }

    fn upload(device: &Arc<CudaDevice>, compute: ComputeType, values: &[f32]) -> scout_device::Result<Part> {
        let mut part = Part::room(device, compute, values.len())?;
        for buffer in [Some(&mut part.parameters), part.rounded.as_mut()].into_iter().flatten() {
            write(device, buffer, values)?;
        }
        Ok(part)
    }
}

/// Piece by piece: an adapter may be large, and each rank of a host writes one.
fn write(device: &Arc<CudaDevice>, buffer: &mut DeviceBuffer, values: &[f32]) -> scout_device::Result<()> {
    const PIECE: usize = 4 << 20;
    let dtype = buffer.dtype();
    let mut pinned = Pinned::zeros(device.context(), PIECE.min(values.len()) * dtype.size().0 as usize)?;
    for (index, piece) in values.chunks(PIECE).enumerate() {
        let start = index * PIECE;
        pinned.write_f32s(piece, dtype)?;
        let copying = pinned.upload_part(buffer, start..start + piece.len(), device.compute())?;
        pinned = copying.wait(device.patience())?;
    }
    Ok(())
}

fn run(device: &Arc<CudaDevice>, dtype: DType, len: usize) -> scout_device::Result<DeviceBuffer> {
    let bytes = (dtype.size() * len as u64).0 as usize;
    DeviceBuffer::new(device, device.working_memory().take(Purpose::Trained, bytes)?, dtype, [len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rank_holds_of_an_adapter_is_the_sum_of_its_runs() {
        // One rank in f32: parameters, gradients and two moments.
        assert_eq!(AdapterOnGpu::bytes(1000, 1, ComputeType::F32), ByteCount(1000 * 4 * 4));
        // In bf16 the parameters once more.
        assert_eq!(AdapterOnGpu::bytes(1000, 1, ComputeType::Bf16), ByteCount(1000 * (4 * 4 + 2)));
        // Four: a part of each of these, all gradients, and all parameters in both types.
        let part = 256 * (4 * 4 + 2);
        assert_eq!(AdapterOnGpu::bytes(1024, 4, ComputeType::Bf16), ByteCount(part + 1024 * 4 + 1024 * (4 + 2)));
        // Padding counts: to slices of 64.
        assert_eq!(AdapterOnGpu::bytes(1000, 4, ComputeType::Bf16), AdapterOnGpu::bytes(1024, 4, ComputeType::Bf16));
        assert_eq!(AdapterOnGpu::bytes(3, 2, ComputeType::F32), ByteCount(64 * 4 * 4 + 128 * 4 + 128 * 4));
        assert_eq!(AdapterOnGpu::bytes(0, 2, ComputeType::Bf16), ByteCount(0));
        // Of several buckets too: 100,000,008 numbers are 15 buckets of three slices of 2,222,272, up to a multiple of 64.
        let (part, all) = (15 * 2_222_272, 15 * 3 * 2_222_272);
        let expected = ByteCount(part * (4 * 4 + 2) + all * 4 + all * (4 + 2));
        assert_eq!(AdapterOnGpu::bytes(100_000_008, 3, ComputeType::Bf16), expected);
    }
}
