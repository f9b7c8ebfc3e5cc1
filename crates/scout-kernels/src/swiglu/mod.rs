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
        Some(device) => cuda::backward(device, dh_TF, gate_up_T2F, num_tokens, width),
    }
}

fn check(what: &'static str, gate_up: &Tensor) -> Result<(usize, usize)> {
    let (num_tokens, both) = gate_up.dims2(what)?;
    if !both.is_multiple_of(2) {
        let expected = "an even number of columns".to_string();
        return Err(DeviceError::Shape { what, found: gate_up.shape().clone(), expected });
    }
    Ok((num_tokens, both / 2))
}
