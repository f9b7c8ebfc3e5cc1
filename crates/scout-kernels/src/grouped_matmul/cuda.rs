//! All experts in one launch where our own kernel takes the factors, else a loop over the experts on one stream: with
//! hundreds of rows for each, cuBLASLt one after the other is faster than several streams.

use std::ops::Range;
use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{CudaDevice, DeviceBuffer, Factor, Scale, Window};
use scout_device::{Matrices, Tensor};

use super::one_launch;
use crate::Result;

/// Rows of `a` times the matrix of their expert, or its transpose.
pub(super) fn by_expert(
    device: &Arc<CudaDevice>,
    a: &Tensor,
    b: &Matrices,
    offsets: &[u32],
    transposed: bool,
) -> Result<Tensor> {
    if one_launch::is_faster(device, a, b, offsets) {
        return one_launch::by_expert(device, a, b, offsets, transposed);
    }
    one_by_one(device, a, b, offsets, transposed)
}

/// By a product for each expert, however many rows it has.
pub(crate) fn one_by_one(
    device: &Arc<CudaDevice>,
    a: &Tensor,
    b: &Matrices,
    offsets: &[u32],
    transposed: bool,
) -> Result<Tensor> {
    let (num_rows, inner) = (a.dims()[0], a.dims()[1]);
    let (rows_of_b, columns_of_b) = (b.others().dims()[1], b.others().dims()[2]);
    let out_width = if transposed { rows_of_b } else { columns_of_b };
    let mut y = device.buffer(a.dtype(), [num_rows, out_width])?;
    if inner == 0 {
        y.clear()?;
        return Ok(y.into_tensor());
    }
    for (expert, rows) in busy(offsets) {
        let (tensor, place) = b.find(expert);
        let of_b = Window { start: place * rows_of_b * columns_of_b, ..Window::whole(rows_of_b, columns_of_b) };
        let factors = [
            Factor { tensor: a, window: of_rows(&rows, inner), transposed: false },
            Factor { tensor, window: of_b, transposed },
        ];
        device.multiply(factors, (&mut y, of_rows(&rows, out_width)), Scale::OVERWRITE)?;
    }
    Ok(y.into_tensor())
}

pub(super) fn sum_of_outer_products(
    device: &Arc<CudaDevice>,
    a: &Tensor,
    b: &Tensor,
    offsets: &[u32],
) -> Result<Tensor> {
    let (k, n) = (a.dims()[1], b.dims()[1]);
    let num_experts = offsets.len() - 1;
    let mut y = device.buffer(DType::F32, [num_experts, k, n])?;
    if busy(offsets).count() < num_experts {
        y.clear()?;
    }
    for (expert, rows) in busy(offsets) {
        let factors = [
            Factor { tensor: a, window: of_rows(&rows, k), transposed: true },
            Factor { tensor: b, window: of_rows(&rows, n), transposed: false },
        ];
        let of_y = Window { start: expert * k * n, ..Window::whole(k, n) };
        device.multiply(factors, (&mut y, of_y), Scale::OVERWRITE)?;
    }
    Ok(y.into_tensor())
}

pub(super) fn add_tn(
    sums: &mut DeviceBuffer,
    start: usize,
    [a, b]: [&Tensor; 2],
    offsets: &[u32],
    scale: f32,
) -> Result<()> {
    let (k, n) = (a.dims()[1], b.dims()[1]);
    let device = sums.device().clone();
    for (expert, rows) in busy(offsets) {
        let factors = [
            Factor { tensor: a, window: of_rows(&rows, k), transposed: true },
            Factor { tensor: b, window: of_rows(&rows, n), transposed: false },
        ];
        let of_expert = Window { start: start + expert * k * n, ..Window::whole(k, n) };
        device.multiply(factors, (sums, of_expert), Scale { alpha: scale, beta: 1.0 })?;
    }
    Ok(())
}

/// The experts that have rows, with their rows.
fn busy(offsets: &[u32]) -> impl Iterator<Item = (usize, Range<usize>)> {
    let experts = offsets.windows(2).map(|ends| ends[0] as usize..ends[1] as usize).enumerate();
    experts.filter(|(_, rows)| !rows.is_empty())
}

fn of_rows(rows: &Range<usize>, width: usize) -> Window {
    Window { start: rows.start * width, ..Window::whole(rows.len(), width) }
}
