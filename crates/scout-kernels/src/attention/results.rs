//! What the two passes answer.

use scout_device::Tensor;

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
