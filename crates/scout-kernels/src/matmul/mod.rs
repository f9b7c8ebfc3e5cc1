//! Products of two matrices, of which a factor may be some columns of a wider one. Nothing is broadcast. A product
//! without rows or columns is empty, one over an inner dimension of 0 is zero. Sums over the inner dimension are in f32,
//! in blocks, so a result is within about `1e-6 · Σ|a·b|` of the exact one, before it is rounded.
//!
//! On a GPU the factors may be bf16. `nn` and `nt` then are bf16 too; `tn`, which sums over tokens to gradients of what
//! is trained, is f32 always. What is added to a sum is added in f32 and rounded once with it.
#![expect(non_snake_case, reason = "shape suffixes: M rows, N columns, K the inner dimension")]

mod columns;
mod cuda;
pub(crate) mod host;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use scout_core::DType;
use scout_device::cuda::DeviceBuffer;
use scout_device::{DeviceError, Tensor};

pub use columns::Columns;

use crate::{Result, check};

/// `a·b`.
pub fn nn<'a>(a_MK: impl Into<Columns<'a>>, b_KN: impl Into<Columns<'a>>) -> Result<Tensor> {
    add_nn(None, a_MK, b_KN)
}

/// `a·bᵀ`.
pub fn nt<'a>(a_MK: impl Into<Columns<'a>>, b_NK: impl Into<Columns<'a>>) -> Result<Tensor> {
    add_nt(None, a_MK, b_NK)
}

/// `sum + a·b`; without a sum the product alone. The memory of `sum` becomes that of the result, so nothing else may look
/// at it, which a GPU checks: adding there costs next to nothing, because the product passes by anyway.
pub fn add_nn<'a>(
    sum_MN: Option<Tensor>,
    a_MK: impl Into<Columns<'a>>,
    b_KN: impl Into<Columns<'a>>,
) -> Result<Tensor> {
    const WHAT: &str = "matmul";
    let (a, b) = (a_MK.into(), b_KN.into());
    let [(m, _), (_, n)] = check(WHAT, (a, Inner::Columns), (b, Inner::Rows))?;
    check_sum(WHAT, sum_MN.as_ref(), [m, n], a.tensor)?;
    match check::place(WHAT, &[a.tensor, b.tensor])? {
        None => host::added(sum_MN, host::nn(&a.on_host()?, &b.on_host()?)?),
        Some(device) => cuda::added(device, sum_MN, [a.on_gpu(false), b.on_gpu(false)]),
    }
}

/// The same for `a·bᵀ`.
pub fn add_nt<'a>(
    sum_MN: Option<Tensor>,
    a_MK: impl Into<Columns<'a>>,
    b_NK: impl Into<Columns<'a>>,
) -> Result<Tensor> {
    const WHAT: &str = "matmul with the second factor transposed";
    let (a, b) = (a_MK.into(), b_NK.into());
    let [(m, _), (n, _)] = check(WHAT, (a, Inner::Columns), (b, Inner::Columns))?;
    check_sum(WHAT, sum_MN.as_ref(), [m, n], a.tensor)?;
    match check::place(WHAT, &[a.tensor, b.tensor])? {
        None => host::added(sum_MN, host::nt(&a.on_host()?, &b.on_host()?)?),
        Some(device) => cuda::added(device, sum_MN, [a.on_gpu(false), b.on_gpu(true)]),
    }
}

/// `a·b` of each pair, side by side: `[M, ΣN]`. Fails without a pair.
pub fn side_by_side_nn(pairs: &[(Columns, &Tensor)]) -> Result<Tensor> {
    side_by_side(pairs, Inner::Rows)
}

/// The same for `a·bᵀ`.
pub fn side_by_side_nt(pairs: &[(Columns, &Tensor)]) -> Result<Tensor> {
    side_by_side(pairs, Inner::Columns)
}

