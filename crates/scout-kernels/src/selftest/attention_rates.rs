//! How fast attention is through its op, beside our own kernels and cuDNN called directly, in the same run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::CudaDevice;
use scout_device::cuda::attention::{self as gpu_attention, Documents};
use scout_device::cuda::dnn::{self, DocumentIndex, SumOrder};

use super::meter::{median, runs};
use crate::attention::{self, Segments};
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
    /// The time of our own kernels, and what it means. They are what the op uses where there is no cuDNN.
    pub own: Duration,
    pub own_tflops: f64,
    /// The time of cuDNN called directly; none where there is none.
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
    let qkv = [q, k, v];
    let attended = attention::forward(q, k, v, segments, *scale)?;
    let forward = || attention::forward(q, k, v, segments, *scale).map(drop);
    let backward = || attention::backward(dcontext, q, k, v, &attended, segments, *scale).map(drop);
    let own_forward = || attention::forward_by_own_kernels(device, qkv, segments, *scale).map(drop);
    let own_backward = || {
        let pass = (segments, *scale);
        attention::backward_by_own_kernels(device, dcontext, qkv, &attended, pass).map(drop)
    };
    let (mut forwards, mut backwards): (Vec<Pass>, Vec<Pass>) =
        (vec![&forward, &own_forward], vec![&backward, &own_backward]);
    let documents = Documents::send(&index, device)?;
    let saved =
        gpu_attention::Attended { context: attended.context.clone(), log_sum_exp: attended.log_sum_exp.clone() };
    let cudnn = device.attention().ok();
    let cudnn_forward = cudnn.map(|cudnn| || cudnn.forward(qkv, &documents, *scale).map(drop));
    let cudnn_backward = cudnn.map(|cudnn| || cudnn.backward(dcontext, qkv, &saved, &documents, *scale).map(drop));
    forwards.extend(cudnn_forward.as_ref().map(|pass| pass as Pass));
    backwards.extend(cudnn_backward.as_ref().map(|pass| pass as Pass));
    let pairs: f64 = lengths.iter().map(|&length| f64::from(length).powi(2) / 2.0).sum();
    let product = 2.0 * pairs * (HEADS.query * HEADS.size) as f64;
    let forward = pass_rate(device, 2.0 * product, &forwards)?;
    let backward = pass_rate(device, 5.0 * product, &backwards)?;
    Ok(AttentionRate { name: name.to_string(), num_tokens, forward, backward })
}

type Pass<'a> = &'a dyn Fn() -> Result<()>;

/// Of the op, our own kernels, and cuDNN where there is one: measured in turns, so that all see the same clock.
fn pass_rate(device: &Arc<CudaDevice>, flops: f64, passes: &[Pass]) -> Result<PassRate> {
    const TURNS: usize = 5;
    let mut times = vec![Vec::new(); passes.len()];
    for pass in passes {
        pass()?;
    }
    for _ in 0..TURNS {
        for (pass, times) in passes.iter().zip(&mut times) {
            times.extend(runs(device, CALLS, pass)?.1);
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    let tflops = |time: Duration| flops / time.as_secs_f64() / 1e12;
    Ok(PassRate {
        time: medians[0],
        tflops: tflops(medians[0]),
        host: host_cost(device, passes[0])?,
        own: medians[1],
        own_tflops: tflops(medians[1]),
        cudnn: medians.get(2).copied(),
    })
}

/// The mean time until a call returns.
fn host_cost(device: &Arc<CudaDevice>, pass: Pass) -> Result<Duration> {
    device.finish()?;
    let begun = Instant::now();
    for _ in 0..CALLS {
        pass()?;
    }
    let cost = begun.elapsed() / CALLS as u32;
    device.finish()?;
    Ok(cost)
}
