//! What happens to queries and keys between projection and attention. Results are new tensors, except `Unchanged`,
//! which shares the memory of its input. The backward pass needs the result and the inverse rms only, never the input.
//!
//! Sine, cosine and logarithm are within 2 units in the last place of f32 at every position, sums over a head are f32.
//! On a GPU tensors are f32 or bf16, rounded once; frequencies and the inverse rms are f32.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, h heads, d head size")]

mod cuda;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use scout_device::cuda::CudaDevice;
use scout_device::{DeviceError, Tensor};

use crate::{Result, check};

/// What a layer does, with position `p` counted inside the document.
#[derive(Debug, Clone)]
pub enum Position {
    /// Turn the adjacent pair `j` of each head by the angle `p·f_j`, an f32 product; then divide each head by the root
    /// of its mean square. `frequencies` is `[d/2]`.
    RotateAndNormalise {
        frequencies: Tensor,
        epsilon: f32,
    },
    /// Turn only.
    Rotate {
        frequencies: Tensor,
    },
    /// Multiply by `1 + attn_scale · ln(1 + ⌊(p + 1)/floor_scale⌋)`.
    Temperature {
        attn_scale: f32,
        floor_scale: f32,
    },
    Unchanged,
}

/// Which way pairs are turned.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Turn {
    Forward,
    Back,
}

#[derive(Debug, Clone)]
pub struct Placed {
    /// `[T, h, d]`.
    pub y: Tensor,
    /// `[T, h]`, where heads are normalised.
    pub inverse_rms: Option<Tensor>,
}

pub fn forward(x_Thd: &Tensor, positions_T: &Tensor, position: &Position) -> Result<Placed> {
    let device = check("position", x_Thd, positions_T, position)?;
    let y = match (position, device) {
        (Position::RotateAndNormalise { frequencies, epsilon }, None) => {
            return host::rotate_and_normalise(x_Thd, positions_T, frequencies, *epsilon);
        }
        (Position::RotateAndNormalise { frequencies, epsilon }, Some(device)) => {
            return cuda::rotate_and_normalise(device, x_Thd, positions_T, frequencies, *epsilon);
        }
        (Position::Rotate { frequencies }, None) => host::rotate(x_Thd, positions_T, frequencies, Turn::Forward)?,
        (Position::Rotate { frequencies }, Some(device)) => {
            cuda::rotate(device, x_Thd, positions_T, frequencies, Turn::Forward)?
        }
        (Position::Temperature { attn_scale, floor_scale }, None) => {
            host::scale(x_Thd, positions_T, *attn_scale, *floor_scale)?
        }
        (Position::Temperature { attn_scale, floor_scale }, Some(device)) => {
            cuda::scale(device, x_Thd, positions_T, *attn_scale, *floor_scale)?
        }
        (Position::Unchanged, _) => x_Thd.clone(),
    };
    Ok(Placed { y, inverse_rms: None })
}

/// The gradient of `x`. Through the norm it is `r·(g − y·mean(g ⊙ y))`, then the rotation is undone.
pub fn backward(dy_Thd: &Tensor, placed: &Placed, positions_T: &Tensor, position: &Position) -> Result<Tensor> {
    const WHAT: &str = "position backward";
    let device = check(WHAT, dy_Thd, positions_T, position)?;
    check::same_dims(WHAT, dy_Thd, &placed.y)?;
    match position {
        Position::RotateAndNormalise { frequencies, .. } => {
            let Some(inverse_rms_Th) = &placed.inverse_rms else {
                return Err(check::refusal(
                    WHAT,
                    "found no inverse rms, expected that of the forward pass".to_string(),
                ));
            };
            inverse_rms_Th.expect_dims(WHAT, &dy_Thd.dims()[..2])?;
            check::place(WHAT, &[dy_Thd, &placed.y, inverse_rms_Th])?;
            if let Some(device) = device {
                let normed = (&placed.y, inverse_rms_Th);
                return cuda::backward_of_rotate_and_normalise(device, dy_Thd, normed, positions_T, frequencies);
            }
            host::backward_of_rotate_and_normalise(dy_Thd, &placed.y, inverse_rms_Th, positions_T, frequencies)
        }
        Position::Rotate { frequencies } => match device {
            None => host::rotate(dy_Thd, positions_T, frequencies, Turn::Back),
            Some(device) => cuda::rotate(device, dy_Thd, positions_T, frequencies, Turn::Back),
        },
        Position::Temperature { attn_scale, floor_scale } => match device {
            None => host::scale(dy_Thd, positions_T, *attn_scale, *floor_scale),
            Some(device) => cuda::scale(device, dy_Thd, positions_T, *attn_scale, *floor_scale),
        },
        Position::Unchanged => Ok(dy_Thd.clone()),
    }
}

/// Shapes that fit, and where the tensors lie.
fn check<'a>(
    what: &'static str,
    x: &'a Tensor,
    positions: &'a Tensor,
    position: &'a Position,
) -> Result<Option<&'a Arc<CudaDevice>>> {
    let (num_tokens, _, head_size) = x.dims3(what)?;
    positions.expect_dims(what, &[num_tokens])?;
    match position {
        Position::RotateAndNormalise { frequencies, .. } | Position::Rotate { frequencies } => {
            if !head_size.is_multiple_of(2) {
                let expected = "an even head size".to_string();
                return Err(DeviceError::Shape { what, found: x.shape().clone(), expected });
            }
            frequencies.expect_dims(what, &[head_size / 2])?;
            check::place(what, &[x, positions, frequencies])
        }
        Position::Temperature { .. } => check::place(what, &[x, positions]),
        Position::Unchanged => Ok(None),
    }
}
