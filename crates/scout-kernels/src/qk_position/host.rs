//! Token by token: sine and cosine of each pair once, used by all heads of the token.

use scout_device::Tensor;

use super::{Placed, Turn};
use crate::Result;
use crate::host::{dot, filled, for_each_row, for_each_row_pair};
use crate::rms_norm::host::inverse_root_mean_square;

pub(super) fn rotate_and_normalise(
    x: &Tensor,
    positions: &Tensor,
    frequencies: &Tensor,
    epsilon: f32,
) -> Result<Placed> {
    let (num_tokens, num_heads, head_size) = x.dims3("position")?;
    let width = num_heads * head_size;
    let (x, positions, frequencies) = (x.f32s()?, positions.u32s()?, frequencies.f32s()?);
    let (x, positions, frequencies) = (&x[..], &positions[..], &frequencies[..]);
    let mut inverse_rms = vec![0.0; num_tokens * num_heads];
    let y = filled([num_tokens, num_heads, head_size], |y| {
        for_each_row_pair((y, width), (&mut inverse_rms, num_heads), |token, y, inverse_rms| {
            turn(&x[token * width..][..width], y, positions[token], frequencies, Turn::Forward);
            for (y, inverse_rms) in y.chunks_exact_mut(head_size).zip(inverse_rms) {
                let r = inverse_root_mean_square(y, epsilon);
                *inverse_rms = r;
                y.iter_mut().for_each(|y| *y *= r);
            }
        });
    })?;
    Ok(Placed { y, inverse_rms: Some(Tensor::from_f32(inverse_rms, [num_tokens, num_heads])?) })
}

pub(super) fn backward_of_rotate_and_normalise(
    dy: &Tensor,
    y: &Tensor,
    inverse_rms: &Tensor,
    positions: &Tensor,
    frequencies: &Tensor,
) -> Result<Tensor> {
    let (num_tokens, num_heads, head_size) = dy.dims3("position")?;
    let width = num_heads * head_size;
    let (dy, y, inverse_rms) = (dy.f32s()?, y.f32s()?, inverse_rms.f32s()?);
    let (positions, frequencies) = (positions.u32s()?, frequencies.f32s()?);
    let (dy, y, inverse_rms, positions, frequencies) =
        (&dy[..], &y[..], &inverse_rms[..], &positions[..], &frequencies[..]);
    filled([num_tokens, num_heads, head_size], |dx| {
        for_each_row(dx, width, |token, dx| {
            let mut through_norm = dy[token * width..][..width].to_vec();
            let heads =
                through_norm.chunks_exact_mut(head_size).zip(y[token * width..][..width].chunks_exact(head_size));
            for ((gradient, y), &r) in heads.zip(&inverse_rms[token * num_heads..][..num_heads]) {
                let mean = (dot(gradient, y) / head_size as f64) as f32;
                for (gradient, &y) in gradient.iter_mut().zip(y) {
                    *gradient = r * (*gradient - y * mean);
                }
            }
            turn(&through_norm, dx, positions[token], frequencies, Turn::Back);
        });
    })
}

pub(super) fn rotate(x: &Tensor, positions: &Tensor, frequencies: &Tensor, direction: Turn) -> Result<Tensor> {
    let (num_tokens, num_heads, head_size) = x.dims3("position")?;
    let width = num_heads * head_size;
    let (x, positions, frequencies) = (x.f32s()?, positions.u32s()?, frequencies.f32s()?);
    let (x, positions, frequencies) = (&x[..], &positions[..], &frequencies[..]);
    filled([num_tokens, num_heads, head_size], |y| {
        for_each_row(y, width, |token, y| {
            turn(&x[token * width..][..width], y, positions[token], frequencies, direction);
        });
    })
}

/// Turns all heads of one token.
fn turn(x: &[f32], y: &mut [f32], position: u32, frequencies: &[f32], direction: Turn) {
    let sines_and_cosines: Vec<(f32, f32)> = frequencies
        .iter()
        .map(|&frequency| {
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            (if direction == Turn::Back { -sin } else { sin }, cos)
        })
        .collect();
    let head_size = 2 * frequencies.len();
    for (x, y) in x.chunks_exact(head_size).zip(y.chunks_exact_mut(head_size)) {
        let pairs = x.chunks_exact(2).zip(y.chunks_exact_mut(2));
        for ((x, y), &(sin, cos)) in pairs.zip(&sines_and_cosines) {
            y[0] = x[0] * cos - x[1] * sin;
            y[1] = x[0] * sin + x[1] * cos;
        }
    }
}

pub(super) fn scale(x: &Tensor, positions: &Tensor, attn_scale: f32, floor_scale: f32) -> Result<Tensor> {
    let (num_tokens, num_heads, head_size) = x.dims3("position")?;
    let width = num_heads * head_size;
    let (x, positions) = (x.f32s()?, positions.u32s()?);
    let (x, positions) = (&x[..], &positions[..]);
    filled([num_tokens, num_heads, head_size], |y| {
        for_each_row(y, width, |token, y| {
            let factor = ((positions[token] as f32 + 1.0) / floor_scale).floor().ln_1p() * attn_scale + 1.0;
            for (y, &x) in y.iter_mut().zip(&x[token * width..][..width]) {
                *y = x * factor;
            }
        });
    })
}
