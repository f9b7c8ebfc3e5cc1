//! Softmax attention, causal inside each segment and blind across segments. Query head `i` uses key and value head
//! `i / (nq/nk)`. Cost is that of the causal triangle of each segment, rounded up to tiles; scores exist for one tile
//! at a time. Results are new tensors; softmax is in f32 with its maximum subtracted, sums over it in f64 over short
//! f32 runs, so results agree with exact arithmetic to about 1e-6 of the largest value.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, q query heads, k key and value heads, d head size")]

mod host;
mod host_short;
#[cfg(test)]
mod reference;
mod segment;
#[cfg(test)]
mod tests;

use scout_device::{DeviceError, Tensor};

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

/// `softmax(scale · q·kᵀ)·v`. Tokens `segments[i]..segments[i + 1]` form a segment.
pub fn forward(q_Tqd: &Tensor, k_Tkd: &Tensor, v_Tkd: &Tensor, segments: &[u32], scale: f32) -> Result<Attended> {
    let heads = check([q_Tqd, k_Tkd, v_Tkd], segments, scale)?;
    host::forward([q_Tqd, k_Tkd, v_Tkd], segments, heads)
}

/// Gradients of all query heads of a group add up in the key and value head they share.
pub fn backward(
    dcontext_Tqd: &Tensor,
    q_Tqd: &Tensor,
    k_Tkd: &Tensor,
    v_Tkd: &Tensor,
    attended: &Attended,
    segments: &[u32],
    scale: f32,
) -> Result<QkvGradients> {
    let heads = check([q_Tqd, k_Tkd, v_Tkd], segments, scale)?;
    for tensor in [dcontext_Tqd, &attended.context] {
        tensor.expect_dims("attention backward", q_Tqd.dims())?;
    }
    attended.log_sum_exp.expect_dims("attention backward: log sum exp", &q_Tqd.dims()[..2])?;
    host::backward(dcontext_Tqd, [q_Tqd, k_Tkd, v_Tkd], attended, segments, heads)
}

fn check([q, k, v]: [&Tensor; 3], segments: &[u32], scale: f32) -> Result<Heads> {
    const WHAT: &str = "attention";
    let (num_tokens, query, size) = q.dims3(WHAT)?;
    let (_, kv, _) = k.dims3(WHAT)?;
    k.expect_dims("attention: keys", &[num_tokens, kv, size])?;
    v.expect_dims("attention: values", &[num_tokens, kv, size])?;
    if query == 0 || kv == 0 || size == 0 || !query.is_multiple_of(kv) {
        let expected = format!("key heads that divide {query} query heads");
        return Err(DeviceError::Shape { what: WHAT, found: k.shape().clone(), expected });
    }
    check::offsets("attention: segments", segments, num_tokens)?;
    Ok(Heads { query, kv, size, scale })
}
