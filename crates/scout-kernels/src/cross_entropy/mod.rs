//! The loss of the head without its logits: rows are scored positions only, taken in chunks whose logits stay below
//! 64 MiB (or one row). Results are new tensors. The maximum is subtracted before exponentials, their sum is taken in
//! f64 over short f32 runs; a token's loss is as accurate as its logits.
//!
//! On a GPU input and head are both f32 or both bf16; targets, weights and losses are as on the host. Logits have the
//! element type of the head, in chunks of up to 1 GiB; the losses of bf16 are those of logits rounded to it. A target
//! outside of the vocabulary, which the host refuses, gives a loss that is not a number.
#![expect(non_snake_case, reason = "shape suffixes: N scored positions, D model width, V vocabulary")]

pub(crate) mod cuda;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use scout_core::{ByteCount, DType};
use scout_device::{DeviceError, Tensor};

use crate::{Result, check};

/// Chunks have at most this many logits, or one row.
const LOGITS_PER_CHUNK: usize = (64 << 20) / size_of::<f32>();

const WHAT: &str = "cross entropy";

#[derive(Debug, Clone)]
pub struct HeadLoss {
    /// `[N]`, unweighted.
    pub token_loss: Tensor,
    /// `[N, D]`, the gradient of Σ weight · loss.
    pub dx: Tensor,
}

/// A loss whose head is trained as well.
#[derive(Debug, Clone)]
pub struct TrainedHeadLoss {
    pub loss: HeadLoss,
    /// `[V, D]`, the gradient of Σ weight · loss by the head.
    pub dweight: Tensor,
}

/// Bytes of the logits that exist at one time on the host, where the gradient takes their place, for so many scored
/// positions.
pub fn logits_on_host(num_rows: usize, vocabulary: usize) -> ByteCount {
    DType::F32.size() * (num_rows * vocabulary).min(LOGITS_PER_CHUNK.max(vocabulary)) as u64
}

/// The same on a GPU, in the element type of the head.
pub fn logits_on_gpu(num_rows: usize, vocabulary: usize, dtype: DType) -> ByteCount {
    cuda::bytes_of_chunk(num_rows, vocabulary, dtype)
}

/// The losses alone: `[N]`.
pub fn forward(x_ND: &Tensor, weight_VD: &Tensor, targets_N: &Tensor) -> Result<Tensor> {
    check(x_ND, weight_VD, targets_N)?;
    match check::place(WHAT, &[x_ND, weight_VD, targets_N])? {
        None => host::forward(x_ND, weight_VD, targets_N, LOGITS_PER_CHUNK),
        Some(device) => cuda::forward(device, [x_ND, weight_VD, targets_N]),
    }
}

/// Losses, and the gradient of their sum under `weights`: `weight · (softmax − onehot) · W`.
pub fn forward_backward(x_ND: &Tensor, weight_VD: &Tensor, targets_N: &Tensor, weights_N: &Tensor) -> Result<HeadLoss> {
    check(x_ND, weight_VD, targets_N)?;
    weights_N.expect_dims("cross entropy: weights", &[x_ND.dims()[0]])?;
    match check::place(WHAT, &[x_ND, weight_VD, targets_N, weights_N])? {
        None => host::forward_backward(x_ND, weight_VD, (targets_N, weights_N), LOGITS_PER_CHUNK),
        Some(device) => cuda::forward_backward(device, [x_ND, weight_VD, targets_N], weights_N),
    }
}

/// The same with the gradient of the head: `Σ_N weight · (softmax − onehot)ᵀ · x`, a product for each chunk, the chunks
/// added in their order.
pub fn forward_backward_of_head(
    x_ND: &Tensor,
    weight_VD: &Tensor,
    targets_N: &Tensor,
    weights_N: &Tensor,
) -> Result<TrainedHeadLoss> {
    check(x_ND, weight_VD, targets_N)?;
    weights_N.expect_dims("cross entropy: weights", &[x_ND.dims()[0]])?;
    match check::place(WHAT, &[x_ND, weight_VD, targets_N, weights_N])? {
        None => host::forward_backward_of_head(x_ND, weight_VD, (targets_N, weights_N), LOGITS_PER_CHUNK),
        Some(device) => cuda::forward_backward_of_head(device, [x_ND, weight_VD, targets_N], weights_N),
    }
}

fn check(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<()> {
    let (num_rows, width) = x.dims2("cross entropy: input")?;
    let (vocabulary, found) = weight.dims2("cross entropy: head")?;
    if found != width {
        let expected = format!("{width} columns");
        return Err(DeviceError::Shape { what: "cross entropy: head", found: weight.shape().clone(), expected });
    }
    targets.expect_dims("cross entropy: targets", &[num_rows])?;
    match targets.cuda() {
        None => check::indices("cross entropy: targets", &targets.u32s()?, vocabulary),
        Some(_) => Ok(()),
    }
}
