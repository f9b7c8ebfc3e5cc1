//! Two kernels choose and sort; the host learns the counts when it asks. Moves and gradients have one block for each token.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{Argument, CudaDevice, Factor, Grid, Scale, Window};

use super::offsets::Offsets;
use super::{RouterGradient, Routing};
use crate::Result;
use crate::check;
use crate::cuda::{count, expect_dtype, kernel, same_dtype, sources, threads_for_row};

/// Tokens of a block that chooses and sorts, and the warps they make, as in the kernel.
const TILE: u32 = 256;
const WARPS: u32 = TILE / 32;
/// Vectors of a row that a thread has in flight, or keeps.
const VECTORS: usize = 2;
/// Pieces into which the tokens of an expert are cut for the gradient of the weight.
const PIECES: u32 = 16;

/// A thin product over all of `x`: the time is that of reading it once.
pub(super) fn logits(device: &Arc<CudaDevice>, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (num_tokens, num_experts) = (x.dims()[0], weight.dims()[0]);
    let mut logits = device.buffer(DType::F32, [num_tokens, num_experts])?;
    let whole = |tensor: &Tensor| Window::whole(tensor.dims()[0], tensor.dims()[1]);
    let factors = [
        Factor { tensor: x, window: whole(x), transposed: false },
        Factor { tensor: weight, window: whole(weight), transposed: true },
    ];
    device.multiply(factors, (&mut logits, Window::whole(num_tokens, num_experts)), Scale::OVERWRITE)?;
    Ok(logits.into_tensor())
}

/// With `given` experts nothing is chosen.
pub(super) fn route(device: &Arc<CudaDevice>, logits: &Tensor, given: Option<&Tensor>) -> Result<Routing> {
    const WHAT: &str = "router";
    expect_dtype(WHAT, logits, DType::F32)?;
    if let Some(given) = given {
        expect_dtype(WHAT, given, DType::U32)?;
    }
    let len = logits.dims()[0];
    let (num_tokens, num_experts) = (count(WHAT, len)?, count(WHAT, logits.dims()[1])?);
    // At least one, which writes the offsets of a batch without tokens too.
    let num_tiles = num_tokens.div_ceil(TILE).max(1);
    let mut expert = device.buffer(DType::U32, [len])?;
    let mut score = device.buffer(DType::F32, [len])?;
    let mut counts = device.buffer(DType::U32, [num_tiles as usize, num_experts as usize])?;
    let kernel = device.kernel(&sources::ROUTER, "router_choose")?;
    let mut arguments = [
        Argument::In(logits),
        given.map_or(Argument::Nothing, Argument::In),
        Argument::Out(&mut expert),
        Argument::Out(&mut score),
        Argument::Out(&mut counts),
        Argument::U32(num_tokens),
        Argument::U32(num_experts),
    ];
    let grid = shared(num_tiles, num_experts);
    // SAFETY: threads of tokens that exist touch their row of `logits` and their element of `given`, `expert` and `score`;
    // block `i` writes row `i` of `counts`, for which it has a number of shared memory for each expert. Whatever is given,
    // the expert written is one of those that exist. All were written on the compute stream.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    let (expert, counts) = (expert.into_tensor(), counts.into_tensor());

    let mut position = device.buffer(DType::U32, [len])?;
    let mut order = device.buffer(DType::U32, [len])?;
    let mut offsets = device.buffer(DType::U32, [num_experts as usize + 1])?;
    let kernel = device.kernel(&sources::ROUTER, "router_sort")?;
    let mut arguments = [
        Argument::In(&expert),
        Argument::In(&counts),
        Argument::Out(&mut position),
        Argument::Out(&mut order),
        Argument::Out(&mut offsets),
        Argument::U32(num_tokens),
        Argument::U32(num_experts),
    ];
    let grid = shared(num_tiles, num_experts.saturating_mul(2 + WARPS).saturating_add(1));
    // SAFETY: threads of tokens that exist touch their element of `expert` and `position`, and the one of `order` at the
    // position, which is below the number of tokens because `counts` are those of `expert`; all blocks read `counts`, one
    // writes `offsets`. The shared memory holds three numbers for each expert beside those of each warp.
    unsafe { device.launch(&kernel, grid, &mut arguments) }?;
    Ok(Routing {
        expert_T: expert,
        score_T: score.into_tensor(),
        order_T: order.into_tensor(),
        position_T: position.into_tensor(),
        offsets: Offsets::on_gpu(device, offsets.into_tensor())?,
    })
}

/// A grid of tiles with so many numbers of shared memory each.
fn shared(num_tiles: u32, numbers: u32) -> Grid {
    Grid { shared_memory: numbers.saturating_mul(4), ..Grid::new(num_tiles, TILE) }
}

pub(super) fn gather_scaled(device: &Arc<CudaDevice>, x: &Tensor, routing: &Routing) -> Result<Tensor> {
    const WHAT: &str = "scaled gather by expert";
    let (dtype, num_tokens, width) = (x.dtype(), x.dims()[0], x.dims()[1]);
    let mut u = device.buffer(dtype, [num_tokens, width])?;
    let kernel = kernel(device, &sources::ROUTER, dtype, ["router_gather_scaled_f32", "router_gather_scaled_bf16"])?;
    let mut arguments = [
        Argument::In(x),
        Argument::In(&routing.score_T),
        Argument::In(&routing.position_T),
        Argument::Out(&mut u),
        Argument::U32(count(WHAT, width)?),
    ];
    // SAFETY: block `t` touches row `t` of `x`, element `t` of score and position, and the row of `u` at that position, if
    // there is one; positions are all different, so every row of `u` has one writer. The contract checked the shapes.
    unsafe { device.launch(&kernel, grid(WHAT, num_tokens, width, dtype)?, &mut arguments) }?;
    Ok(u.into_tensor())
}

