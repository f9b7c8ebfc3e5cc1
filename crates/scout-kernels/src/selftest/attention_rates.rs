//! How fast attention is through its op, beside cuDNN called directly in the same run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scout_core::DType;
use scout_device::cuda::CudaDevice;
use scout_device::cuda::dnn::{self, DocumentIndex, Documents, SumOrder};
use scout_device::{DeviceError, Tensor};

use super::rates::{median, runs};
use crate::attention::{self, Attended, Segments};
use crate::{Result, noise};

const HEADS: dnn::Heads = dnn::Heads { query: 40, kv: 8, size: 128 };
const ALPACA: [u32; 16] = [120, 87, 203, 64, 145, 98, 310, 77, 133, 55, 181, 109, 92, 260, 70, 121];
const CALLS: usize = 10;

/// One pass over a batch.
#[derive(Debug, Clone, Copy)]
pub struct PassRate {
    pub time: Duration,
    /// Of the causal half of the square: two products forward, five backward.
    pub tflops: f64,
    /// What a call costs the host.
    pub host: Duration,
    /// The time of cuDNN called directly; none where the op does not use it.
    pub cudnn: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct AttentionRate {
    pub name: String,
    pub num_tokens: usize,
    pub forward: PassRate,
    pub backward: PassRate,
}

/// Scout's heads in bf16 on batches of several kinds.
pub fn attention(device: &Arc<CudaDevice>) -> Result<Vec<AttentionRate>> {
    let batches = [
        ("16 x 2048", vec![2048; 16]),
        ("8 x 2048", vec![2048; 8]),
        ("4 x 8192", vec![8192; 4]),
        ("16 as in Alpaca", ALPACA.to_vec()),
    ];
    batches.into_iter().map(|(name, lengths)| measure(device, name, &lengths)).collect()
}

struct Batch {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dcontext: Tensor,
    segments: Segments,
    scale: f32,
}

fn measure(device: &Arc<CudaDevice>, name: &str, lengths: &[u32]) -> Result<AttentionRate> {
    let mut borders = vec![0];
    for length in lengths {
        borders.push(borders[borders.len() - 1] + length);
    }
    let index = DocumentIndex::new(&borders, HEADS, SumOrder::Any)?;
    let segments = Segments::new(borders)?;
    let num_tokens = segments.num_tokens();
    let tensor =
        |seed, heads, scale| noise::tensor_on(device, DType::BF16, [num_tokens, heads, HEADS.size], seed, scale);
    let batch = Batch {
        q: tensor(1, HEADS.query, 3.0)?,
        k: tensor(2, HEADS.kv, 1.0)?,
        v: tensor(3, HEADS.kv, 1.0)?,
        dcontext: tensor(4, HEADS.query, 1.0)?,
        segments,
        scale: 1.0 / (HEADS.size as f32).sqrt(),
    };
    let Batch { q, k, v, dcontext, segments, scale } = &batch;
    let attended = attention::forward(q, k, v, segments, *scale)?;
    let forward = || attention::forward(q, k, v, segments, *scale).map(drop);
    let backward = || attention::backward(dcontext, q, k, v, &attended, segments, *scale).map(drop);
    let [alone_forward, alone_backward] = match device.attention() {
        Some(cudnn) => alone(device, cudnn, &batch, (&index, &attended), [&forward, &backward])?.map(Some),
        None => [None, None],
    };
    let pairs: f64 = lengths.iter().map(|&length| f64::from(length).powi(2) / 2.0).sum();
    let product = 2.0 * pairs * (HEADS.query * HEADS.size) as f64;
    let rate = |products: f64, pass: &dyn Fn() -> Result<()>, alone: Option<[Duration; 2]>| -> Result<PassRate> {
        let (time, cudnn) = match alone {
            Some([time, alone]) => (time, Some(alone)),
            None => (median(runs(device, CALLS, pass)?.1), None),
        };
        let tflops = products * product / time.as_secs_f64() / 1e12;
        Ok(PassRate { time, tflops, host: host_cost(device, pass)?, cudnn })
    };
    let (forward, backward) = (rate(2.0, &forward, alone_forward)?, rate(5.0, &backward, alone_backward)?);
    Ok(AttentionRate { name: name.to_string(), num_tokens, forward, backward })
}

/// For each pass, the time of the op and of cuDNN alone, measured in turns so that both see the same clock.
fn alone(
    device: &Arc<CudaDevice>,
    cudnn: &dnn::Attention,
    batch: &Batch,
    (index, attended): (&DocumentIndex, &Attended),
    ops: [&dyn Fn() -> Result<()>; 2],
) -> Result<[[Duration; 2]; 2]> {
    const TURNS: usize = 5;
    let documents = Documents::send(index, device)?;
    let qkv = [&batch.q, &batch.k, &batch.v];
    let Attended { context, log_sum_exp } = attended.clone();
    let attended = dnn::Attended { context, log_sum_exp };
    let forward = || cudnn.forward(qkv, &documents, batch.scale).map(drop);
    let backward = || cudnn.backward(&batch.dcontext, qkv, &attended, &documents, batch.scale).map(drop);
    let alone: [&dyn Fn() -> std::result::Result<(), DeviceError>; 2] = [&forward, &backward];
    let mut medians = [[Duration::ZERO; 2]; 2];
    for ((op, alone), medians) in ops.into_iter().zip(alone).zip(&mut medians) {
        let (mut of_op, mut of_cudnn) = (Vec::new(), Vec::new());
        op()?;
        alone()?;
        for _ in 0..TURNS {
            of_op.extend(runs(device, CALLS, op)?.1);
            of_cudnn.extend(runs(device, CALLS, alone)?.1);
        }
        *medians = [median(of_op), median(of_cudnn)];
    }
    Ok(medians)
}

/// The mean time until a call returns.
fn host_cost(device: &Arc<CudaDevice>, pass: &dyn Fn() -> Result<()>) -> Result<Duration> {
    device.finish()?;
    let begun = Instant::now();
    for _ in 0..CALLS {
        pass()?;
    }
    let cost = begun.elapsed() / CALLS as u32;
    device.finish()?;
    Ok(cost)
}
