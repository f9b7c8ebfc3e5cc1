//! Softmax attention, causal inside each segment and blind across segments. Query head `i` uses key and value head
//! `i / (nq/nk)`. Cost is that of the causal triangle of each segment, rounded up to tiles; scores exist for one tile
//! at a time. Results are new tensors; softmax is in f32 with its maximum subtracted, sums over it in f64 over short
//! f32 runs, so results agree with exact arithmetic to about 1e-6 of the largest value.
//!
//! On a GPU, heads of 64 and 128 in bf16 go to cuDNN, in whose backward pass sums over blocks are added up in the order
//! in which the blocks finish. Everything else goes to our own kernels, f32 or bf16: heads of up to 128, plain
//! multiplications and additions in f32, sums in a fixed order. They are there to be right, and are slow; a version of
//! them on matrix units, for bf16 on machines without cuDNN, is missing.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, q query heads, k key and value heads, d head size")]

mod cuda;
mod host;
mod host_short;
#[cfg(test)]
mod reference;
mod segment;
mod segments;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::CudaDevice;
use scout_device::{DeviceError, Tensor};

pub use segments::Segments;

use crate::{Result, check};

#[derive(Debug, Clone)]
pub struct Attended {
    /// `[T, nq, d]`.
    pub context: Tensor,
    /// `[T, nq]`, of the scaled scores; kept for the backward pass, which makes the probabilities again.
    pub log_sum_exp: Tensor,
}

/// Shaped like the tensors they are gradients of.
#[derive(Debug, Clone)]
pub struct QkvGradients {
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
}

/// Numbers that every tile needs.
#[derive(Debug, Clone, Copy)]
struct Heads {
    query: usize,
    kv: usize,
    size: usize,
    scale: f32,
}

impl Heads {
    /// Query heads that share a key and value head.
    fn group(self) -> usize {
        self.query / self.kv
    }

    fn query_width(self) -> usize {
        self.query * self.size
    }

    fn kv_width(self) -> usize {
        self.kv * self.size
    }
}

/// Whether attention of this element type and head size is cuDNN's on `device`.
pub fn is_by_cudnn(device: &CudaDevice, dtype: DType, head_size: usize) -> bool {
    cuda::is_by_cudnn(device, dtype, head_size)
}

/// `softmax(scale · q·kᵀ)·v`.
pub fn forward(q_Tqd: &Tensor, k_Tkd: &Tensor, v_Tkd: &Tensor, segments: &Segments, scale: f32) -> Result<Attended> {
    let qkv = [q_Tqd, k_Tkd, v_Tkd];
    let heads = check(qkv, segments, scale)?;
    match check::place("attention", &qkv)? {
        None => host::forward(qkv, segments.borders(), heads),
        Some(device) => cuda::forward(device, qkv, segments, heads),
    }
}

/// Gradients of all query heads of a group add up in the key and value head they share.
pub fn backward(
    dcontext_Tqd: &Tensor,
    q_Tqd: &Tensor,
    k_Tkd: &Tensor,
    v_Tkd: &Tensor,
    attended: &Attended,
    segments: &Segments,
    scale: f32,
) -> Result<QkvGradients> {
    const WHAT: &str = "attention backward";
    let qkv = [q_Tqd, k_Tkd, v_Tkd];
    let heads = check(qkv, segments, scale)?;
    for tensor in [dcontext_Tqd, &attended.context] {
        tensor.expect_dims(WHAT, q_Tqd.dims())?;
    }
    attended.log_sum_exp.expect_dims("attention backward: log sum exp", &q_Tqd.dims()[..2])?;
    let Attended { context, log_sum_exp } = attended;
    match check::place(WHAT, &[dcontext_Tqd, q_Tqd, k_Tkd, v_Tkd, context, log_sum_exp])? {
        None => host::backward(dcontext_Tqd, qkv, attended, segments.borders(), heads),
        Some(device) => cuda::backward(device, dcontext_Tqd, qkv, attended, (segments, heads)),
    }
}

/// Both passes by our own kernels where [`forward`] and [`backward`] would ask cuDNN: to compare them.
pub(crate) fn both_by_own_kernels(
    device: &Arc<CudaDevice>,
    dcontext_Tqd: &Tensor,
    qkv: [&Tensor; 3],
    segments: &Segments,
    scale: f32,
) -> Result<(Attended, QkvGradients)> {
    let heads = check(qkv, segments, scale)?;
    dcontext_Tqd.expect_dims("attention backward", qkv[0].dims())?;
    let attended = cuda::plain_forward(device, qkv, segments, heads)?;
    let gradients = cuda::plain_backward(device, dcontext_Tqd, qkv, &attended, (segments, heads))?;
    Ok((attended, gradients))
}

fn check([q, k, v]: [&Tensor; 3], segments: &Segments, scale: f32) -> Result<Heads> {
    const WHAT: &str = "attention";
    let (num_tokens, query, size) = q.dims3(WHAT)?;
    let (_, kv, _) = k.dims3(WHAT)?;
    k.expect_dims("attention: keys", &[num_tokens, kv, size])?;
    v.expect_dims("attention: values", &[num_tokens, kv, size])?;
    if query == 0 || kv == 0 || size == 0 || !query.is_multiple_of(kv) {
        let expected = format!("key heads that divide {query} query heads");
        return Err(DeviceError::Shape { what: WHAT, found: k.shape().clone(), expected });
    }
    check::offsets("attention: segments", segments.borders(), num_tokens)?;
    Ok(Heads { query, kv, size, scale })
}
