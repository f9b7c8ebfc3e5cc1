//! What adapters of rank 8 cost beside the products of the model: at 16,384 tokens of its widths, in bf16. Bytes are those
//! that must be moved at least.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::CudaDevice;
use scout_device::{Device, Tensor};

use super::meter::{KernelRate, Meter};
use crate::lora::{DropoutKey, Side, TokenKeys};
use crate::matmul::Columns;
use crate::{Result, lora, matmul, noise};

const TOKENS: usize = 16384;
const WIDTH: usize = 5120;
const INNER: usize = 8192;
const RANK: usize = 8;
/// Of q, k and v, whose factors lie side by side.
const STACKED: usize = 3 * RANK;

pub(super) fn kernels(device: &Arc<CudaDevice>) -> Result<Vec<KernelRate>> {
    let mut meter = Meter::new(device);
    thin_factors(&mut meter)?;
    swept(&mut meter)?;
    thin_products(&mut meter)?;
    sums(&mut meter)?;
    by_token(&mut meter)?;
    Ok(meter.rates)
}

fn bf16(device: &Arc<CudaDevice>, shape: [usize; 2], seed: u64) -> Result<Tensor> {
    noise::tensor_on(device, DType::BF16, shape, seed, 1.0)
}

/// Products whose time is that of reading a wide factor: of q, k and v together, and of a half of gate and up.
fn thin_factors(meter: &mut Meter) -> Result<()> {
    let device = meter.device.clone();
    let (x, both) = (bf16(&device, [TOKENS, WIDTH], 1)?, bf16(&device, [TOKENS, 2 * INNER], 2)?);
    let (bytes, of_half) = (x.bytes().0, both.bytes().0 / 2);
    let (narrow, a) = (bf16(&device, [TOKENS, STACKED], 3)?, bf16(&device, [STACKED, WIDTH], 4)?);
    meter.measure("x·Aᵀ, 5120 to 24", bytes, &mut || matmul::nt(&x, &a).map(|_| ()))?;
    meter.measure("dnarrowᵀ·x, 24x5120", bytes, &mut || matmul::tn(&narrow, &x).map(|_| ()))?;
    let half = Columns { tensor: &both, start: INNER, count: INNER };
    let of_member = Columns { tensor: &narrow, start: RANK, count: RANK };
    let b = bf16(&device, [INNER, RANK], 5)?;
    meter.measure("dy·B of a half, 8192 to 8", of_half, &mut || matmul::nn(half, &b).map(|_| ()))?;
    meter.measure("dyᵀ·narrow of a half, 8192x8", of_half, &mut || matmul::tn(half, of_member).map(|_| ()))?;
    let b = bf16(&device, [WIDTH, RANK], 6)?;
    let pairs = [((&x).into(), &b), ((&x).into(), &b), ((&x).into(), &b)];
    meter
        .measure("dy·B side by side, thrice 5120 to 8", 3 * bytes, &mut || matmul::side_by_side_nn(&pairs).map(|_| ()))
}

/// Both products of gradients in one sweep: of gate and up, of q, k and v, and of the model's width.
fn swept(meter: &mut Meter) -> Result<()> {
    let device = meter.device.clone();
    let (both, x) = (bf16(&device, [TOKENS, 2 * INNER], 1)?, bf16(&device, [TOKENS, WIDTH], 2)?);
    let (key, value) = (bf16(&device, [TOKENS, 1024], 3)?, bf16(&device, [TOKENS, 1024], 6)?);
    let half = |start| Columns { tensor: &both, start, count: INNER };
    let mut sums = device.zeros(DType::F32, [2 * INNER * RANK])?;
    for (name, dys) in [
        ("dy·B and dyᵀ·narrow, gate and up", &[half(0), half(INNER)][..]),
        ("dy·B and dyᵀ·narrow, q, k and v", &[(&x).into(), (&key).into(), (&value).into()]),
        ("dy·B and dyᵀ·narrow, 5120 and 8", &[(&x).into()]),
    ] {
        let num_columns = dys.iter().map(|dy| dy.count).sum();
        let (b, narrow) = (bf16(&device, [num_columns, RANK], 4)?, bf16(&device, [TOKENS, dys.len() * RANK], 5)?);
        let mut backward = || lora::outputs_backward((&mut sums, 0), dys, &b, &narrow, 1.0).map(|_| ());
        meter.measure(name, 2 * (TOKENS * num_columns) as u64, &mut backward)?;
    }
    Ok(())
}

