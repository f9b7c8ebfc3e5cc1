//! Rates of the kernels at the end of a step, whose time is that of moving bytes.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{CudaDevice, DeviceBuffer};

use super::meter::{KernelRate, Meter};
use crate::adamw::{self, GpuState, Hyper};
use crate::{Result, cross_entropy, noise, norms};

pub(super) fn kernels(device: &Arc<CudaDevice>) -> Result<Vec<KernelRate>> {
    let mut meter = Meter::new(device);
    losses(&mut meter)?;
    updates(&mut meter)?;
    Ok(meter.rates)
}

/// 2,048 rows of logits, read and written once.
fn losses(meter: &mut Meter) -> Result<()> {
    const ROWS: usize = 2048;
    const VOCABULARY: usize = 202_048;
    let device = meter.device.clone();
    // The kernel does not see what logits were made of.
    let x = noise::tensor_on(&device, DType::BF16, [ROWS, 8], 1, 1.0)?;
    let weight = noise::tensor_on(&device, DType::BF16, [VOCABULARY, 8], 2, 1.0)?;
    let weights = noise::tensor_on(&device, DType::F32, [ROWS], 3, 1.0)?;
    let targets = Tensor::from_u32((0..ROWS as u32).map(|row| row * 97).collect(), [ROWS])?;
    let targets = device.send(&targets)?;
    let logits = noise::tensor_on(&device, DType::BF16, [ROWS, VOCABULARY], 4, 8.0)?;
    let bytes = 2 * logits.bytes().0;
    let mut logits = DeviceBuffer::from_tensor(logits)?;
    meter.measure("cross_entropy", bytes, &mut || {
        cross_entropy::cuda::losses_of(&device, [&x, &weight, &targets], &weights, &mut logits).map(|_| ())
    })
}

/// A gradient of 2²⁶ elements: its norm, and the update of parameters and moments with a copy in bf16.
fn updates(meter: &mut Meter) -> Result<()> {
    const LEN: usize = 1 << 26;
    let device = meter.device.clone();
    let run = |seed: u64| noise::tensor_on(&device, DType::F32, [LEN], seed, 1.0);
    let gradients = run(1)?;
    let mut coming = Vec::new();
    meter.measure("norms", gradients.bytes().0, &mut || {
        coming.push(norms::measure(&gradients)?);
        Ok(())
    })?;
    for coming in coming {
        coming.get()?;
    }
    let buffer = DeviceBuffer::from_tensor;
    let (mut parameters, mut first_moment) = (buffer(run(2)?)?, buffer(run(3)?)?);
    let mut second_moment = device.zeros(DType::F32, [LEN])?;
    let mut rounded = device.buffer(DType::BF16, [LEN])?;
    let hyper = Hyper { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 1 };
    meter.measure("adamw", 30 * LEN as u64, &mut || {
        let state = GpuState {
            parameters: &mut parameters,
            first_moment: &mut first_moment,
            second_moment: &mut second_moment,
            rounded: Some(&mut rounded),
        };
        adamw::update_on_gpu(state, &gradients, 0..LEN, 1.0, &hyper)
    })
}
