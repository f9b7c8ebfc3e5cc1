//! Top-1 routing: which expert a token goes to, with what score, and the moves between token order and expert order.
//! Results are new tensors. Scores are within 2 units in the last place of the sigmoid, moves are exact, and sums
//! are rounded once per operation.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D model width, E experts")]

mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use scout_device::{DeviceError, Tensor};

use crate::{Result, check};

/// Where the tokens of a batch go. "Sorted" means ordered by expert, tokens of one expert in their own order.
#[derive(Debug, Clone)]
pub struct Routing {
    /// u32: the expert of each token.
    pub expert_T: Tensor,
    /// The sigmoid of the expert's logit.
    pub score_T: Tensor,
    /// u32: the token at each sorted position.
    pub order_T: Tensor,
    /// Sorted positions `offsets[e]..offsets[e + 1]` belong to expert `e`; one more entry than there are experts.
    pub offsets: Vec<u32>,
}

#[derive(Debug, Clone)]
pub struct RouterGradient {
    /// `[T, D]`.
    pub dx: Tensor,
    /// Of the chosen expert's logit; the others have none.
    pub dlogit_T: Tensor,
}

/// Each token goes to its largest logit, of equal ones to the first. NaN counts as largest, so that it reaches the loss
/// and stops the run instead of being passed over.
pub fn choose(logits_TE: &Tensor) -> Result<Routing> {
    check_logits("router", logits_TE)?;
    host::choose(logits_TE)
}

/// The experts are given, recorded or from an earlier pass; the scores come from the logits.
pub fn forced(logits_TE: &Tensor, expert_T: &Tensor) -> Result<Routing> {
    const WHAT: &str = "router with given experts";
    let (num_tokens, num_experts) = check_logits(WHAT, logits_TE)?;
    expert_T.expect_dims(WHAT, &[num_tokens])?;
    let experts = expert_T.u32s()?.to_vec();
    check::indices(WHAT, &experts, num_experts)?;
    host::route(logits_TE, experts)
}

/// Sorted row `j` is `score · x` of its token.
pub fn gather_scaled(x_TD: &Tensor, routing: &Routing) -> Result<Tensor> {
    check_rows("scaled gather by expert", x_TD, routing)?;
    host::gather_scaled(x_TD, routing)
}

/// Sorted row `j` is `x` of its token.
pub fn gather(x_TD: &Tensor, routing: &Routing) -> Result<Tensor> {
    check_rows("gather by expert", x_TD, routing)?;
    crate::rows::host::gather(x_TD, &routing.order_T)
}

/// Back in token order: `residual + (shared + routed)`.
pub fn combine(
    routed_sorted_TD: &Tensor,
    routing: &Routing,
    shared_TD: &Tensor,
    residual_TD: Option<&Tensor>,
) -> Result<Tensor> {
    const WHAT: &str = "combination of experts";
    check_rows(WHAT, routed_sorted_TD, routing)?;
    check::same_dims(WHAT, routed_sorted_TD, shared_TD)?;
    if let Some(residual_TD) = residual_TD {
        check::same_dims(WHAT, routed_sorted_TD, residual_TD)?;
    }
    host::combine(routed_sorted_TD, routing, shared_TD, residual_TD)
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
    check_rows(WHAT, du_sorted_TD, routing)?;
    check::same_dims(WHAT, du_sorted_TD, x_TD)?;
    check::same_dims(WHAT, du_sorted_TD, dx_other_TD)?;
    weight_ED.expect_dims(WHAT, &[routing.offsets.len().saturating_sub(1), x_TD.dims()[1]])?;
    check::indices(WHAT, &routing.expert_T.u32s()?, weight_ED.dims()[0])?;
    host::backward(du_sorted_TD, x_TD, routing, weight_ED, dx_other_TD)
}

/// The gradient of the router's weight, `[E, D]`: each expert sums `dz·x` over its tokens, in their order, in f64 and
/// rounded once. Experts without tokens get zeros.
pub fn weight_gradient(dlogit_T: &Tensor, x_TD: &Tensor, routing: &Routing) -> Result<Tensor> {
    const WHAT: &str = "router, gradient of the weight";
    check_rows(WHAT, x_TD, routing)?;
    dlogit_T.expect_dims(WHAT, &[x_TD.dims()[0]])?;
    host::weight_gradient(dlogit_T, x_TD, routing)
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

/// `x` has one row for each token of the routing, and the routing is whole.
fn check_rows(what: &'static str, x: &Tensor, routing: &Routing) -> Result<()> {
    let (num_tokens, _) = x.dims2(what)?;
    for part in [&routing.expert_T, &routing.score_T, &routing.order_T] {
        part.expect_dims(what, &[num_tokens])?;
    }
    check::offsets(what, &routing.offsets, num_tokens)?;
    check::indices(what, &routing.order_T.u32s()?, num_tokens)
}