/// Products whose time is that of writing them.
fn thin_products(meter: &mut Meter) -> Result<()> {
    let device = meter.device.clone();
    let x = bf16(&device, [TOKENS, WIDTH], 1)?;
    let bytes = x.bytes().0;
    let narrow = bf16(&device, [TOKENS, STACKED], 2)?;
    let of_member = Columns { tensor: &narrow, start: RANK, count: RANK };
    let (b, a) = (bf16(&device, [WIDTH, RANK], 3)?, bf16(&device, [STACKED, WIDTH], 4)?);
    let mut nt = || lora::product_nt(of_member, &b, 0.01, None).map(|_| ());
    meter.measure("lora product, rank 8 to 5120", bytes, &mut nt)?;
    let mut nt = || lora::product_nt(of_member, &b, 0.01, Some(&x)).map(|_| ());
    meter.measure("lora product and residual, 8 to 5120", 2 * bytes, &mut nt)?;
    let mut nn = || lora::product_nn(&narrow, &a, 0.01).map(|_| ());
    meter.measure("lora product, rank 24 to 5120", bytes, &mut nn)?;
    let mut by_cublas = || matmul::nt(of_member, &b).map(|_| ());
    meter.measure("the same by cuBLASLt, 8 to 5120", bytes, &mut by_cublas)?;
    let mut by_cublas = || matmul::nn(&narrow, &a).map(|_| ());
    meter.measure("the same by cuBLASLt, 24 to 5120", bytes, &mut by_cublas)?;
    let other = bf16(&device, [INNER, RANK], 5)?;
    let sides = [Side::Product(of_member, &other), Side::Product(of_member, &other)];
    let mut halves = || lora::side_by_side(&sides, 0.01).map(|_| ());
    meter.measure("lora products of both halves, 8 to 8192", 4 * (TOKENS * INNER) as u64, &mut halves)?;
    for (name, rank) in [
        ("lora product, rank 16 to 5120", 16),
        ("lora product, rank 32 to 5120", 32),
        ("lora product, rank 48 to 5120", 48),
        ("lora product, rank 64 to 5120", 64),
        ("lora product, rank 192 to 5120", 192),
    ] {
        let (narrow, b) = (bf16(&device, [TOKENS, rank], 6)?, bf16(&device, [WIDTH, rank], 7)?);
        meter.measure(name, bytes, &mut || lora::product_nt(&narrow, &b, 0.01, None).map(|_| ()))?;
    }
    Ok(())
}

/// A product of the model alone and onto a sum: what the second costs more is the price of adding there.
fn sums(meter: &mut Meter) -> Result<()> {
    let device = meter.device.clone();
    let (x, weight) = (bf16(&device, [TOKENS, WIDTH], 1)?, bf16(&device, [WIDTH, WIDTH], 2)?);
    let bytes = x.bytes().0;
    meter.measure("x·Wᵀ, 5120x5120", 2 * bytes, &mut || matmul::nt(&x, &weight).map(|_| ()))?;
    let mut y = Some(bf16(&device, [TOKENS, WIDTH], 3)?);
    let mut onto = || in_place(&mut y, |y| matmul::add_nt(Some(y), &x, &weight));
    meter.measure("y += x·Wᵀ, 5120x5120", 3 * bytes, &mut onto)?;
    meter.measure("x·W, 5120x5120", 2 * bytes, &mut || matmul::nn(&x, &weight).map(|_| ()))?;
    let mut onto = || in_place(&mut y, |y| matmul::add_nn(Some(y), &x, &weight));
    meter.measure("y += x·W, 5120x5120", 3 * bytes, &mut onto)
}

fn by_token(meter: &mut Meter) -> Result<()> {
    let device = meter.device.clone();
    let x = bf16(&device, [TOKENS, WIDTH], 1)?;
    let bytes = x.bytes().0;
    let (tokens, positions): (Vec<u64>, Vec<u32>) = (0..TOKENS as u32).map(|t| (u64::from(t) / 99, t % 99)).unzip();
    let keys = TokenKeys::new(&tokens, &positions)?.to_device(&Device::Cuda(device.clone()))?;
    let key = DropoutKey { seed: 1, step: 2, module: 3 };
    meter.measure("lora dropout", 2 * bytes, &mut || lora::dropout(&x, &keys, key, 0.05).map(|_| ()))?;
    let mut y = Some(bf16(&device, [TOKENS, WIDTH], 3)?);
    meter.measure("lora add", 3 * bytes, &mut || in_place(&mut y, |y| lora::add_delta(y, &x, 0.5)))
}

/// Lets `change` have the tensor, and keeps what it hands back.
fn in_place(y: &mut Option<Tensor>, change: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<()> {
    *y = Some(change(y.take().expect("the run before handed it back"))?);
    Ok(())
}
