//! Softmax attention, causal inside each segment and blind across segments. Query head `i` uses key and value head
//! `i / (nq/nk)`. Cost is that of the causal triangle of each segment, rounded up to tiles; scores exist for one tile
//! at a time. Results are new tensors; softmax is in f32 with its maximum subtracted, sums over it in f64 over short
//! f32 runs, so results agree with exact arithmetic to about 1e-6 of the largest value.
//!
//! On a GPU, heads of 64 and 128 in bf16 go to cuDNN, in whose backward pass sums over blocks are added up in the order
//! in which the blocks finish, unless the device is to take sums in a fixed order. Everything else, and what cuDNN would
//! need too much memory for, goes to our own kernels: heads of up to 128, sums in f32 and in a fixed order. Those for
//! bf16 run on matrix units, for which probabilities and gradients of scores are rounded to bf16; those for f32 are plain
//! multiplications and additions, there to be right, and slow.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, q query heads, k key and value heads, d head size")]

mod cuda;
mod heads;
mod host;
mod host_short;
mod matrix_units;
mod own_kernels;
mod plain;
#[cfg(test)]
mod reference;
mod results;
mod segment;
mod segments;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::CudaDevice;
use scout_device::{DeviceError, Tensor};

pub use results::{Attended, QkvGradients};
pub use segments::Segments;

use crate::{Result, check};
use heads::Heads;

/// Whether attention of this element type and head size is cuDNN's, on GPUs that have it. Else it is our own kernels'.
pub fn suits_cudnn(dtype: DType, head_size: usize) -> bool {
    cuda::suits_cudnn(dtype, head_size)
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
    must_fit(dcontext_Tqd, q_Tqd, attended)?;
    let Attended { context, log_sum_exp } = attended;
    match check::place(WHAT, &[dcontext_Tqd, q_Tqd, k_Tkd, v_Tkd, context, log_sum_exp])? {
        None => host::backward(dcontext_Tqd, qkv, attended, segments.borders(), heads),
        Some(device) => cuda::backward(device, dcontext_Tqd, qkv, attended, (segments, heads)),
    }
}

/// [`forward`] by our own kernels where it would ask cuDNN: to compare them.
pub(crate) fn forward_by_own_kernels(
    device: &Arc<CudaDevice>,
    qkv: [&Tensor; 3],
    segments: &Segments,
    scale: f32,
) -> Result<Attended> {
    cuda::own_forward(device, qkv, segments, check(qkv, segments, scale)?)
}

/// [`backward`] likewise.
pub(crate) fn backward_by_own_kernels(
    device: &Arc<CudaDevice>,
    dcontext_Tqd: &Tensor,
    qkv: [&Tensor; 3],
    attended: &Attended,
    (segments, scale): (&Segments, f32),
) -> Result<QkvGradients> {
    let heads = check(qkv, segments, scale)?;
    must_fit(dcontext_Tqd, qkv[0], attended)?;
    cuda::own_backward(device, dcontext_Tqd, qkv, attended, (segments, heads))
}

fn must_fit(dcontext: &Tensor, q: &Tensor, attended: &Attended) -> Result<()> {
    for tensor in [dcontext, &attended.context] {
        tensor.expect_dims("attention backward", q.dims())?;
    }
    attended.log_sum_exp.expect_dims("attention backward: log sum exp", &q.dims()[..2])
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
