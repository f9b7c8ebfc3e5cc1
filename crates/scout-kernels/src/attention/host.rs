//! Tiles of query rows against all keys they may see, by matrix products. The query heads of a group are stacked: row
//! `token · group + head`, so a tile is one matrix and the sum over the group happens inside the products. Segments too
//! short for matrix products go to `host_short`.

use rayon::prelude::*;
use scout_device::Tensor;

use super::heads::Heads;
use super::host_short;
use super::results::{Attended, QkvGradients};
use super::segment::{Saved, Segment};
use crate::Result;
use crate::exp::exp;
use crate::host::{dot, max, sum, write};
use crate::matmul::host::{nn, nt, tn};

/// Rows of a tile, in tokens: enough for full matrix kernels, few enough that little of the last square is wasted.
const TILE_TOKENS: usize = 64;
/// Scores that one tile may have, before it takes fewer tokens.
const TILE_SCORES: usize = 4 << 20;
/// Up to here plain loops win over the fixed cost of matrix products.
const SHORT_SEGMENT: usize = 8;

pub(super) fn forward([q, k, v]: [&Tensor; 3], segments: &[u32], heads: Heads) -> Result<Attended> {
    let num_tokens = q.dims()[0];
    let (q, k, v) = (q.f32s()?, k.f32s()?, v.f32s()?);
    let (q, k, v) = (&q[..], &k[..], &v[..]);
    let mut context = vec![0.0; num_tokens * heads.query_width()];
    let mut log_sum_exp = vec![0.0; num_tokens * heads.query];
    let outs = by_segment(&mut context, segments, heads.query_width());
    let outs = outs.into_par_iter().zip(by_segment(&mut log_sum_exp, segments, heads.query));
    outs.zip(segments.par_windows(2)).try_for_each(|((context, log_sum_exp), ends)| {
        let (tokens, segment) = tokens_and_segment(q, k, v, ends, heads);
        if tokens <= SHORT_SEGMENT {
            host_short::forward(&segment, context, log_sum_exp);
            return Ok(());
        }
        let parts = (0..heads.kv).into_par_iter().map(|kv_head| forward_group(&segment, kv_head));
        for (kv_head, part) in parts.collect::<Result<Vec<_>>>()?.into_iter().enumerate() {
            let first_head = kv_head * heads.group();
            unstack(&part.context, context, heads.query_width(), first_head * heads.size);
            unstack(&part.log_sum_exp, log_sum_exp, heads.query, first_head);
        }
        Ok(())
    })?;
    Ok(Attended {
        context: Tensor::from_f32(context, [num_tokens, heads.query, heads.size])?,
        log_sum_exp: Tensor::from_f32(log_sum_exp, [num_tokens, heads.query])?,
    })
}

pub(super) fn backward(
    dcontext: &Tensor,
    [q, k, v]: [&Tensor; 3],
    attended: &Attended,
    segments: &[u32],
    heads: Heads,
) -> Result<QkvGradients> {
    let (q_shape, kv_shape) = (q.shape().clone(), k.shape().clone());
    let (q, k, v) = (q.f32s()?, k.f32s()?, v.f32s()?);
    let (q, k, v) = (&q[..], &k[..], &v[..]);
    let (dcontext, context, log_sum_exp) = (dcontext.f32s()?, attended.context.f32s()?, attended.log_sum_exp.f32s()?);
    let (dcontext, context, log_sum_exp) = (&dcontext[..], &context[..], &log_sum_exp[..]);
    let mut dq = vec![0.0; q.len()];
    let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    let outs = by_segment(&mut dq, segments, heads.query_width())
        .into_par_iter()
        .zip(by_segment(&mut dk, segments, heads.kv_width()))
        .zip(by_segment(&mut dv, segments, heads.kv_width()));
    outs.zip(segments.par_windows(2)).try_for_each(|(((dq, dk), dv), ends)| {
        let (tokens, segment) = tokens_and_segment(q, k, v, ends, heads);
        let saved = Saved {
            dcontext: rows(dcontext, ends, heads.query_width()),
            context: rows(context, ends, heads.query_width()),
            log_sum_exp: rows(log_sum_exp, ends, heads.query),
        };
        if tokens <= SHORT_SEGMENT {
            host_short::backward(&segment, &saved, dq, dk, dv);
            return Ok(());
        }
        let parts = (0..heads.kv).into_par_iter().map(|kv_head| backward_group(&segment, &saved, kv_head));
        for (kv_head, part) in parts.collect::<Result<Vec<_>>>()?.into_iter().enumerate() {
            unstack(&part.dq, dq, heads.query_width(), kv_head * heads.group() * heads.size);
            unstack(&part.dk, dk, heads.kv_width(), kv_head * heads.size);
            unstack(&part.dv, dv, heads.kv_width(), kv_head * heads.size);
        }
        Ok(())
    })?;
    Ok(QkvGradients {
        dq: Tensor::from_f32(dq, q_shape)?,
        dk: Tensor::from_f32(dk, kv_shape.clone())?,
        dv: Tensor::from_f32(dv, kv_shape)?,
    })
}