fn side_by_side(pairs: &[(Columns, &Tensor)], inner_of_b: Inner) -> Result<Tensor> {
    const WHAT: &str = "matmuls side by side";
    let Some(&(first, _)) = pairs.first() else {
        return Err(check::refusal(WHAT, "found no pair of factors, expected at least one".to_string()));
    };
    let (num_rows, _) = first.dims(WHAT)?;
    for &(a, b) in pairs {
        check(WHAT, (a, Inner::Columns), (b.into(), inner_of_b))?;
        let found = a.tensor.dims()[0];
        if found != num_rows || a.tensor.dtype() != first.tensor.dtype() {
            let problem = format!("found {found} rows of {}, expected {num_rows} as before", a.tensor.dtype());
            return Err(check::refusal(WHAT, problem));
        }
    }
    let factors: Vec<&Tensor> = pairs.iter().flat_map(|&(a, b)| [a.tensor, b]).collect();
    let transposed = inner_of_b == Inner::Columns;
    match check::place(WHAT, &factors)? {
        None => host::side_by_side(pairs, transposed),
        Some(device) => cuda::side_by_side(device, pairs, transposed),
    }
}

/// `aᵀ·b`.
pub fn tn<'a>(a_KM: impl Into<Columns<'a>>, b_KN: impl Into<Columns<'a>>) -> Result<Tensor> {
    const WHAT: &str = "matmul with the first factor transposed";
    let (a, b) = (a_KM.into(), b_KN.into());
    check(WHAT, (a, Inner::Rows), (b, Inner::Rows))?;
    match check::place(WHAT, &[a.tensor, b.tensor])? {
        None => host::tn(&a.on_host()?, &b.on_host()?),
        Some(device) => cuda::tn(device, [a.on_gpu(true), b.on_gpu(false)]),
    }
}

/// Adds `scale · aᵀ·b`, row by row, to the elements of `sums` from `start` on: gradients on a GPU, where they are
/// collected. `sums` is f32.
pub fn add_tn<'a>(
    sums: &mut DeviceBuffer,
    start: usize,
    a_KM: impl Into<Columns<'a>>,
    b_KN: impl Into<Columns<'a>>,
    scale: f32,
) -> Result<()> {
    let (a, b) = (a_KM.into(), b_KN.into());
    check("sum of matmuls with the first factor transposed", (a, Inner::Rows), (b, Inner::Rows))?;
    cuda::add_tn(sums, start, [a.on_gpu(true), b.on_gpu(false)], scale)
}

/// Which dimension of a factor is summed over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inner {
    Rows,
    Columns,
}

/// The dimensions of two factors of one element type, f32 or bf16, whose inner dimensions agree.
fn check(
    what: &'static str,
    (a, a_inner): (Columns, Inner),
    (b, b_inner): (Columns, Inner),
) -> Result<[(usize, usize); 2]> {
    let dims = [a.dims(what)?, b.dims(what)?];
    let expected = if a.tensor.dtype() == DType::BF16 { DType::BF16 } else { DType::F32 };
    for found in [a.tensor.dtype(), b.tensor.dtype()] {
        if found != expected {
            return Err(DeviceError::DType { what, found, expected });
        }
    }
    let inner = |(rows, columns), inner| match inner {
        Inner::Rows => rows,
        Inner::Columns => columns,
    };
    let (expected, found) = (inner(dims[0], a_inner), inner(dims[1], b_inner));
    if expected != found {
        let problem = format!("found factors {:?} and {:?}, whose inner dimensions are not the same", dims[0], dims[1]);
        return Err(check::refusal(what, problem));
    }
    Ok(dims)
}

/// What a product is added to has its shape and the element type and place of its factors.
fn check_sum(what: &'static str, sum: Option<&Tensor>, dims: [usize; 2], factor: &Tensor) -> Result<()> {
    let Some(sum) = sum else { return Ok(()) };
    sum.expect_dims(what, &dims)?;
    check::place(what, &[factor, sum])?;
    if sum.dtype() != factor.dtype() {
        return Err(DeviceError::DType { what, found: sum.dtype(), expected: factor.dtype() });
    }
    Ok(())
}
