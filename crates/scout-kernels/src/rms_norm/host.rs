//! Row by row: one pass for the mean, one for the result, while the row is still in the cache.

use scout_device::Tensor;

use super::Normed;
use crate::Result;
use crate::host::{dot, filled, for_each_piece, for_each_row, for_each_row_pair, sum_over_rows};

pub(super) fn forward(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Normed> {
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let (x, weight) = (x.f32s()?, weight.f32s()?);
    let (x, weight) = (&x[..], &weight[..]);
    let mut inverse_rms = vec![0.0; num_tokens];
    let y = filled([num_tokens, width], |y| {
        for_each_row_pair((y, width), (&mut inverse_rms, 1), |row, y, inverse_rms| {
            let x = &x[row * width..][..width];
            let r = inverse_root_mean_square(x, epsilon);
            inverse_rms[0] = r;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * r * w;
            }
        });
    })?;
    Ok(Normed { y, inverse_rms: Tensor::from_f32(inverse_rms, [num_tokens])? })
}

/// `1/√(mean(x²) + ε)`.
pub(crate) fn inverse_root_mean_square(x: &[f32], epsilon: f32) -> f32 {
    let mean = (dot(x, x) / x.len() as f64) as f32;
    1.0 / (mean + epsilon).sqrt()
}

pub(super) fn backward(
    dy: &Tensor,
    x: &Tensor,
    inverse_rms: &Tensor,
    weight: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let (dy, x, inverse_rms, weight) = (dy.f32s()?, x.f32s()?, inverse_rms.f32s()?, weight.f32s()?);
    let (dy, x, inverse_rms, weight) = (&dy[..], &x[..], &inverse_rms[..], &weight[..]);
    let residual = residual.map(Tensor::f32s).transpose()?;
    let residual = residual.as_deref();
    filled([num_tokens, width], |dx| {
        for_each_row(dx, width, |row, dx| {
            let (dy, x, r) = (&dy[row * width..][..width], &x[row * width..][..width], inverse_rms[row]);
            for ((g, &dy), &w) in dx.iter_mut().zip(dy).zip(weight) {
                *g = dy * w;
            }
            let mean = (dot(dx, x) / width as f64) as f32;
            let along = r * r * mean;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = r * (*dx - x * along);
            }
            if let Some(residual) = residual {
                for (dx, &residual) in dx.iter_mut().zip(&residual[row * width..][..width]) {
                    *dx += residual;
                }
            }
        });
    })
}

pub(super) fn weight_gradient(dy: &Tensor, x: &Tensor, inverse_rms: &Tensor) -> Result<Tensor> {
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let (dy, x, inverse_rms) = (dy.f32s()?, x.f32s()?, inverse_rms.f32s()?);
    let (dy, x, inverse_rms) = (&dy[..], &x[..], &inverse_rms[..]);
    filled([width], |dweight| {
        for_each_piece(dweight, |first_column, dweight| {
            sum_over_rows(dweight, first_column, 0..num_tokens, |row, column| {
                f64::from(dy[row * width + column]) * f64::from(x[row * width + column] * inverse_rms[row])
            });
        });
    })
}