fn tokens_and_segment<'a>(
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    ends: &[u32],
    heads: Heads,
) -> (usize, Segment<'a>) {
    let (q, k, v) =
        (rows(q, ends, heads.query_width()), rows(k, ends, heads.kv_width()), rows(v, ends, heads.kv_width()));
    ((ends[1] - ends[0]) as usize, Segment { q, k, v, heads })
}

fn rows<'a>(values: &'a [f32], ends: &[u32], width: usize) -> &'a [f32] {
    &values[ends[0] as usize * width..ends[1] as usize * width]
}

/// Cuts a result of `width` columns where segments begin, so that each can be written by a thread of its own.
fn by_segment<'a>(mut out: &'a mut [f32], segments: &[u32], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(segments.len());
    for ends in segments.windows(2) {
        let (part, rest) = out.split_at_mut((ends[1] - ends[0]) as usize * width);
        parts.push(part);
        out = rest;
    }
    parts
}

struct GroupForward {
    context: Vec<f32>,
    log_sum_exp: Vec<f32>,
}

/// All query heads of one key and value head, stacked.
fn forward_group(segment: &Segment, kv_head: usize) -> Result<GroupForward> {
    let heads = segment.heads;
    let (group, size) = (heads.group(), heads.size);
    let operands = Operands::new(segment, kv_head)?;
    let mut context = Vec::with_capacity(operands.tokens * group * size);
    let mut log_sum_exp = Vec::with_capacity(operands.tokens * group);
    let mut inverse_sums = Vec::new();
    for (first, end) in tiles(operands.tokens, group) {
        let scores =
            nt(operands.q.rows(first * group, (end - first) * group)?.host()?, operands.k.rows(0, end)?.host()?)?;
        inverse_sums.clear();
        write("attention", scores.host()?, |scores| {
            for (row, scores) in scores.chunks_exact_mut(end).enumerate() {
                let (visible, hidden) = scores.split_at_mut(first + row / group + 1);
                let largest = max(visible);
                visible.iter_mut().for_each(|score| *score = exp(*score - largest));
                hidden.fill(0.0);
                let sum = sum(visible);
                inverse_sums.push((1.0 / sum) as f32);
                log_sum_exp.push((sum.ln() + f64::from(largest)) as f32);
            }
        })?;
        let tile = nn(scores.host()?, operands.v.rows(0, end)?.host()?)?;
        for (row, &inverse_sum) in tile.f32s()?.chunks_exact(size).zip(&inverse_sums) {
            context.extend(row.iter().map(|value| value * inverse_sum));
        }
    }
    Ok(GroupForward { context, log_sum_exp })
}

