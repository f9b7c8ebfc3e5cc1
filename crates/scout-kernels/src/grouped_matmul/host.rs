//! Experts side by side, each product by candle. A product comes in memory of its own and is copied to its place,
//! which is little beside the product itself.

use candle_core as candle;
use rayon::prelude::*;
use scout_device::error::InOperation;
use scout_device::{Matrices, Tensor};

use crate::{Result, matmul};

type Product = fn(&candle::Tensor, &candle::Tensor) -> Result<Tensor>;

/// `product(rows of e, matrix of e)` for each expert, one under the other.
pub(super) fn by_expert(
    a: &Tensor,
    b: &Matrices,
    offsets: &[u32],
    out_width: usize,
    product: Product,
) -> Result<Tensor> {
    let parts = for_each_expert(offsets, |expert, start, count| {
        let (tensor, place) = b.find(expert);
        let matrix = tensor.host()?.get(place).during("grouped matmul")?;
        product(a.rows(start, count)?.host()?, &matrix)
    })?;
    if let [(_, whole)] = &parts[..] {
        return Ok(whole.clone());
    }
    let mut values = Vec::with_capacity(a.dims()[0] * out_width);
    for (_, part) in &parts {
        values.extend_from_slice(&part.f32s()?);
    }
    Tensor::from_f32(values, [a.dims()[0], out_width])
}

pub(super) fn sum_of_outer_products(a: &Tensor, b: &Tensor, offsets: &[u32]) -> Result<Tensor> {
    let parts = for_each_expert(offsets, |_, start, count| {
        matmul::host::tn(a.rows(start, count)?.host()?, b.rows(start, count)?.host()?)
    })?;
    let (k, n) = (a.dims()[1], b.dims()[1]);
    let num_experts = offsets.len() - 1;
    let mut values = Vec::with_capacity(num_experts * k * n);
    for (expert, part) in &parts {
        values.resize(expert * k * n, 0.0);
        values.extend_from_slice(&part.f32s()?);
    }
    values.resize(num_experts * k * n, 0.0);
    Tensor::from_f32(values, [num_experts, k, n])
}

/// The results of `f(expert, first row, number of rows)` for the experts that have rows, in their order.
fn for_each_expert(
    offsets: &[u32],
    f: impl Fn(usize, usize, usize) -> Result<Tensor> + Sync,
) -> Result<Vec<(usize, Tensor)>> {
    let busy: Vec<(usize, usize, usize)> = offsets
        .windows(2)
        .enumerate()
        .map(|(expert, ends)| (expert, ends[0] as usize, (ends[1] - ends[0]) as usize))
        .filter(|&(_, _, count)| count > 0)
        .collect();
    busy.into_par_iter().map(|(expert, start, count)| Ok((expert, f(expert, start, count)?))).collect()
}
