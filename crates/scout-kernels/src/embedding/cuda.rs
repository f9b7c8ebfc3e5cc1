//! Chains of equal ids, then one block for each token, of which those that begin a chain have something to do.
//!
//! Finding the chains compares every id with every later one at worst. That grows with the square of the batch, but at
//! 16,384 tokens it is less than clearing the gradient of a vocabulary, and simpler than a sort.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Grid};

use crate::Result;
use crate::cuda::{count, expect_dtype, kernel, sources, threads_for_row};

/// Tokens of a block that looks for chains, as in the kernel.
const TILE: u32 = 256;

/// f32, whatever `dx` is.
pub(super) fn weight_gradient(
    device: &Arc<CudaDevice>,
    dx: &Tensor,
    ids: &Tensor,
    vocabulary: usize,
) -> Result<Tensor> {
    const WHAT: &str = "embedding, gradient of the weight";
    expect_dtype(WHAT, ids, DType::U32)?;
    let (dtype, width) = (dx.dtype(), dx.dims()[1]);
    let num_tokens = count(WHAT, dx.dims()[0])?;
    let mut next = device.buffer(DType::U32, [dx.dims()[0]])?;
    let mut has_earlier = device.zeros(DType::U32, [dx.dims()[0]])?;
    let chain = device.kernel(&sources::EMBEDDING, "embedding_chain")?;
    let mut arguments =
        [Argument::In(ids), Argument::Out(&mut next), Argument::Out(&mut has_earlier), Argument::U32(num_tokens)];
    // SAFETY: the kernel reads ids below `num_tokens` and writes elements of `next` and `has_earlier` below it.
    unsafe { device.launch(&chain, Grid::new(num_tokens.div_ceil(TILE), TILE), &mut arguments) }?;
    let (next, has_earlier) = (next.into_tensor(), has_earlier.into_tensor());
    let mut dweight = device.zeros(DType::F32, [vocabulary, width])?;
    let names = ["embedding_weight_gradient_f32", "embedding_weight_gradient_bf16"];
    let kernel = kernel(device, &sources::EMBEDDING, dtype, names)?;
    let mut arguments = [
        Argument::In(dx),
        Argument::In(ids),
        Argument::In(&next),
        Argument::In(&has_earlier),
        Argument::Out(&mut dweight),
        Argument::U32(count(WHAT, width)?),
        Argument::U32(count(WHAT, vocabulary)?),
    ];
    let grid = Grid::new(num_tokens, threads_for_row(width, dtype, 2));
    // SAFETY: block `t` reads the rows of `dx` that the chain from token `t` names, all below `num_tokens`, and writes the
    // row of `dweight` of its id, if that is below `vocabulary`; no other block begins a chain of that id. The contract
    // checked the shapes.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(dweight.into_tensor())
}
