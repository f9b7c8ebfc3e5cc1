//! Token ids to rows of the embedding: exact copies in a new tensor. On the way back each row of the embedding collects
//! the gradients of its tokens, in the order of the batch, in f64 and rounded once to f32.
//!
//! On a GPU the host does not see the ids: one outside of the vocabulary becomes a row that is not a number, and its
//! gradient goes nowhere.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, V vocabulary, D model width")]

mod cuda;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use scout_device::Tensor;

use crate::{Result, check, rows};

/// `[T, D]`. Fails for an id outside of the vocabulary.
pub fn forward(ids_T: &Tensor, weight_VD: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "embedding of token ids";
    let (vocabulary, _) = weight_VD.dims2(WHAT)?;
    ids_T.expect_dims(WHAT, &[ids_T.num_elements()])?;
    if let Some(device) = check::place(WHAT, &[weight_VD, ids_T])? {
        return rows::cuda::gather(device, weight_VD, ids_T);
    }
    check::indices(WHAT, &ids_T.u32s()?, vocabulary)?;
    rows::host::gather(weight_VD, ids_T)
}

/// The gradient of the embedding, `[V, D]`: zeros for tokens that do not occur.
pub fn weight_gradient(dx_TD: &Tensor, ids_T: &Tensor, vocabulary: usize) -> Result<Tensor> {
    const WHAT: &str = "embedding, gradient of the weight";
    let (num_tokens, _) = dx_TD.dims2(WHAT)?;
    ids_T.expect_dims(WHAT, &[num_tokens])?;
    if let Some(device) = check::place(WHAT, &[dx_TD, ids_T])? {
        return cuda::weight_gradient(device, dx_TD, ids_T, vocabulary);
    }
    check::indices(WHAT, &ids_T.u32s()?, vocabulary)?;
    host::weight_gradient(dx_TD, ids_T, vocabulary)
}
