//! Routing, token by token.

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Tokens ordered by expert, and in their own order within one.
pub(super) fn order(experts: &[u32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..experts.len() as u32).collect();
    order.sort_by_key(|&token| (experts[token as usize], token));
    order
}

/// Token by token `σ(logit of the expert) · x`, with `logits = x·weightᵀ`; not sorted.
pub(super) fn scaled(x: &[f64], weight: &[f64], experts: &[u32], width: usize) -> Vec<f64> {
    let mut u = Vec::new();
    for (x, &expert) in x.chunks(width).zip(experts) {
        let logit: f64 = x.iter().zip(&weight[expert as usize * width..][..width]).map(|(x, w)| x * w).sum();
        u.extend(x.iter().map(|x| sigmoid(logit) * x));
    }
    u
}

/// `dx` and the gradient of each expert's logit, from the gradient of [`scaled`].
pub(super) fn backward(
    du: &[f64],
    x: &[f64],
    (experts, scores): (&[u32], &[f64]),
    weight: &[f64],
    dx_other: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let width = x.len() / experts.len().max(1);
    let (mut dx, mut dlogit) = (dx_other.to_vec(), Vec::new());
    for (token, (&expert, &score)) in experts.iter().zip(scores).enumerate() {
        let ds: f64 = (0..width).map(|i| x[token * width + i] * du[token * width + i]).sum();
        let dz = ds * score * (1.0 - score);
        dlogit.push(dz);
        for i in 0..width {
            dx[token * width + i] += score * du[token * width + i] + dz * weight[expert as usize * width + i];
        }
    }
    (dx, dlogit)
}

/// The gradient of the router's weight, token by token.
pub(super) fn weight_gradient(dlogit: &[f64], x: &[f64], experts: &[u32], num_experts: usize) -> Vec<f64> {
    let width = x.len() / experts.len().max(1);
    let mut dweight = vec![0.0; num_experts * width];
    for (token, &expert) in experts.iter().enumerate() {
        for i in 0..width {
            dweight[expert as usize * width + i] += dlogit[token] * x[token * width + i];
        }
    }
    dweight
}
