//! Products of two matrices. Nothing is broadcast, nothing accumulates: every product is a new f32 tensor. A product
//! without rows or columns is empty, one over an inner dimension of 0 is zero. Sums over the inner dimension are in
//! f32, in blocks, so a result is within about `1e-6 · Σ|a·b|` of the exact one.
#![expect(non_snake_case, reason = "shape suffixes: M rows, N columns, K the inner dimension")]

pub(crate) mod host;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use scout_core::DType;
use scout_device::{DeviceError, Tensor};

use crate::Result;

/// `a·b`.
pub fn nn(a_MK: &Tensor, b_KN: &Tensor) -> Result<Tensor> {
    check("matmul", (a_MK, 1), (b_KN, 0))?;
    host::nn(a_MK.host(), b_KN.host())
}

/// `a·bᵀ`.
pub fn nt(a_MK: &Tensor, b_NK: &Tensor) -> Result<Tensor> {
    check("matmul with the second factor transposed", (a_MK, 1), (b_NK, 1))?;
    host::nt(a_MK.host(), b_NK.host())
}

/// `aᵀ·b`.
pub fn tn(a_KM: &Tensor, b_KN: &Tensor) -> Result<Tensor> {
    check("matmul with the first factor transposed", (a_KM, 0), (b_KN, 0))?;
    host::tn(a_KM.host(), b_KN.host())
}

/// Two matrices of f32 whose inner dimensions agree.
fn check(what: &'static str, (a, a_inner): (&Tensor, usize), (b, b_inner): (&Tensor, usize)) -> Result<()> {
    a.dims2(what)?;
    b.dims2(what)?;
    for found in [a.dtype(), b.dtype()] {
        if found != DType::F32 {
            return Err(DeviceError::DType { what, found, expected: DType::F32 });
        }
    }
    let (inner, found) = (a.dims()[a_inner], b.dims()[b_inner]);
    if inner != found {
        let expected = format!("{inner} in dimension {b_inner}, to fit {}", a.shape());
        return Err(DeviceError::Shape { what, found: b.shape().clone(), expected });
    }
    Ok(())
}
