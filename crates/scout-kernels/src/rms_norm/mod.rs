//! RMS norm over the last dimension: `y = (x · r) ⊙ weight` with `r = 1/√(mean(x²) + ε)`. Results are new tensors.
//! The mean is within 1e-6 of the exact one, everything else is rounded once per operation. The gradient of the weight
//! is for those who train it: a sum over all rows in their order, taken in f64 and rounded once.
//! On a GPU all tensors are f32 or all bf16, but for the inverse rms, which is f32; arithmetic is f32.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D model width")]

mod cuda;
pub(crate) mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use scout_device::Tensor;

use crate::{Result, check};

#[derive(Debug, Clone)]
pub struct Normed {
    /// `[T, D]`.
    pub y: Tensor,
    /// `[T]`, kept for the backward pass.
    pub inverse_rms: Tensor,
}

pub fn forward(x_TD: &Tensor, weight_D: &Tensor, epsilon: f32) -> Result<Normed> {
    let (_, width) = x_TD.dims2("rms norm: input")?;
    weight_D.expect_dims("rms norm: weight", &[width])?;
    match check::place("rms norm", &[x_TD, weight_D])? {
        None => host::forward(x_TD, weight_D, epsilon),
        Some(device) => cuda::forward(device, x_TD, weight_D, epsilon),
    }
}

/// The gradient of `x`: `r·(g − x·r²·mean(g ⊙ x))` with `g = dy ⊙ weight`, and `residual` beside it where `x` also goes
/// round the norm.
pub fn backward(
    dy_TD: &Tensor,
    x_TD: &Tensor,
    inverse_rms_T: &Tensor,
    weight_D: &Tensor,
    residual_TD: Option<&Tensor>,
) -> Result<Tensor> {
    const WHAT: &str = "rms norm backward";
    let (num_tokens, width) = x_TD.dims2("rms norm backward: input")?;
    dy_TD.expect_dims("rms norm backward: gradient", &[num_tokens, width])?;
    inverse_rms_T.expect_dims("rms norm backward: inverse rms", &[num_tokens])?;
    weight_D.expect_dims("rms norm backward: weight", &[width])?;
    if let Some(residual) = residual_TD {
        residual.expect_dims("rms norm backward: residual", &[num_tokens, width])?;
        check::place(WHAT, &[x_TD, residual])?;
    }
    match check::place(WHAT, &[dy_TD, x_TD, inverse_rms_T, weight_D])? {
        None => host::backward(dy_TD, x_TD, inverse_rms_T, weight_D, residual_TD),
        Some(device) => cuda::backward(device, dy_TD, [x_TD, inverse_rms_T, weight_D], residual_TD),
    }
}

/// The gradient of `weight`: `Σ_T dy ⊙ x·r`.
pub fn weight_gradient(dy_TD: &Tensor, x_TD: &Tensor, inverse_rms_T: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "rms norm, gradient of the weight";
    let (num_tokens, width) = x_TD.dims2(WHAT)?;
    dy_TD.expect_dims(WHAT, &[num_tokens, width])?;
    inverse_rms_T.expect_dims(WHAT, &[num_tokens])?;
    host::weight_gradient(dy_TD, x_TD, inverse_rms_T)
}
