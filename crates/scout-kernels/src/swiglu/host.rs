//! One fused loop over the rows for each direction.

use scout_device::Tensor;

use crate::Result;
use crate::exp::sigmoid;
use crate::host::{filled, for_each_row};

pub(super) fn forward(gate_up: &Tensor, num_tokens: usize, width: usize) -> Result<Tensor> {
    let gate_up = gate_up.f32s()?;
    let gate_up = &gate_up[..];
    filled([num_tokens, width], |h| {
        for_each_row(h, width, |row, h| {
            let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
            for ((h, &g), &u) in h.iter_mut().zip(gate).zip(up) {
                *h = g * sigmoid(g) * u;
            }
        });
    })
}

pub(super) fn backward(dh: &Tensor, gate_up: &Tensor, num_tokens: usize, width: usize) -> Result<Tensor> {
    let (dh, gate_up) = (dh.f32s()?, gate_up.f32s()?);
    let (dh, gate_up) = (&dh[..], &gate_up[..]);
    filled([num_tokens, 2 * width], |d_gate_up| {
        for_each_row(d_gate_up, 2 * width, |row, d_gate_up| {
            let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
            let (d_gate, d_up) = d_gate_up.split_at_mut(width);
            let dh = &dh[row * width..][..width];
            for ((((dg, du), &dh), &g), &u) in d_gate.iter_mut().zip(d_up).zip(dh).zip(gate).zip(up) {
                let s = sigmoid(g);
                *dg = dh * u * (s * (1.0 + g * (1.0 - s)));
                *du = dh * (g * s);
            }
        });
    })
}
