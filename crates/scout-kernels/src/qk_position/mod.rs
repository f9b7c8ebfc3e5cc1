//! What happens to queries and keys between projection and attention. Results are new tensors, except `Unchanged`,
//! which shares the memory of its input. The backward pass needs the result and the inverse rms only, never the input.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, h heads, d head size")]

mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

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

#[derive(Debug, Clone)]
pub struct Placed {
    /// `[T, h, d]`.
    pub y: Tensor,
    /// `[T, h]`, where heads are normalised.
    pub inverse_rms: Option<Tensor>,
}

pub fn forward(x_Thd: &Tensor, positions_T: &Tensor, position: &Position) -> Result<Placed> {
    check("position", x_Thd, positions_T, position)?;
    match position {
        Position::RotateAndNormalise { frequencies, epsilon } => {
            host::rotate_and_normalise(x_Thd, positions_T, frequencies, *epsilon)
        }
        Position::Rotate { frequencies } => {
            let y = host::rotate(x_Thd, positions_T, frequencies, host::Turn::Forward)?;
            Ok(Placed { y, inverse_rms: None })
        }
        Position::Temperature { attn_scale, floor_scale } => {
            Ok(Placed { y: host::scale(x_Thd, positions_T, *attn_scale, *floor_scale)?, inverse_rms: None })
        }
        Position::Unchanged => Ok(Placed { y: x_Thd.clone(), inverse_rms: None }),
    }
}

/// The gradient of `x`. Through the norm it is `r·(g − y·mean(g ⊙ y))`, then the rotation is undone.
pub fn backward(dy_Thd: &Tensor, placed: &Placed, positions_T: &Tensor, position: &Position) -> Result<Tensor> {
    const WHAT: &str = "position backward";
    check(WHAT, dy_Thd, positions_T, position)?;
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
            host::backward_of_rotate_and_normalise(dy_Thd, &placed.y, inverse_rms_Th, positions_T, frequencies)
        }
        Position::Rotate { frequencies } => host::rotate(dy_Thd, positions_T, frequencies, host::Turn::Back),
        Position::Temperature { attn_scale, floor_scale } => {
            host::scale(dy_Thd, positions_T, *attn_scale, *floor_scale)
        }
        Position::Unchanged => Ok(dy_Thd.clone()),
    }
}

fn check(what: &'static str, x: &Tensor, positions: &Tensor, position: &Position) -> Result<()> {
    let (num_tokens, _, head_size) = x.dims3(what)?;
    positions.expect_dims(what, &[num_tokens])?;
    if let Position::RotateAndNormalise { frequencies, .. } | Position::Rotate { frequencies } = position {
        if !head_size.is_multiple_of(2) {
            let expected = "an even head size".to_string();
            return Err(DeviceError::Shape { what, found: x.shape().clone(), expected });
        }
        frequencies.expect_dims(what, &[head_size / 2])?;
    }
    Ok(())
}
