//! How fast the ops are that work token by token: at 16,384 tokens of the model's widths, in bf16. Bytes are those that
//! must be moved at least.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::CudaDevice;
use scout_device::{Device, Tensor};

use super::meter::{KernelRate, Meter};
use crate::qk_position::Position;
use crate::{Result, embedding, noise, qk_position, router, rows};

const TOKENS: usize = 16384;
const WIDTH: usize = 5120;

pub(super) fn kernels(device: &Arc<CudaDevice>) -> Result<Vec<KernelRate>> {
    let mut meter = Meter::new(device);
    positions(&mut meter)?;
    routing(&mut meter)?;
    by_index(&mut meter)?;
    Ok(meter.rates)
}

fn bf16(device: &Arc<CudaDevice>, shape: [usize; 2], seed: u64) -> Result<Tensor> {
    noise::tensor_on(device, DType::BF16, shape, seed, 1.0)
}

/// `count` numbers below `limit`, on the GPU.
fn indices(device: &Arc<CudaDevice>, count: usize, limit: usize) -> Result<Tensor> {
    let index = (0..count).map(|at| ((noise::value_at(9, at) + 1.0) / 2.0 * (limit - 1) as f32) as u32);
    Tensor::from_u32(index.collect(), [count])?.to_device(&Device::Cuda(device.clone()))
}

fn positions(meter: &mut Meter) -> Result<()> {
    let device = meter.device.clone();
    let frequencies = (0..64).map(|pair| 500_000f32.powf(-(pair as f32) / 64.0)).collect();
    let frequencies = Tensor::from_f32(frequencies, [64])?.to_device(&Device::Cuda(device.clone()))?;
    let at = indices(&device, TOKENS, 2048)?;
    let turned = Position::RotateAndNormalise { frequencies, epsilon: 1e-5 };
    let tempered = Position::Temperature { attn_scale: 0.1, floor_scale: 8192.0 };
    let q = bf16(&device, [TOKENS, WIDTH], 1)?.reshape([TOKENS, 40, 128])?;
    let k = bf16(&device, [TOKENS, 1024], 2)?.reshape([TOKENS, 8, 128])?;
    let bytes = q.bytes().0;
    meter.measure("qk_position q", 2 * bytes, &mut || qk_position::forward(&q, &at, &turned).map(|_| ()))?;
    meter.measure("qk_position k", 2 * k.bytes().0, &mut || qk_position::forward(&k, &at, &turned).map(|_| ()))?;
    let placed = qk_position::forward(&q, &at, &turned)?;
    let mut backward = || qk_position::backward(&q, &placed, &at, &turned).map(|_| ());
    meter.measure("qk_position q backward", 3 * bytes, &mut backward)?;
    meter.measure("qk_position temperature", 2 * bytes, &mut || qk_position::forward(&q, &at, &tempered).map(|_| ()))
}

fn routing(meter: &mut Meter) -> Result<()> {
    let device = meter.device.clone();
    let (x, y) = (bf16(&device, [TOKENS, WIDTH], 1)?, bf16(&device, [TOKENS, WIDTH], 2)?);
    let (z, weight) = (bf16(&device, [TOKENS, WIDTH], 3)?, bf16(&device, [16, WIDTH], 4)?);
    let bytes = x.bytes().0;
    meter.measure("router logits", bytes, &mut || router::logits(&x, &weight).map(|_| ()))?;
    let logits = router::logits(&x, &weight)?;
    let routing = router::choose(&logits)?;
    routing.offsets()?;
    // With the copy of the offsets and the wait for it: what a layer pays when the host has nothing else to queue.
    let mut choose = || router::choose(&logits).and_then(|routing| routing.offsets().map(|_| ()));
    meter.measure("router choice and wait", logits.bytes().0 + 16 * TOKENS as u64, &mut choose)?;
    meter.measure("router scaled gather", 2 * bytes, &mut || router::gather_scaled(&x, &routing).map(|_| ()))?;
    meter.measure("router gather", 2 * bytes, &mut || router::gather(&x, &routing).map(|_| ()))?;
    meter.measure("router combine", 4 * bytes, &mut || router::combine(&x, &routing, &y, Some(&z)).map(|_| ()))?;
    let mut backward = || router::backward(&y, &x, &routing, &weight, &z).map(|_| ());
    meter.measure("router backward", 4 * bytes, &mut backward)?;
    let dlogit = router::backward(&y, &x, &routing, &weight, &z)?.dlogit_T;
    let mut of_weight = || router::weight_gradient(&dlogit, &x, &routing).map(|_| ());
    meter.measure("router weight gradient", bytes, &mut of_weight)
}

fn by_index(meter: &mut Meter) -> Result<()> {
    const VOCABULARY: usize = 202_048;
    let device = meter.device.clone();
    let x = bf16(&device, [TOKENS, WIDTH], 1)?;
    let bytes = x.bytes().0;
    let order: Vec<u32> = (0..TOKENS as u32).map(|row| row * 5 % TOKENS as u32).collect();
    let order = Tensor::from_u32(order, [TOKENS])?.to_device(&Device::Cuda(device.clone()))?;
    meter.measure("rows gather", 2 * bytes, &mut || rows::gather(&x, &order).map(|_| ()))?;
    meter.measure("rows scatter", 2 * bytes, &mut || rows::scatter(&x, &order, TOKENS).map(|_| ()))?;
    let ids = indices(&device, TOKENS, VOCABULARY)?;
    let weight = bf16(&device, [VOCABULARY, WIDTH], 2)?;
    meter.measure("embedding", 2 * bytes, &mut || embedding::forward(&ids, &weight).map(|_| ()))?;
    drop(weight);
    let mut gradient = || embedding::weight_gradient(&x, &ids, VOCABULARY).map(|_| ());
    meter.measure("embedding gradient", bytes + 4 * (VOCABULARY * WIDTH) as u64, &mut gradient)
}
