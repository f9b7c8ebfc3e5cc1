//! The gradients of an adapter on their way from the backward pass to the rank that updates them: on several GPUs, bucket by
//! bucket, summed by all ranks while other blocks are still computed. What a rank does with its part stands elsewhere.

use std::sync::Arc;

use scout_comm::gpu::GpuGroup;
use scout_core::DType;
use scout_device::cuda::{CudaDevice, DeviceBuffer};
use scout_device::{Purpose, Tensor};
use scout_model::LoraGradients;

use crate::buckets::{Buckets, Unsent};
use crate::error::Result;

/// The adapter's gradients of one update.
pub struct AdapterSums {
    /// This rank's own, to which backward passes add.
    pub own: LoraGradients,
    /// None on the host, where they are summed at the end, and none with one rank.
    on_gpus: Option<OnGpus>,
}

struct OnGpus {
    group: Arc<GpuGroup>,
    buckets: Buckets,
    /// This rank's slices of the sums that are under way or there.
    part: DeviceBuffer,
    unsent: Unsent,
}

impl AdapterSums {
    pub fn of_rank(own: LoraGradients) -> AdapterSums {
        AdapterSums { own, on_gpus: None }
    }

    /// `own` has the padding of `buckets`.
    pub fn of_gpus(
        own: LoraGradients,
        device: &Arc<CudaDevice>,
        group: &Arc<GpuGroup>,
        buckets: Buckets,
    ) -> Result<AdapterSums> {
        let bytes = DType::F32.size() * buckets.part_len() as u64;
        let block = device.working_memory().take(Purpose::Trained, bytes.0 as usize)?;
        let part = DeviceBuffer::new(device, block, DType::F32, [buckets.part_len()])?;
        let on_gpus = OnGpus { group: group.clone(), buckets, part, unsent: Unsent::all_of(buckets) };
        Ok(AdapterSums { own, on_gpus: Some(on_gpus) })
    }

    /// Gives all ranks those buckets of which nothing is missing any more, now that `element` and all behind it are
    /// complete. Every rank sends the same in the same order. The host stops only until NCCL has queued it.
    pub fn send(&mut self, element: usize) -> Result<()> {
        self.own.complete(element); // adding more would be an error from now on: NCCL reads
        let (Some(on_gpus), Some(own)) = (&mut self.on_gpus, self.own.on_gpu()) else { return Ok(()) };
        on_gpus.send(own, element)
    }

    /// On GPUs: this rank's part of the sum, for which later arithmetic waits.
    pub fn into_gpu_part(mut self) -> Result<Tensor> {
        self.send(0)?;
        match self.on_gpus {
            None => Ok(self.own.into_gpu()?),
            Some(OnGpus { group, part, .. }) => {
                group.wait_for_sums()?;
                Ok(part.into_tensor())
            }
        }
    }
}

impl OnGpus {
    fn send(&mut self, own: &DeviceBuffer, element: usize) -> Result<()> {
        for bucket in self.unsent.complete(element) {
            let (from, to) = (self.buckets.in_whole(bucket), self.buckets.in_part(bucket));
            self.group.reduce_scatter((own, from), (&mut self.part, to))?;
        }
        Ok(())
    }
}
