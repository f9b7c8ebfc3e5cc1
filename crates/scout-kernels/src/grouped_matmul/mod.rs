//! One product per expert over rows that are sorted by expert: rows `offsets[e]..offsets[e + 1]` belong to expert `e`.
//! Results are new tensors, nothing accumulates, and experts without rows cost nothing. Accuracy and element types are
//! those of `matmul`.
#![expect(non_snake_case, reason = "shape suffixes: T rows, E experts, K and N the two sides of an expert's matrix")]

pub(crate) mod cuda;
mod host;
pub(crate) mod one_launch;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{CudaDevice, DeviceBuffer};
use scout_device::{DeviceError, Matrices, Tensor};

use crate::{Result, check};

/// Row by row `a·b_e`: `[T, N]`.
pub fn nn(a_TK: &Tensor, b_EKN: impl Into<Matrices>, offsets: &[u32]) -> Result<Tensor> {
    const WHAT: &str = "grouped matmul";
    let b_EKN = &b_EKN.into();
    let (num_experts, k, n) = b_EKN.dims3(WHAT)?;
    check(WHAT, (a_TK, Some(k)), num_experts, offsets)?;
    match place(WHAT, a_TK, b_EKN)? {
        None => host::by_expert(a_TK, b_EKN, offsets, n, crate::matmul::host::nn),
        Some(device) => cuda::by_expert(device, a_TK, b_EKN, offsets, false),
    }
}

/// Row by row `a·b_eᵀ`: `[T, K]`.
pub fn nt(a_TN: &Tensor, b_EKN: impl Into<Matrices>, offsets: &[u32]) -> Result<Tensor> {
    const WHAT: &str = "grouped matmul with the second factor transposed";
    let b_EKN = &b_EKN.into();
    let (num_experts, k, n) = b_EKN.dims3(WHAT)?;
    check(WHAT, (a_TN, Some(n)), num_experts, offsets)?;
    match place(WHAT, a_TN, b_EKN)? {
        None => host::by_expert(a_TN, b_EKN, offsets, k, crate::matmul::host::nt),
        Some(device) => cuda::by_expert(device, a_TN, b_EKN, offsets, true),
    }
}

/// Per expert `a_eᵀ·b_e`: `[E, K, N]`, zeros for experts without rows.
pub fn tn(a_TK: &Tensor, b_TN: &Tensor, offsets: &[u32]) -> Result<Tensor> {
    const WHAT: &str = "grouped matmul with the first factor transposed";
    check(WHAT, (a_TK, None), offsets.len().saturating_sub(1), offsets)?;
    check(WHAT, (b_TN, None), offsets.len().saturating_sub(1), offsets)?;
    match check::place(WHAT, &[a_TK, b_TN])? {
        None => host::sum_of_outer_products(a_TK, b_TN, offsets),
        Some(device) => cuda::sum_of_outer_products(device, a_TK, b_TN, offsets),
    }
}

/// Adds `scale · a_eᵀ·b_e` of every expert, one behind the other, to the elements of `sums` from `start` on, on a GPU.
/// Experts without rows add nothing. `sums` is f32.
pub fn add_tn(
    sums: &mut DeviceBuffer,
    start: usize,
    [a_TK, b_TN]: [&Tensor; 2],
    offsets: &[u32],
    scale: f32,
) -> Result<()> {
    const WHAT: &str = "sum of grouped matmuls with the first factor transposed";
    check(WHAT, (a_TK, None), offsets.len().saturating_sub(1), offsets)?;
    check(WHAT, (b_TN, None), offsets.len().saturating_sub(1), offsets)?;
    cuda::add_tn(sums, start, [a_TK, b_TN], offsets, scale)
}

/// As [`check::place`].
fn place<'a>(what: &'static str, a: &'a Tensor, b: &'a Matrices) -> Result<Option<&'a Arc<CudaDevice>>> {
    check::place(what, &std::iter::once(a).chain(b.tensors()).collect::<Vec<_>>())
}

/// A matrix of f32 or bf16 with `width` columns whose rows are shared out among the experts.
fn check(what: &'static str, (a, width): (&Tensor, Option<usize>), num_experts: usize, offsets: &[u32]) -> Result<()> {
    let (num_rows, found_width) = a.dims2(what)?;
    if !matches!(a.dtype(), DType::F32 | DType::BF16) {
        return Err(DeviceError::DType { what, found: a.dtype(), expected: DType::F32 });
    }
    if width.is_some_and(|width| width != found_width) {
        let expected = format!("{} columns", width.unwrap_or(found_width));
        return Err(DeviceError::Shape { what, found: a.shape().clone(), expected });
    }
    check::offsets(what, offsets, num_rows)?;
    if offsets.len() != num_experts + 1 {
        let found = offsets.len();
        return Err(check::refusal(
            what,
            format!("found {found} offsets, expected one more than {num_experts} experts"),
        ));
    }
    Ok(())
}
