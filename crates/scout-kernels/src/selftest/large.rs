//! Ops over more elements than 31 bits count. 4,096 of their rows are compared.

use scout_core::DType;
use scout_device::{Device, Tensor};

use super::{Case, Check, tolerance};
use crate::{Result, embedding, lora, noise, rms_norm, rows, swiglu};

pub(super) const CASES: &[Case] = &[
    ("lora.large", lora_large),
    ("rms_norm.large", rms_norm_large),
    ("swiglu.large", swiglu_large),
    ("rows.moved_large", rows_moved_large),
];

const NUM_SAMPLES: usize = 4096;

/// Rows spread over a tensor of `num_rows`, the first and the last among them.
fn samples(num_rows: usize) -> impl Iterator<Item = usize> {
    (0..NUM_SAMPLES).map(move |sample| sample * (num_rows - 1) / (NUM_SAMPLES - 1))
}

/// The sampled rows, on the host.
fn sampled(tensor: &Tensor) -> Result<Tensor> {
    let mut values = Vec::new();
    for row in samples(tensor.dims()[0]) {
        values.extend_from_slice(&tensor.rows(row, 1)?.to_host()?.f32s()?);
    }
    Tensor::from_f32(values, [NUM_SAMPLES, tensor.dims()[1]])
}

/// A thin product with a residual, and a sum in its memory.
fn lora_large(check: &mut Check) -> Result<()> {
    let (num_tokens, width) = ((1 << 21) + 3, 1025);
    let (first, second, third) = (check.next_seed(), check.next_seed(), check.next_seed());
    let narrow = noise::tensor_on(check.device, DType::BF16, [num_tokens, 8], first, 1.0)?;
    let wide = noise::tensor_on(check.device, DType::BF16, [width, 8], second, 1.0)?;
    let x = noise::tensor_on(check.device, DType::BF16, [num_tokens, width], third, 1.0)?;
    let (narrow_sampled, x_sampled) = (sampled(&narrow)?, sampled(&x)?);
    let expected = lora::product_nt(&narrow_sampled, &wide.to_host()?, 0.3, Some(&x_sampled))?;
    let y = lora::product_nt(&narrow, &wide, 0.3, Some(&x))?;
    check.close(format!("bf16 {num_tokens}x{width}"), &sampled(&y)?, &expected, tolerance(DType::BF16))?;
    let expected = lora::add_delta(sampled(&y)?, &x_sampled, 0.5)?;
    let found = sampled(&lora::add_delta(y, &x, 0.5)?)?;
    check.close(format!("bf16 {num_tokens}x{width} added to"), &found, &expected, tolerance(DType::BF16))
}

/// To the other end and back.
fn rows_moved_large(check: &mut Check) -> Result<()> {
    let num_rows = 420_001;
    let seed = check.next_seed();
    let x = noise::tensor_on(check.device, DType::BF16, [num_rows, 5120], seed, 1.0)?;
    let from_behind = Tensor::from_u32((0..num_rows as u32).rev().collect(), [num_rows])?;
    let from_behind = from_behind.to_device(&Device::Cuda(check.device.clone()))?;
    let moved = embedding::forward(&from_behind, &x)?;
    let mut values = Vec::new();
    for row in samples(num_rows) {
        values.extend_from_slice(&x.rows(num_rows - 1 - row, 1)?.to_host()?.f32s()?);
    }
    let expected = Tensor::from_f32(values, [NUM_SAMPLES, 5120])?;
    check.close("bf16 gather", &sampled(&moved)?, &expected, 0.0)?;
    let back = rows::scatter(&moved, &from_behind, num_rows)?;
    check.close("bf16 scatter", &sampled(&back)?, &sampled(&x)?, 0.0)
}

fn rms_norm_large(check: &mut Check) -> Result<()> {
    let (num_tokens, width) = (420_001, 5120);
    let (first, second, third) = (check.next_seed(), check.next_seed(), check.next_seed());
    let x = noise::tensor_on(check.device, DType::BF16, [num_tokens, width], first, 1.0)?;
    let weight = noise::tensor_on(check.device, DType::BF16, [width], second, 1.0)?;
    let found = rms_norm::forward(&x, &weight, 1e-5)?;
    let x_sampled = sampled(&x)?;
    let expected = rms_norm::forward(&x_sampled, &weight.to_host()?, 1e-5)?;
    check.close("bf16 forward", &sampled(&found.y)?, &expected.y, tolerance(DType::BF16))?;
    drop(found.y);
    let dy = noise::tensor_on(check.device, DType::BF16, [num_tokens, width], third, 1.0)?;
    let found = rms_norm::backward(&dy, &x, &found.inverse_rms, &weight, Some(&dy))?;
    let (dy, weight) = (sampled(&dy)?, weight.to_host()?);
    let expected = rms_norm::backward(&dy, &x_sampled, &expected.inverse_rms, &weight, Some(&dy))?;
    check.close("bf16 backward", &sampled(&found)?, &expected, tolerance(DType::BF16))
}

fn swiglu_large(check: &mut Check) -> Result<()> {
    let (num_tokens, width) = (140_001, 8192);
    let (first, second) = (check.next_seed(), check.next_seed());
    let gate_up = noise::tensor_on(check.device, DType::BF16, [num_tokens, 2 * width], first, 8.0)?;
    let gate_up_sampled = sampled(&gate_up)?;
    let found = sampled(&swiglu::forward(&gate_up)?)?;
    check.close("bf16 forward", &found, &swiglu::forward(&gate_up_sampled)?, tolerance(DType::BF16))?;
    let dh = noise::tensor_on(check.device, DType::BF16, [num_tokens, width], second, 1.0)?;
    let expected = swiglu::back_and_forth(&sampled(&dh)?, &gate_up_sampled)?;
    let found = swiglu::back_and_forth(&dh, &gate_up)?;
    check.close("bf16 backward", &sampled(&found.d_gate_up)?, &expected.d_gate_up, tolerance(DType::BF16))?;
    check.close("bf16 forward beside it", &sampled(&found.h)?, &expected.h, tolerance(DType::BF16))
}
