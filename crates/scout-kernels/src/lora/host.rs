//! Thin products by candle, and loops over rows. The addition runs inside candle's lock on the memory of its first
//! operand.

use candle_core as candle;
use scout_device::Tensor;
use scout_device::error::InOperation;

use super::{Mask, Product, Side, TokenKeys, mix};
use crate::Result;
use crate::host::{elements_mut, filled, for_each_row};
use crate::matmul;

/// The scale goes to the narrow factor, which is the smaller one.
pub(super) fn product(product: Product, residual: Option<&Tensor>) -> Result<Tensor> {
    let Product { narrow, wide, transposed, scale } = product;
    let narrow = (narrow.on_host()? * f64::from(scale)).during("thin product")?;
    let form = if transposed { matmul::host::nt } else { matmul::host::nn };
    matmul::host::added(residual.cloned(), form(&narrow, wide.host()?)?)
}

pub(super) fn side_by_side(sides: &[Side], num_rows: usize, scale: f32) -> Result<Tensor> {
    let part = |side: &Side| match *side {
        Side::Zeros(count) => Tensor::zeros_f32([num_rows, count]),
        Side::Product(narrow, wide) => product(Product { narrow, wide, transposed: true, scale }, None),
    };
    let parts: Vec<Tensor> = sides.iter().map(part).collect::<Result<_>>()?;
    matmul::host::beside(&parts, num_rows)
}

struct AddDelta {
    width: usize,
    scale: f32,
}

impl candle::InplaceOp2 for AddDelta {
    fn name(&self) -> &'static str {
        "addition of an adapter"
    }

    fn cpu_fwd(
        &self,
        y: &mut candle::CpuStorage,
        y_layout: &candle::Layout,
        delta: &candle::CpuStorage,
        delta_layout: &candle::Layout,
    ) -> candle::Result<()> {
        let y = elements_mut(y, y_layout)?;
        let delta = &delta.as_slice::<f32>()?[delta_layout.start_offset()..];
        for_each_row(y, self.width, |row, y| {
            for (y, &delta) in y.iter_mut().zip(&delta[row * self.width..][..self.width]) {
                *y += self.scale * delta;
            }
        });
        Ok(())
    }
}

pub(super) fn add_delta(y: Tensor, delta: &Tensor, scale: f32) -> Result<Tensor> {
    let add = AddDelta { width: y.dims()[1], scale };
    if y.num_elements() > 0 {
        y.host()?.inplace_op2(delta.host()?, &add).during("addition of an adapter")?;
    }
    Ok(y)
}

pub(super) fn dropout(x: &Tensor, tokens: &TokenKeys, mask: Mask) -> Result<Tensor> {
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let (x, names) = (x.f32s()?, tokens.names_T3.u32s()?);
    let (x, names) = (&x[..], names.as_chunks::<3>().0);
    let Mask { module, threshold, scale } = mask;
    filled([num_tokens, width], |y| {
        for_each_row(y, width, |token, y| {
            let [low, high, position] = names[token].map(u64::from);
            let row = mix(mix(module ^ (high << 32 | low)) ^ position);
            let keep = |half: u64, x: f32| if half as u32 >= threshold { x * scale } else { 0.0 };
            let mut counter = row;
            let mut next_hash = || {
                counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
                mix(counter)
            };
            let (x, mut y) = (x[token * width..][..width].chunks_exact(2), y.chunks_exact_mut(2));
            let last = x.remainder();
            for (y, x) in (&mut y).zip(x) {
                let hash = next_hash();
                y[0] = keep(hash, x[0]);
                y[1] = keep(hash >> 32, x[1]);
            }
            if let ([y], [x]) = (y.into_remainder(), last) {
                *y = keep(next_hash(), *x);
            }
        });
    })
}
