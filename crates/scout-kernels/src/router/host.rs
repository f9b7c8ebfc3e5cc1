//! A counting sort over the experts, and loops over the rows of the result. Token order is found again through the
//! inverse of the sort, so that every thread writes rows of its own.

use scout_device::Tensor;

use super::offsets::Offsets;
use super::{RouterGradient, Routing};
use crate::Result;
use crate::exp::sigmoid;
use crate::host::{dot, filled, for_each_piece, for_each_row, for_each_row_pair, sum_over_rows};

pub(super) fn choose(logits: &Tensor) -> Result<Routing> {
    let num_experts = logits.dims()[1];
    // At least 1 for a batch without tokens, where there may be no experts either.
    let experts = logits.f32s()?.chunks_exact(num_experts.max(1)).map(first_largest).collect();
    route(logits, experts)
}

fn first_largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (expert, &logit) in logits.iter().enumerate().skip(1) {
        if logit > logits[best] || (logit.is_nan() && !logits[best].is_nan()) {
            best = expert;
        }
    }
    best as u32
}

/// Every expert is one of those that have a logit.
pub(super) fn route(logits: &Tensor, experts: Vec<u32>) -> Result<Routing> {
    let (num_tokens, num_experts) = (logits.dims()[0], logits.dims()[1]);
    let mut offsets = vec![0u32; num_experts + 1];
    for &expert in &experts {
        offsets[expert as usize + 1] += 1;
    }
    for expert in 0..num_experts {
        offsets[expert + 1] += offsets[expert];
    }
    let mut next = offsets.clone();
    let (mut order, mut positions) = (vec![0u32; num_tokens], Vec::with_capacity(num_tokens));
    for (token, &expert) in experts.iter().enumerate() {
        let position = &mut next[expert as usize];
        order[*position as usize] = token as u32;
        positions.push(*position);
        *position += 1;
    }
    let logits = logits.f32s()?;
    let scores = experts.iter().enumerate().map(|(t, &e)| sigmoid(logits[t * num_experts + e as usize])).collect();
    Ok(Routing {
        expert_T: Tensor::from_u32(experts, [num_tokens])?,
        score_T: Tensor::from_f32(scores, [num_tokens])?,
        order_T: Tensor::from_u32(order, [num_tokens])?,
        position_T: Tensor::from_u32(positions, [num_tokens])?,
        offsets: Offsets::Host(offsets),
    })
}

pub(super) fn gather_scaled(x: &Tensor, routing: &Routing) -> Result<Tensor> {
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let (x, scores, order) = (x.f32s()?, routing.score_T.f32s()?, routing.order_T.u32s()?);
    let (x, scores, order) = (&x[..], &scores[..], &order[..]);
    filled([num_tokens, width], |u| {
        for_each_row(u, width, |row, u| {
            let token = order[row] as usize;
            for (u, &x) in u.iter_mut().zip(&x[token * width..][..width]) {
                *u = x * scores[token];
            }
        });
    })
}

pub(super) fn combine(
    routed: &Tensor,
    routing: &Routing,
    shared: &Tensor,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (num_tokens, width) = (routed.dims()[0], routed.dims()[1]);
    let sorted_position = routing.position_T.u32s()?;
    let sorted_position = &sorted_position[..];
    let (routed, shared) = (routed.f32s()?, shared.f32s()?);
    let residual = residual.map(|residual| residual.f32s()).transpose()?;
    let (routed, shared, residual) = (&routed[..], &shared[..], residual.as_deref());
    filled([num_tokens, width], |y| {
        for_each_row(y, width, |token, y| {
            let routed = &routed[sorted_position[token] as usize * width..][..width];
            let shared = &shared[token * width..][..width];
            match residual.map(|residual| &residual[token * width..][..width]) {
                Some(residual) => {
                    for (((y, &routed), &shared), &residual) in y.iter_mut().zip(routed).zip(shared).zip(residual) {
                        *y = residual + (shared + routed);
                    }
                }
                None => {
                    for ((y, &routed), &shared) in y.iter_mut().zip(routed).zip(shared) {
                        *y = shared + routed;
                    }
                }
            }
        });
    })
}

pub(super) fn backward(
    du_sorted: &Tensor,
    x: &Tensor,
    routing: &Routing,
    weight: &Tensor,
    dx_other: &Tensor,
) -> Result<RouterGradient> {
    let (num_tokens, width) = (x.dims()[0], x.dims()[1]);
    let sorted_position = routing.position_T.u32s()?;
    let sorted_position = &sorted_position[..];
    let (du, x, weight, dx_other) = (du_sorted.f32s()?, x.f32s()?, weight.f32s()?, dx_other.f32s()?);
    let (du, x, weight, dx_other) = (&du[..], &x[..], &weight[..], &dx_other[..]);
    let (experts, scores) = (routing.expert_T.u32s()?, routing.score_T.f32s()?);
    let (experts, scores) = (&experts[..], &scores[..]);
    let mut dlogit = vec![0.0; num_tokens];
    let dx = filled([num_tokens, width], |dx| {
        for_each_row_pair((dx, width), (&mut dlogit, 1), |token, dx, dlogit| {
            let du = &du[sorted_position[token] as usize * width..][..width];
            let score = scores[token];
            let dz = dot(&x[token * width..][..width], du) as f32 * (score * (1.0 - score));
            dlogit[0] = dz;
            let weight = &weight[experts[token] as usize * width..][..width];
            let other = &dx_other[token * width..][..width];
            for (((dx, &other), &du), &weight) in dx.iter_mut().zip(other).zip(du).zip(weight) {
                *dx = other + score * du + dz * weight;
            }
        });
    })?;
    Ok(RouterGradient { dx, dlogit_T: Tensor::from_f32(dlogit, [num_tokens])? })
}

pub(super) fn weight_gradient(dlogit: &Tensor, x: &Tensor, routing: &Routing) -> Result<Tensor> {
    let width = x.dims()[1];
    let (dlogit, x, order) = (dlogit.f32s()?, x.f32s()?, routing.order_T.u32s()?);
    let (dlogit, x, order) = (&dlogit[..], &x[..], &order[..]);
    let offsets = routing.offsets()?;
    filled([offsets.len() - 1, width], |dweight| {
        for (dweight, ends) in dweight.chunks_exact_mut(width.max(1)).zip(offsets.windows(2)) {
            let of_expert = &order[ends[0] as usize..ends[1] as usize];
            for_each_piece(dweight, |first_column, dweight| {
                let tokens = of_expert.iter().map(|&token| token as usize);
                sum_over_rows(dweight, first_column, tokens, |token, column| {
                    f64::from(dlogit[token]) * f64::from(x[token * width + column])
                });
            });
        }
    })
}
