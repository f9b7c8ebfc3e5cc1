//! The trained numbers of a LoRA run on one GPU: all of them in f32, with a copy in the element type that arithmetic uses.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{CudaDevice, DeviceBuffer, Pinned};
use scout_device::{Purpose, Result, Tensor};
use scout_kernels::adamw::GpuState;

use crate::machine::ComputeType;
use crate::optimizer::Update;

pub struct AdapterOnGpu {
    device: Arc<CudaDevice>,
    parameters: DeviceBuffer,
    /// The parameters in bf16, where the model computes in it. Written by the same kernel that moves them.
    rounded: Option<DeviceBuffer>,
    first_moment: DeviceBuffer,
    second_moment: DeviceBuffer,
}

impl AdapterOnGpu {
    pub fn new(device: &Arc<CudaDevice>, compute: ComputeType, values: &[f32]) -> Result<AdapterOnGpu> {
        let run = |dtype: DType| {
            let bytes = (dtype.size() * values.len() as u64).0 as usize;
            let block = device.working_memory().take(Purpose::Trained, bytes)?;
            DeviceBuffer::new(device, block, dtype, [values.len()])
        };
        let upload = |dtype: DType| {
            let mut buffer = run(dtype)?;
            let mut pinned = Pinned::zeros(device.context(), buffer.bytes().0 as usize)?;
            pinned.write_f32s(values, dtype)?;
            pinned.upload(&mut buffer, device.compute())?.wait(device.patience())?;
            Ok(buffer)
        };
        let zeros = || {
            let mut buffer = run(DType::F32)?;
            buffer.clear()?;
            Ok(buffer)
        };
        let parameters = upload(DType::F32)?;
        let rounded = match compute {
            ComputeType::F32 => None,
            ComputeType::Bf16 => Some(upload(DType::BF16)?),
        };
        let (first_moment, second_moment) = (zeros()?, zeros()?);
        Ok(AdapterOnGpu { device: device.clone(), parameters, rounded, first_moment, second_moment })
    }

    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// What the model computes with. Nothing can be updated before it is dropped.
    pub fn for_compute(&self) -> Tensor {
        self.rounded.as_ref().unwrap_or(&self.parameters).view()
    }

    /// A copy on the host. Waits for the GPU.
    pub fn values(&self) -> Result<Vec<f32>> {
        self.parameters.view().to_host()?.to_f32_vec()
    }

    /// One step of AdamW, queued.
    pub fn update(&mut self, gradient: &Tensor, update: &Update) -> Result<()> {
        let len = self.parameters.num_elements();
        let state = GpuState {
            parameters: &mut self.parameters,
            first_moment: &mut self.first_moment,
            second_moment: &mut self.second_moment,
            rounded: self.rounded.as_mut(),
        };
        update.apply_on_gpu(state, gradient, 0..len)
    }
}
