//! Top-1 routing: which expert a token goes to, with what score, and the moves between token order and expert order.
//! Results are new tensors. Scores are within 2 units in the last place of the sigmoid, moves are exact, and sums
//! are rounded once per operation.
//!
//! On a GPU rows are f32 or bf16, logits, scores and gradients of weights f32; sums over a row are f32, and what is bf16
//! is rounded once at the end. Experts, order and offsets are the same numbers as on the host, and the same in every run.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D model width, E experts")]

mod cuda;
mod host;
mod offsets;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use scout_device::cuda::CudaDevice;
use scout_device::{DeviceError, Tensor};

use crate::{Result, check};
use offsets::Offsets;

/// Where the tokens of a batch go. "Sorted" means ordered by expert, tokens of one expert in their own order.
#[derive(Debug, Clone)]
pub struct Routing {
    /// u32: the expert of each token.
    pub expert_T: Tensor,
    /// f32: the sigmoid of the expert's logit.
    pub score_T: Tensor,
    // Invariant: u32, the token at each sorted position and the sorted position of each token; each undoes the other.
    pub(crate) order_T: Tensor,
    pub(crate) position_T: Tensor,
    offsets: Offsets,
}

impl Routing {
    /// Sorted positions `offsets[e]..offsets[e + 1]` belong to expert `e`; one more entry than there are experts.
    ///
    /// A GPU sends these few numbers to the host when it has routed, and the first call waits for them. It is the only
    /// place in a layer where the host waits, so call it as late as the products over experts allow: what was queued
    /// before, such as the shared expert, keeps the GPU busy meanwhile.
    pub fn offsets(&self) -> Result<&[u32]> {
        self.offsets.get()
    }

    /// To be called where nobody asks for [`Routing::offsets`]: memory of the message that brings them is used again once it is
    /// read. Waits as that does.
    pub fn free_message(&self) -> Result<()> {
        self.offsets.get().map(drop)
    }

    /// The same numbers, u32, where the routing was found. Nobody waits.
    pub fn offsets_tensor(&self) -> Result<Tensor> {
        self.offsets.tensor()
    }
}

#[derive(Debug, Clone)]
pub struct RouterGradient {
    /// `[T, D]`.
    pub dx: Tensor,
    /// Of the chosen expert's logit; the others have none.
    pub dlogit_T: Tensor,
}

/// `x·weightᵀ` in f32, which bf16 factors keep: rounded logits would tie.
pub fn logits(x_TD: &Tensor, weight_ED: &Tensor) -> Result<Tensor> {
    const WHAT: &str = "router logits";
    let (_, width) = x_TD.dims2(WHAT)?;
    weight_ED.expect_dims(WHAT, &[weight_ED.dims2(WHAT)?.0, width])?;
    match check::place(WHAT, &[x_TD, weight_ED])? {
        None => crate::matmul::nt(x_TD, weight_ED),
        Some(device) => cuda::logits(device, x_TD, weight_ED),
    }
}

/// Each token goes to its largest logit, of equal ones to the first. NaN counts as largest, so that it reaches the loss
/// and stops the run instead of being passed over.
pub fn choose(logits_TE: &Tensor) -> Result<Routing> {
    check_logits("router", logits_TE)?;
    match logits_TE.cuda() {
        None => host::choose(logits_TE),
        Some(device) => cuda::route(device, logits_TE, None),
    }
}

/// The experts are given, recorded or from an earlier pass; the scores come from the logits. On a GPU, where the host
/// does not see them, a token whose expert does not exist gets a score that is not a number.
pub fn forced(logits_TE: &Tensor, expert_T: &Tensor) -> Result<Routing> {
    const WHAT: &str = "router with given experts";
    let (num_tokens, num_experts) = check_logits(WHAT, logits_TE)?;
    expert_T.expect_dims(WHAT, &[num_tokens])?;
    if let Some(device) = check::place(WHAT, &[logits_TE, expert_T])? {
        return cuda::route(device, logits_TE, Some(expert_T));
    }
    let experts = expert_T.u32s()?.to_vec();
    check::indices(WHAT, &experts, num_experts)?;
    host::route(logits_TE, experts)
}

