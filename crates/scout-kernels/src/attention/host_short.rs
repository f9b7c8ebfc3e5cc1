//! Segments of a few tokens: plain loops over the pairs of tokens, with no memory beyond one row of scores.

use super::segment::{Saved, Segment};
use crate::exp::exp;
use crate::host::{dot, max, sum};

pub(super) fn forward(segment: &Segment, context: &mut [f32], log_sum_exp: &mut [f32]) {
    let heads = segment.heads;
    let size = heads.size;
    let mut scores = Vec::new();
    let queries = segment.q.chunks_exact(size).zip(context.chunks_exact_mut(size)).zip(log_sum_exp);
    for (index, ((q, context), log_sum_exp)) in queries.enumerate() {
        let (token, kv_head) = (index / heads.query, index % heads.query / heads.group());
        scores.clear();
        scores.extend((0..=token).map(|key| dot(q, kv_row(segment, segment.k, key, kv_head)) as f32 * heads.scale));
        let largest = max(&scores);
        scores.iter_mut().for_each(|score| *score = exp(*score - largest));
        let sum = sum(&scores);
        *log_sum_exp = (sum.ln() + f64::from(largest)) as f32;
        let inverse_sum = (1.0 / sum) as f32;
        for (key, score) in scores.iter().enumerate() {
            add_scaled(context, score * inverse_sum, kv_row(segment, segment.v, key, kv_head));
        }
    }
}

pub(super) fn backward(segment: &Segment, saved: &Saved, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
    let heads = segment.heads;
    let size = heads.size;
    let saved_rows = saved.dcontext.chunks_exact(size).zip(saved.context.chunks_exact(size)).zip(saved.log_sum_exp);
    let queries = segment.q.chunks_exact(size).zip(dq.chunks_exact_mut(size)).zip(saved_rows);
    for (index, ((q, dq), ((dcontext, context), &log_sum_exp))) in queries.enumerate() {
        let (token, kv_head) = (index / heads.query, index % heads.query / heads.group());
        let along = dot(dcontext, context) as f32;
        for key in 0..=token {
            let (k, v) = (kv_row(segment, segment.k, key, kv_head), kv_row(segment, segment.v, key, kv_head));
            let probability = exp(dot(q, k) as f32 * heads.scale - log_sum_exp);
            let dscore = probability * (dot(dcontext, v) as f32 - along) * heads.scale;
            let at = key * heads.kv_width() + kv_head * size;
            add_scaled(dq, dscore, k);
            add_scaled(&mut dk[at..at + size], dscore, q);
            add_scaled(&mut dv[at..at + size], probability, dcontext);
        }
    }
}

fn kv_row<'a>(segment: &Segment, values: &'a [f32], token: usize, kv_head: usize) -> &'a [f32] {
    let size = segment.heads.size;
    &values[token * segment.heads.kv_width() + kv_head * size..][..size]
}

fn add_scaled(sums: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += factor * value;
    }
}
