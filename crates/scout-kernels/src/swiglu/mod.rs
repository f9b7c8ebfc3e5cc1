//! `silu(gate) ⊙ up` with `silu(g) = g·σ(g)`. Gate and up lie side by side in the last dimension: `[T, gate F | up F]`.
//! Results are new tensors, each element within 4 units in the last place; on a GPU, tensors are f32 or bf16, and each
//! element is within 8 units of f32 before it is rounded.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, F width of gate and of up, 2F both side by side")]

mod cuda;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use scout_device::{DeviceError, Tensor};

use crate::{Result, check};

/// `[T, F]`.
pub fn forward(gate_up_T2F: &Tensor) -> Result<Tensor> {
    let (num_tokens, width) = check("swiglu", gate_up_T2F)?;
    match gate_up_T2F.cuda() {
        None => host::forward(gate_up_T2F, num_tokens, width),
        Some(device) => cuda::forward(device, gate_up_T2F, num_tokens, width),
    }
}

/// The gradients of gate and up, side by side like them.
pub fn backward(dh_TF: &Tensor, gate_up_T2F: &Tensor) -> Result<Tensor> {
    let (num_tokens, width) = check("swiglu backward", gate_up_T2F)?;
    dh_TF.expect_dims("swiglu backward: gradient", &[num_tokens, width])?;
    match check::place("swiglu backward", &[dh_TF, gate_up_T2F])? {
        None => host::backward(dh_TF, gate_up_T2F, num_tokens, width),
        Some(device) => cuda::backward(device, dh_TF, gate_up_T2F, None),
    }
}

/// Both directions at once, which read gate and up once.
#[derive(Debug)]
pub struct BackAndForth {
    pub d_gate_up: Tensor,
    pub h: Tensor,
}

/// [`backward`] and [`forward`]: for a backward pass that needs what the forward pass did not keep.
pub fn back_and_forth(dh_TF: &Tensor, gate_up_T2F: &Tensor) -> Result<BackAndForth> {
    const WHAT: &str = "swiglu back and forth";
    let (num_tokens, width) = check(WHAT, gate_up_T2F)?;
    dh_TF.expect_dims(WHAT, &[num_tokens, width])?;
    let Some(device) = check::place(WHAT, &[dh_TF, gate_up_T2F])? else {
        let d_gate_up = host::backward(dh_TF, gate_up_T2F, num_tokens, width)?;
        return Ok(BackAndForth { d_gate_up, h: host::forward(gate_up_T2F, num_tokens, width)? });
    };
    let mut h = device.buffer(gate_up_T2F.dtype(), [num_tokens, width])?;
    let d_gate_up = cuda::backward(device, dh_TF, gate_up_T2F, Some(&mut h))?;
    Ok(BackAndForth { d_gate_up, h: h.into_tensor() })
}

fn check(what: &'static str, gate_up: &Tensor) -> Result<(usize, usize)> {
    let (num_tokens, both) = gate_up.dims2(what)?;
    if !both.is_multiple_of(2) {
        let expected = "an even number of columns".to_string();
        return Err(DeviceError::Shape { what, found: gate_up.shape().clone(), expected });
    }
    Ok((num_tokens, both / 2))
}
