//! Chunk by chunk: logits by candle, then each row in place from logit to probability to gradient.

use scout_device::Tensor;

use super::{HeadLoss, TrainedHeadLoss};
use crate::exp::exp;
use crate::host::{for_each_row_pair, max, sum, write};
use crate::{Result, matmul};

pub(super) fn forward(x: &Tensor, weight: &Tensor, targets: &Tensor, logits_per_chunk: usize) -> Result<Tensor> {
    let mut losses = vec![0.0; x.dims()[0]];
    let targets = targets.u32s()?;
    for (start, count) in chunks(x.dims()[0], weight.dims()[0], logits_per_chunk) {
        let logits = matmul::nt(&x.rows(start, count)?, weight)?;
        let targets = &targets[start..start + count];
        let losses = &mut losses[start..start + count];
        write("cross entropy", logits.host()?, |logits| {
            for_each_row_pair((logits, weight.dims()[0]), (losses, 1), |row, logits, loss| {
                loss[0] = exponentials(logits, targets[row]).loss;
            });
        })?;
    }
    Tensor::from_f32(losses, [x.dims()[0]])
}

pub(super) fn forward_backward(
    x: &Tensor,
    weight: &Tensor,
    targets_and_weights: (&Tensor, &Tensor),
    logits_per_chunk: usize,
) -> Result<HeadLoss> {
    by_chunk(x, weight, targets_and_weights, logits_per_chunk, |_, _| Ok(()))
}

pub(super) fn forward_backward_of_head(
    x: &Tensor,
    weight: &Tensor,
    targets_and_weights: (&Tensor, &Tensor),
    logits_per_chunk: usize,
) -> Result<TrainedHeadLoss> {
    let mut dweight: Option<Tensor> = None;
    let loss = by_chunk(x, weight, targets_and_weights, logits_per_chunk, |dlogits, x| {
        let of_chunk = matmul::tn(dlogits, x)?;
        match &dweight {
            None => dweight = Some(of_chunk),
            Some(sum) => write("gradient of the head", sum.host()?, {
                let of_chunk = of_chunk.f32s()?;
                move |sum| sum.iter_mut().zip(&of_chunk[..]).for_each(|(sum, value)| *sum += value)
            })?,
        }
        Ok(())
    })?;
    let dweight = match dweight {
        Some(dweight) => dweight,
        None => Tensor::zeros_f32(weight.shape().clone())?,
    };
    Ok(TrainedHeadLoss { loss, dweight })
}

/// Shows each chunk's gradient of the logits, with the rows it belongs to, to `see`.
fn by_chunk(
    x: &Tensor,
    weight: &Tensor,
    (targets, weights): (&Tensor, &Tensor),
    logits_per_chunk: usize,
    mut see: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<HeadLoss> {
    let (num_rows, width) = (x.dims()[0], x.dims()[1]);
    let (targets, weights) = (targets.u32s()?, weights.f32s()?);
    let mut losses = vec![0.0; num_rows];
    let mut dx = Vec::with_capacity(num_rows * width);
    for (start, count) in chunks(num_rows, weight.dims()[0], logits_per_chunk) {
        let x = x.rows(start, count)?;
        let logits = matmul::nt(&x, weight)?;
        let (targets, weights) = (&targets[start..start + count], &weights[start..start + count]);
        let losses = &mut losses[start..start + count];
        write("cross entropy", logits.host()?, |logits| {
            for_each_row_pair((logits, weight.dims()[0]), (losses, 1), |row, logits, loss| {
                let found = exponentials(logits, targets[row]);
                loss[0] = found.loss;
                let factor = (f64::from(weights[row]) / found.sum) as f32;
                logits.iter_mut().for_each(|value| *value *= factor);
                logits[targets[row] as usize] -= weights[row];
            });
        })?;
        see(&logits, &x)?;
        dx.extend_from_slice(&matmul::nn(&logits, weight)?.f32s()?);
    }
    Ok(HeadLoss { token_loss: Tensor::from_f32(losses, [num_rows])?, dx: Tensor::from_f32(dx, [num_rows, width])? })
}

/// First row and number of rows of each chunk.
fn chunks(num_rows: usize, vocabulary: usize, logits_per_chunk: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows_per_chunk = (logits_per_chunk / vocabulary.max(1)).max(1);
    (0..num_rows).step_by(rows_per_chunk).map(move |start| (start, rows_per_chunk.min(num_rows - start)))
}

struct Exponentials {
    loss: f32,
    sum: f64,
}

/// Turns a row of logits into exponentials above their maximum.
fn exponentials(logits: &mut [f32], target: u32) -> Exponentials {
    let largest = max(logits);
    let target_logit = logits[target as usize];
    logits.iter_mut().for_each(|value| *value = exp(*value - largest));
    let sum = sum(logits);
    let loss = (sum.ln() + f64::from(largest) - f64::from(target_logit)) as f32;
    Exponentials { loss, sum }
}