/// Sorted row `j` is `score · x` of its token.
pub fn gather_scaled(x_TD: &Tensor, routing: &Routing) -> Result<Tensor> {
    match check_rows("scaled gather by expert", &[x_TD], routing)? {
        None => host::gather_scaled(x_TD, routing),
        Some(device) => cuda::gather_scaled(device, x_TD, routing),
    }
}

/// Sorted row `j` is `x` of its token.
pub fn gather(x_TD: &Tensor, routing: &Routing) -> Result<Tensor> {
    match check_rows("gather by expert", &[x_TD], routing)? {
        None => crate::rows::host::gather(x_TD, &routing.order_T),
        Some(device) => crate::rows::cuda::gather(device, x_TD, &routing.order_T),
    }
}

/// Back in token order: `residual + (shared + routed)`.
pub fn combine(
    routed_sorted_TD: &Tensor,
    routing: &Routing,
    shared_TD: &Tensor,
    residual_TD: Option<&Tensor>,
) -> Result<Tensor> {
    const WHAT: &str = "combination of experts";
    let mut rows = vec![routed_sorted_TD, shared_TD];
    rows.extend(residual_TD);
    match check_rows(WHAT, &rows, routing)? {
        None => host::combine(routed_sorted_TD, routing, shared_TD, residual_TD),
        Some(device) => cuda::combine(device, routed_sorted_TD, routing, shared_TD, residual_TD),
    }
}

/// Adds the gradient of the experts' input and that of the score to the rest of `dx`:
/// `dx = dx_other + s·du + dz·weight[e]` with `dz = ⟨x, du⟩·s·(1 − s)`. `du` is sorted, everything else is not.
pub fn backward(
    du_sorted_TD: &Tensor,
    x_TD: &Tensor,
    routing: &Routing,
    weight_ED: &Tensor,
    dx_other_TD: &Tensor,
) -> Result<RouterGradient> {
    const WHAT: &str = "router backward";
    let device = check_rows(WHAT, &[du_sorted_TD, x_TD, dx_other_TD], routing)?;
    weight_ED.expect_dims(WHAT, &[routing.offsets.num_experts(), x_TD.dims()[1]])?;
    check::place(WHAT, &[x_TD, weight_ED])?;
    match device {
        None => host::backward(du_sorted_TD, x_TD, routing, weight_ED, dx_other_TD),
        Some(device) => cuda::backward(device, [du_sorted_TD, x_TD, dx_other_TD], routing, weight_ED),
    }
}

/// The gradient of the router's weight, `[E, D]`: each expert sums `dz·x` over its tokens, in their order, in f64 and
/// rounded once. Experts without tokens get zeros. A GPU sums 16 pieces of each expert, rounds them and adds them up.
pub fn weight_gradient(dlogit_T: &Tensor, x_TD: &Tensor, routing: &Routing) -> Result<Tensor> {
    const WHAT: &str = "router, gradient of the weight";
    let device = check_rows(WHAT, &[x_TD], routing)?;
    dlogit_T.expect_dims(WHAT, &[x_TD.dims()[0]])?;
    check::place(WHAT, &[x_TD, dlogit_T])?;
    match device {
        None => host::weight_gradient(dlogit_T, x_TD, routing),
        Some(device) => cuda::weight_gradient(device, dlogit_T, x_TD, routing),
    }
}

fn check_logits(what: &'static str, logits: &Tensor) -> Result<(usize, usize)> {
    match logits.dims2(what)? {
        (num_tokens, 0) if num_tokens > 0 => {
            let expected = "at least one expert".to_string();
            Err(DeviceError::Shape { what, found: logits.shape().clone(), expected })
        }
        dims => Ok(dims),
    }
}

/// All have the shape of the first, which has one row for each token of the routing, and all lie in one place.
fn check_rows<'a>(what: &'static str, rows: &[&'a Tensor], routing: &Routing) -> Result<Option<&'a Arc<CudaDevice>>> {
    let (num_tokens, _) = rows[0].dims2(what)?;
    for other in &rows[1..] {
        check::same_dims(what, rows[0], other)?;
    }
    routing.expert_T.expect_dims(what, &[num_tokens])?;
    routing.score_T.expect_dims(what, &[num_tokens])?;
    let place = check::place(what, rows)?;
    check::place(what, &[rows[0], &routing.expert_T, &routing.score_T, &routing.order_T])?;
    Ok(place)
}
