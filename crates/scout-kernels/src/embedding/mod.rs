//! Token ids to rows of the embedding: exact copies in a new tensor. The embedding is frozen, so there is no backward.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, V vocabulary, D model width")]

#[cfg(test)]
mod tests;

use scout_device::Tensor;

use crate::{Result, check, rows};

/// `[T, D]`. Fails for an id outside of the vocabulary.
pub fn forward(ids_T: &Tensor, weight_VD: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "embedding of token ids";
    let (vocabulary, _) = weight_VD.dims2(WHAT)?;
    ids_T.expect_dims(WHAT, &[ids_T.num_elements()])?;
    check::indices(WHAT, &ids_T.u32s()?, vocabulary)?;
    rows::host::gather(weight_VD, ids_T)
}