pub(super) fn combine(
    device: &Arc<CudaDevice>,
    routed: &Tensor,
    routing: &Routing,
    other: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    const WHAT: &str = "combination of experts";
    let dtype = same_dtype(WHAT, &[routed, other, residual.unwrap_or(routed)])?;
    let (num_tokens, width) = (routed.dims()[0], routed.dims()[1]);
    let mut y = device.buffer(dtype, [num_tokens, width])?;
    let kernel = kernel(device, &sources::ROUTER, dtype, ["router_combine_f32", "router_combine_bf16"])?;
    let mut arguments = [
        Argument::In(routed),
        Argument::In(&routing.position_T),
        Argument::In(other),
        residual.map_or(Argument::Nothing, Argument::In),
        Argument::Out(&mut y),
        Argument::U32(count(WHAT, width)?),
    ];
    // SAFETY: block `t` touches row `t` of `other`, `residual` and `y`, and the row of `routed` at position `t`, if there
    // is one. The contract checked the shapes.
    unsafe { device.launch(&kernel, grid(WHAT, num_tokens, width, dtype)?, &mut arguments) }?;
    Ok(y.into_tensor())
}

pub(super) fn backward(
    device: &Arc<CudaDevice>,
    [du, x, other]: [&Tensor; 3],
    routing: &Routing,
    weight: &Tensor,
) -> Result<RouterGradient> {
    const WHAT: &str = "router backward";
    let dtype = same_dtype(WHAT, &[x, du, other, weight])?;
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let mut dx = device.buffer(dtype, [num_tokens, width])?;
    let mut dlogit = device.buffer(DType::F32, [num_tokens])?;
    let kernel = kernel(device, &sources::ROUTER, dtype, ["router_backward_f32", "router_backward_bf16"])?;
    let mut arguments = [
        Argument::In(du),
        Argument::In(x),
        Argument::In(&routing.position_T),
        Argument::In(&routing.expert_T),
        Argument::In(&routing.score_T),
        Argument::In(weight),
        Argument::In(other),
        Argument::Out(&mut dx),
        Argument::Out(&mut dlogit),
        Argument::U32(count(WHAT, width)?),
        Argument::U32(count(WHAT, weight.dims()[0])?),
    ];
    // SAFETY: block `t` touches row `t` of `x`, `other` and `dx`, element `t` of position, expert, score and `dlogit`, and,
    // where they exist, the row of `du` at the position and that of `weight` for the expert. The contract checked the
    // shapes.
    unsafe { device.launch(&kernel, grid(WHAT, num_tokens, width, dtype)?, &mut arguments) }?;
    Ok(RouterGradient { dx: dx.into_tensor(), dlogit_T: dlogit.into_tensor() })
}

/// f32, whatever `x` is.
pub(super) fn weight_gradient(
    device: &Arc<CudaDevice>,
    dlogit: &Tensor,
    x: &Tensor,
    routing: &Routing,
) -> Result<Tensor> {
    const WHAT: &str = "router, gradient of the weight";
    const THREADS: u32 = 128;
    expect_dtype(WHAT, dlogit, DType::F32)?;
    let Offsets::Gpu { tensor: offsets, .. } = &routing.offsets else {
        return Err(check::refusal(WHAT, "found offsets of the host, expected those of the GPU".to_string()));
    };
    let (dtype, width, num_experts) = (x.dtype(), x.dims()[1], routing.offsets.num_experts());
    let mut pieces = device.buffer(DType::F32, [PIECES as usize, num_experts, width])?;
    let kernel = kernel(device, &sources::ROUTER, dtype, ["router_sum_pieces_f32", "router_sum_pieces_bf16"])?;
    let mut arguments = [
        Argument::In(dlogit),
        Argument::In(x),
        Argument::In(&routing.order_T),
        Argument::In(offsets),
        Argument::Out(&mut pieces),
        Argument::U32(count(WHAT, width)?),
    ];
    let columns = count(WHAT, (width * dtype.size().0 as usize).div_ceil(16))?;
    let blocks = [columns.div_ceil(THREADS), count(WHAT, num_experts)?, PIECES];
    // SAFETY: block `(c, e, p)` reads the rows of `x` and elements of `dlogit` of a part of expert `e`'s tokens, which
    // `order` and `offsets` name, and writes its columns of row `(p, e)` of `pieces`. The contract checked the shapes.
    unsafe { device.launch(&kernel, Grid { blocks, ..Grid::new(0, THREADS) }, &mut arguments) }?;
    let pieces = pieces.into_tensor();
    let mut dweight = device.buffer(DType::F32, [num_experts, width])?;
    let len = num_experts * width;
    let kernel = device.kernel(&sources::ROUTER, "router_add_pieces")?;
    let mut arguments =
        [Argument::In(&pieces), Argument::Out(&mut dweight), Argument::U64(len as u64), Argument::U32(PIECES)];
    let blocks = count(WHAT, len)?.div_ceil(THREADS);
    // SAFETY: threads below `len` read an element of each piece and write one of `dweight`; both are as long as this says.
    unsafe { device.launch(&kernel, Grid::new(blocks, THREADS), &mut arguments) }?;
    Ok(dweight.into_tensor())
}

/// One block for each row.
fn grid(what: &'static str, num_rows: usize, width: usize, dtype: DType) -> Result<Grid> {
    Ok(Grid::new(count(what, num_rows)?, threads_for_row(width, dtype, VECTORS)))
}
