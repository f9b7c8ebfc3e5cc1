//! Attention, pair by pair of tokens.

use super::heads::Heads;

pub(super) struct Attended {
    pub context: Vec<f64>,
    pub log_sum_exp: Vec<f64>,
}

/// Scaled scores of one query against the keys it may see: `(key token, score)`.
fn scores(q: &[f64], k: &[f64], segments: &[u32], heads: Heads, (token, head): (usize, usize)) -> Vec<(usize, f64)> {
    let start = *segments.iter().filter(|&&start| start as usize <= token).max().unwrap() as usize;
    let kv_head = head / heads.group();
    let query = &q[(token * heads.query + head) * heads.size..][..heads.size];
    (start..=token)
        .map(|key| {
            let row = &k[(key * heads.kv + kv_head) * heads.size..][..heads.size];
            (key, query.iter().zip(row).map(|(q, k)| q * k).sum::<f64>() * f64::from(heads.scale))
        })
        .collect()
}

pub(super) fn forward([q, k, v]: [&[f64]; 3], segments: &[u32], heads: Heads) -> Attended {
    let num_tokens = *segments.last().unwrap() as usize;
    let mut context = vec![0.0; q.len()];
    let mut log_sum_exp = vec![0.0; num_tokens * heads.query];
    for token in 0..num_tokens {
        for head in 0..heads.query {
            let scores = scores(q, k, segments, heads, (token, head));
            let total = scores.iter().map(|(_, score)| score.exp()).sum::<f64>();
            log_sum_exp[token * heads.query + head] = total.ln();
            for (key, score) in scores {
                for i in 0..heads.size {
                    let value = v[(key * heads.kv + head / heads.group()) * heads.size + i];
                    context[(token * heads.query + head) * heads.size + i] += score.exp() / total * value;
                }
            }
        }
    }
    Attended { context, log_sum_exp }
}

/// dq, dk, dv.
pub(super) fn backward(dcontext: &[f64], [q, k, v]: [&[f64]; 3], segments: &[u32], heads: Heads) -> [Vec<f64>; 3] {
    let Attended { context, log_sum_exp } = forward([q, k, v], segments, heads);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let size = heads.size;
    for (row, &log_sum_exp) in log_sum_exp.iter().enumerate() {
        let (token, head) = (row / heads.query, row % heads.query);
        let dcontext = &dcontext[row * size..][..size];
        let along: f64 = (0..size).map(|i| dcontext[i] * context[row * size + i]).sum();
        for (key, score) in scores(q, k, segments, heads, (token, head)) {
            let at = (key * heads.kv + head / heads.group()) * size;
            let probability = (score - log_sum_exp).exp();
            let dprobability: f64 = (0..size).map(|i| dcontext[i] * v[at + i]).sum();
            let dscore = probability * (dprobability - along) * f64::from(heads.scale);
            for i in 0..size {
                dq[row * size + i] += dscore * k[at + i];
                dk[at + i] += dscore * q[row * size + i];
                dv[at + i] += probability * dcontext[i];
            }
        }
    }
    [dq, dk, dv]
}
