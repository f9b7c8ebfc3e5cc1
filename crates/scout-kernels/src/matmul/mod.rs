//! Products of two matrices. Nothing is broadcast, nothing accumulates: every product is a new f32 tensor. A product
//! without rows or columns is empty, one over an inner dimension of 0 is zero. Sums over the inner dimension are in
//! f32, in blocks, so a result is within about `1e-6 · Σ|a·b|` of the exact one, before it is rounded.
//!
//! On a GPU the factors may be bf16. `nn` and `nt` then are bf16 too; `tn`, which sums over tokens to gradients of what
//! is trained, is f32 always.
#![expect(non_snake_case, reason = "shape suffixes: M rows, N columns, K the inner dimension")]

mod cuda;
pub(crate) mod host;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use scout_core::DType;
use scout_device::cuda::DeviceBuffer;
use scout_device::{DeviceError, Tensor};

use crate::{Result, check};

/// `a·b`.
pub fn nn(a_MK: &Tensor, b_KN: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "matmul";
    check(WHAT, (a_MK, 1), (b_KN, 0))?;
    match check::place(WHAT, &[a_MK, b_KN])? {
        None => host::nn(a_MK.host()?, b_KN.host()?),
        Some(device) => cuda::nn(device, a_MK, b_KN),
    }
}

/// `a·bᵀ`.
pub fn nt(a_MK: &Tensor, b_NK: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "matmul with the second factor transposed";
    check(WHAT, (a_MK, 1), (b_NK, 1))?;
    match check::place(WHAT, &[a_MK, b_NK])? {
        None => host::nt(a_MK.host()?, b_NK.host()?),
        Some(device) => cuda::nt(device, a_MK, b_NK),
    }
}

/// `aᵀ·b`.
pub fn tn(a_KM: &Tensor, b_KN: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "matmul with the first factor transposed";
    check(WHAT, (a_KM, 0), (b_KN, 0))?;
    match check::place(WHAT, &[a_KM, b_KN])? {
        None => host::tn(a_KM.host()?, b_KN.host()?),
        Some(device) => cuda::tn(device, a_KM, b_KN),
    }
}

/// Adds `scale · aᵀ·b`, row by row, to the elements of `sums` from `start` on: gradients on a GPU, where they are
/// collected. `sums` is f32.
pub fn add_tn(sums: &mut DeviceBuffer, start: usize, a_KM: &Tensor, b_KN: &Tensor, scale: f32) -> Result<()> {
    check("sum of matmuls with the first factor transposed", (a_KM, 0), (b_KN, 0))?;
    cuda::add_tn(sums, start, [a_KM, b_KN], scale)
}

/// Two matrices of one element type, f32 or bf16, whose inner dimensions agree.
fn check(what: &'static str, (a, a_inner): (&Tensor, usize), (b, b_inner): (&Tensor, usize)) -> Result<()> {
    a.dims2(what)?;
    b.dims2(what)?;
    let expected = if a.dtype() == DType::BF16 { DType::BF16 } else { DType::F32 };
    for found in [a.dtype(), b.dtype()] {
        if found != expected {
            return Err(DeviceError::DType { what, found, expected });
        }
    }
    let (inner, found) = (a.dims()[a_inner], b.dims()[b_inner]);
    if inner != found {
        let expected = format!("{inner} in dimension {b_inner}, to fit {}", a.shape());
        return Err(DeviceError::Shape { what, found: b.shape().clone(), expected });
    }
    Ok(())
}
