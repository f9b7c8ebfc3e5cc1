//! Matrix products of tensors: everything is compared before an address is taken.

use std::sync::Arc;

use scout_core::DType;

use super::device::CudaDevice;
use super::memory::DeviceBuffer;
use super::product::{FactorForm, Operands, Problem};
use super::profile::{Effort, Product};
use crate::tensor::Tensor;
use crate::{DeviceError, Result};

/// A row-major matrix inside a tensor or buffer: `rows` of `columns` elements from element `start`, each row `leading`
/// elements after the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start: usize,
    pub rows: usize,
    pub columns: usize,
    pub leading: usize,
}

impl Window {
    /// All of a matrix.
    pub fn whole(rows: usize, columns: usize) -> Window {
        Window { start: 0, rows, columns, leading: columns }
    }

    fn check(&self, num_elements: usize) -> Result<()> {
        let end = match (self.rows, self.columns) {
            // Nothing is looked at, wherever it would begin.
            (0, _) | (_, 0) => 0,
            (rows, columns) => self.start + (rows - 1) * self.leading + columns,
        };
        if self.leading >= self.columns && end <= num_elements {
            return Ok(());
        }
        let problem = format!("found {self:?}, expected it to lie inside of {num_elements} elements");
        Err(DeviceError::Value { what: "matrix product on the GPU", problem })
    }
}

/// A factor of a product.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    pub tensor: &'a Tensor,
    pub window: Window,
    /// Whether its transpose is meant.
    pub transposed: bool,
}

/// `alpha·a·b + beta·c`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub alpha: f32,
    pub beta: f32,
}

impl Scale {
    /// The product overwrites.
    pub const OVERWRITE: Scale = Scale { alpha: 1.0, beta: 0.0 };
    /// The product is added.
    pub const ADD: Scale = Scale { alpha: 1.0, beta: 1.0 };
}

impl CudaDevice {
    /// Queues `c = alpha·op(a)·op(b) + beta·c` on the compute stream, for a window of `c`. Factors are both bf16 or
    /// both f32; bf16 factors may have a bf16 or an f32 result; sums are f32. With beta 0, `c` is not read. A result
    /// without elements costs nothing.
    pub fn multiply(&self, [a, b]: [Factor; 2], (c, window): (&mut DeviceBuffer, Window), scale: Scale) -> Result<()> {
        let (problem, operands) = describe([a, b], c, window)?;
        let stream = self.compute();
        c.must_be_alone("matrix product on the GPU")?;
        for factor in [a, b] {
            let region = factor.tensor.region("matrix product on the GPU")?;
            if !Arc::ptr_eq(region.block.context(), self.context()) {
                let problem = "found a factor on another device".to_string();
                return Err(DeviceError::Value { what: "matrix product on the GPU", problem });
            }
            region.block.fence_when_dropped(stream);
        }
        c.block().fence_when_dropped(stream);
        if problem.m == 0 || problem.n == 0 {
            return Ok(());
        }
        if problem.k == 0 {
            return multiply_nothing(c, window, scale);
        }
        let what = || {
            let product = Product { problem, adds: scale.beta != 0.0 };
            (class_of(&product), Effort::Products(vec![product]))
        };
        // SAFETY: `describe` checked that each window lies inside its memory, whose blocks were told of `stream`; `c` is
        // looked at by nobody else.
        let work = || unsafe { self.blas().multiply(&problem, operands, (scale.alpha, scale.beta), stream) };
        self.profiler().time(stream, what, work)
    }
}

/// Products of one name take about the same time. Row counts of experts differ from call to call, so rows are told by the
/// next power of two.
fn class_of(product: &Product) -> String {
    let Product { problem: Problem { m, n, k, a, b, factors, result, .. }, adds } = product;
    let of = |form: &FactorForm| if form.transposed { "ᵀ" } else { "" };
    let (rows, inner) = if a.transposed { (*m, k.next_power_of_two()) } else { (m.next_power_of_two(), *k) };
    let into = if result == factors { String::new() } else { format!(" in {result}") };
    let added = if *adds { ", added" } else { "" };
    format!("{rows}x{inner}{} · {inner}x{n}{}{into}{added}", of(a), of(b))
}

/// A sum over nothing is zero. That it would be written into a part of a buffer occurs nowhere.
fn multiply_nothing(c: &mut DeviceBuffer, window: Window, scale: Scale) -> Result<()> {
    if scale.beta == 1.0 {
        return Ok(());
    }
    if scale.beta != 0.0 || window.rows * window.columns != c.num_elements() {
        let problem = "found nothing to sum over into a part of a buffer, expected all of it".to_string();
        return Err(DeviceError::Value { what: "matrix product on the GPU", problem });
    }
    c.clear()
}

/// The problem and where its operands lie. Fails unless shapes, types and windows fit.
fn describe([a, b]: [Factor; 2], c: &DeviceBuffer, window: Window) -> Result<(Problem, Operands)> {
    const WHAT: &str = "matrix product on the GPU";
    let meant = |factor: &Factor| match factor.transposed {
        false => (factor.window.rows, factor.window.columns),
        true => (factor.window.columns, factor.window.rows),
    };
    let ((m, k), (b_rows, n)) = (meant(&a), meant(&b));
    if b_rows != k || (window.rows, window.columns) != (m, n) {
        let problem = format!("found {m}x{k} times {b_rows}x{n} into {}x{}", window.rows, window.columns);
        return Err(DeviceError::Value { what: WHAT, problem });
    }
    a.window.check(a.tensor.num_elements())?;
    b.window.check(b.tensor.num_elements())?;
    window.check(c.num_elements())?;
    let factors = a.tensor.dtype();
    let types_fit = matches!(
        (factors, b.tensor.dtype(), c.dtype()),
        (DType::BF16, DType::BF16, DType::BF16 | DType::F32) | (DType::F32, DType::F32, DType::F32)
    );
    if !types_fit {
        let problem = format!("found {factors} times {} into {}", b.tensor.dtype(), c.dtype());
        return Err(DeviceError::Value { what: WHAT, problem });
    }
    let address = |base: u64, start: usize, dtype: DType| base + dtype.size().0 * start as u64;
    let operands = Operands {
        a: address(a.tensor.region(WHAT)?.address(), a.window.start, factors),
        b: address(b.tensor.region(WHAT)?.address(), b.window.start, factors),
        c: address(c.address(), window.start, c.dtype()),
    };
    let alignment = 1u32 << (operands.a | operands.b | operands.c | 256).trailing_zeros();
    let form = |factor: &Factor| FactorForm { transposed: factor.transposed, leading: factor.window.leading.max(1) };
    let problem = Problem {
        m,
        n,
        k,
        a: form(&a),
        b: form(&b),
        leading: window.leading.max(1),
        factors,
        result: c.dtype(),
        alignment,
    };
    Ok((problem, operands))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lies_inside_of_its_memory() {
        let window = |start, rows, columns, leading| Window { start, rows, columns, leading };
        for (window, num_elements, expected) in [
            (window(0, 3, 4, 4), 12, true),
            (window(0, 3, 4, 5), 14, true),
            (window(0, 3, 4, 5), 13, false),
            (window(1, 3, 4, 4), 12, false),
            (window(2, 2, 3, 7), 12, true),
            (window(0, 2, 4, 3), 100, false),
            (window(12, 0, 4, 4), 12, true),
            (window(13, 0, 4, 4), 12, true),
        ] {
            assert_eq!(window.check(num_elements).is_ok(), expected, "{window:?} {num_elements}");
        }
    }
}
