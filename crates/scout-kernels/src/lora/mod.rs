//! What adapters need beside matrix products: adding a thin product to some columns, taking columns, and dropout whose
//! mask is a pure function of names, never of order, rank or device.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D input width, N output width, O columns of one adapter")]

mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use scout_device::{DeviceError, Tensor};

use crate::{Result, check};

/// `y[:, column_start..column_start + O] += scale · delta`; the other columns stay as they are.
///
/// Writes into the memory of `y` and hands it back. `y` must therefore be the only look at that memory: clones, row
/// views and reshapes of it would change too. Fails when `delta` shares it.
pub fn add_delta(y_TN: Tensor, column_start: usize, delta_TO: &Tensor, scale: f32) -> Result<Tensor> {
    const WHAT: &str = "addition of an adapter";
    let (num_tokens, count) = delta_TO.dims2(WHAT)?;
    check_columns(WHAT, &y_TN, column_start, count)?;
    delta_TO.expect_dims(WHAT, &[y_TN.dims()[0], count])?;
    if num_tokens * count > 0 {
        host::add_delta(&y_TN, column_start, delta_TO, scale)?;
    }
    Ok(y_TN)
}

/// A copy of `count` columns: `[T, count]`.
pub fn columns(y_TN: &Tensor, column_start: usize, count: usize) -> Result<Tensor> {
    check_columns("columns", y_TN, column_start, count)?;
    host::columns(y_TN, column_start, count)
}

fn check_columns(what: &'static str, y: &Tensor, start: usize, count: usize) -> Result<()> {
    let (_, width) = y.dims2(what)?;
    if start.checked_add(count).is_none_or(|end| end > width) {
        let expected = format!("at least {count} columns from column {start}");
        return Err(DeviceError::Shape { what, found: y.shape().clone(), expected });
    }
    Ok(())
}

/// Names the mask of one adapter in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey {
    pub seed: u64,
    pub step: u64,
    pub module: u64,
}

/// Names each token of a batch wherever it is computed: its sample, and its position inside the document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenKeys {
    pub samples: Vec<u64>,
    pub positions: Vec<u32>,
}

/// Zeroes each element with `probability` and multiplies the others by `1/(1 − probability)`. Applied to a gradient it
/// is its own backward pass. At probability 0 the result shares the memory of `x`.
///
/// The mask, to be repeated bit by bit on any device: with `mix` the finalizer of splitmix64 and
/// `row = mix(mix(mix(mix(mix(seed) ^ step) ^ module) ^ sample) ^ position)`, features `2i` and `2i + 1` take the low
/// and the high half of `mix(row + (i + 1) · 0x9e3779b97f4a7c15)`, and an element is kept when its half is at least
/// `probability · 2³²`, rounded.
pub fn dropout(x_TD: &Tensor, tokens: &TokenKeys, key: DropoutKey, probability: f32) -> Result<Tensor> {
    const WHAT: &str = "dropout";
    let (num_tokens, _) = x_TD.dims2(WHAT)?;
    if !(0.0..1.0).contains(&probability) {
        return Err(check::refusal(WHAT, format!("found probability {probability}, expected at least 0 and below 1")));
    }
    for found in [tokens.samples.len(), tokens.positions.len()] {
        if found != num_tokens {
            return Err(check::refusal(WHAT, format!("found keys of {found} tokens, expected {num_tokens}")));
        }
    }
    if probability == 0.0 {
        return Ok(x_TD.clone());
    }
    host::dropout(x_TD, tokens, key, probability)
}