struct GroupBackward {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

fn backward_group(segment: &Segment, saved: &Saved, kv_head: usize) -> Result<GroupBackward> {
    let heads = segment.heads;
    let (group, size) = (heads.group(), heads.size);
    let Operands { tokens, q, k, v } = Operands::new(segment, kv_head)?;
    let columns = (kv_head * group * size, group * size);
    let dcontext = stack(saved.dcontext, heads.query_width(), columns);
    let context = stack(saved.context, heads.query_width(), columns);
    let log_sum_exp = stack(saved.log_sum_exp, heads.query, (kv_head * group, group));
    let along: Vec<f32> =
        dcontext.chunks_exact(size).zip(context.chunks_exact(size)).map(|(a, b)| dot(a, b) as f32).collect();
    let dcontext = Tensor::from_f32(dcontext, [tokens * group, size])?;
    let mut dq = Vec::with_capacity(tokens * group * size);
    let (mut dk, mut dv) = (vec![0.0; tokens * size], vec![0.0; tokens * size]);
    for (first, end) in tiles(tokens, group) {
        let (start, count) = (first * group, (end - first) * group);
        let (q, dcontext) = (q.rows(start, count)?, dcontext.rows(start, count)?);
        let (k, v) = (k.rows(0, end)?, v.rows(0, end)?);
        let probabilities = nt(q.host()?, k.host()?)?;
        write("attention backward", probabilities.host()?, |scores| {
            for (row, scores) in scores.chunks_exact_mut(end).enumerate() {
                let (visible, hidden) = scores.split_at_mut(first + row / group + 1);
                let log_sum_exp = log_sum_exp[start + row];
                visible.iter_mut().for_each(|score| *score = exp(*score - log_sum_exp));
                hidden.fill(0.0);
            }
        })?;
        add_to(&mut dv, &tn(probabilities.host()?, dcontext.host()?)?)?;
        let dscores = nt(dcontext.host()?, v.host()?)?;
        let probabilities = probabilities.f32s()?;
        write("attention backward", dscores.host()?, |dscores| {
            let rows = dscores.chunks_exact_mut(end).zip(probabilities.chunks_exact(end));
            for ((dscores, probabilities), &along) in rows.zip(&along[start..]) {
                for (dscore, &probability) in dscores.iter_mut().zip(probabilities) {
                    *dscore = probability * (*dscore - along);
                }
            }
        })?;
        dq.extend(nn(dscores.host()?, k.host()?)?.f32s()?.iter().map(|value| value * heads.scale));
        // The scale of the scores is in `q` already.
        add_to(&mut dk, &tn(dscores.host()?, q.host()?)?)?;
    }
    Ok(GroupBackward { dq, dk, dv })
}

/// One key and value head of a segment, and its query heads, as matrices.
struct Operands {
    tokens: usize,
    /// Scaled and stacked: `[tokens · group, size]`.
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Operands {
    fn new(segment: &Segment, kv_head: usize) -> Result<Operands> {
        let heads = segment.heads;
        let tokens = segment.k.len() / heads.kv_width();
        let query_columns = (kv_head * heads.group() * heads.size, heads.group() * heads.size);
        let mut q = stack(segment.q, heads.query_width(), query_columns);
        q.iter_mut().for_each(|value| *value *= heads.scale);
        let kv_columns = (kv_head * heads.size, heads.size);
        Ok(Operands {
            tokens,
            q: Tensor::from_f32(q, [tokens * heads.group(), heads.size])?,
            k: Tensor::from_f32(stack(segment.k, heads.kv_width(), kv_columns), [tokens, heads.size])?,
            v: Tensor::from_f32(stack(segment.v, heads.kv_width(), kv_columns), [tokens, heads.size])?,
        })
    }
}

/// First token and end of each tile.
fn tiles(tokens: usize, group: usize) -> impl Iterator<Item = (usize, usize)> {
    let tile = (TILE_SCORES / (group * tokens)).clamp(1, TILE_TOKENS);
    (0..tokens).step_by(tile).map(move |first| (first, tokens.min(first + tile)))
}

/// Some columns of each row, one behind the other.
fn stack(values: &[f32], width: usize, (start, count): (usize, usize)) -> Vec<f32> {
    let mut stacked = Vec::with_capacity(values.len() / width * count);
    for row in values.chunks_exact(width) {
        stacked.extend_from_slice(&row[start..start + count]);
    }
    stacked
}

/// Puts stacked columns back from `start`.
fn unstack(stacked: &[f32], out: &mut [f32], width: usize, start: usize) {
    let count = stacked.len() / (out.len() / width);
    for (row, part) in out.chunks_exact_mut(width).zip(stacked.chunks_exact(count)) {
        row[start..start + count].copy_from_slice(part);
    }
}

/// Adds to the first rows.
fn add_to(sums: &mut [f32], part: &Tensor) -> Result<()> {
    for (sum, &value) in sums.iter_mut().zip(part.f32s()?.iter()) {
        *sum += value;
    }
    Ok(())
}
