//! The forward pass of one document, with every intermediate value kept for comparison and for the backward pass.

use std::f64::consts::PI;

use scout_core::Projection;

use super::{Layer, Matrix, Mistake, Reference, Rows, add_scaled, dot, sum};

/// Everything that one document's forward pass computes.
#[derive(Debug)]
pub struct Pass {
    pub embed_out: Rows,
    pub layers: Vec<LayerPass>,
    pub final_norm_out: Rows,
    pub logits: Rows,
}

#[derive(Debug)]
pub struct LayerPass {
    pub x: Rows,
    pub attn_in: Rows,
    /// Queries and keys after rotation and before the norm.
    pub q_turned: Rows,
    pub k_turned: Rows,
    pub q: Rows,
    pub k: Rows,
    pub v: Rows,
    /// By query head, by query position: one share for each key position up to it.
    pub shares: Vec<Rows>,
    pub attn_ctx: Rows,
    pub attn_out: Rows,
    /// The residual stream between the two halves of the layer.
    pub middle: Rows,
    pub ffn_in: Rows,
    pub tokens: Vec<TokenPass>,
    pub out: Rows,
}

/// One token's way through the experts.
#[derive(Debug)]
pub struct TokenPass {
    pub router_logits: Vec<f64>,
    pub expert: usize,
    pub score: f64,
    pub routed: Gated,
    pub shared: Gated,
    pub out: Vec<f64>,
}

/// `(silu(gate) ⊙ up) · W_down` for one token.
#[derive(Debug)]
pub struct Gated {
    pub input: Vec<f64>,
    pub gate: Vec<f64>,
    pub up: Vec<f64>,
    pub hidden: Vec<f64>,
    pub out: Vec<f64>,
}

impl Reference {
    pub fn forward(&self, ids: &[usize], mistake: Mistake) -> Pass {
        let embed_out: Rows = ids.iter().map(|&id| self.embedding[id].clone()).collect();
        let mut layers: Vec<LayerPass> = Vec::new();
        for layer_index in 0..self.layers.len() {
            let x = layers.last().map_or(&embed_out, |layer| &layer.out).clone();
            layers.push(self.layer_forward(layer_index, x, mistake));
        }
        let last = &layers.last().expect("a model has layers").out;
        let final_norm_out: Rows = last.iter().map(|x| self.rms_norm(x, &self.final_norm)).collect();
        let logits = final_norm_out.iter().map(|x| self.head.apply(x)).collect();
        Pass { embed_out, layers, final_norm_out, logits }
    }

    fn layer_forward(&self, layer_index: usize, x: Rows, mistake: Mistake) -> LayerPass {
        let layer = &self.layers[layer_index];
        let attn_in: Rows = x.iter().map(|x| self.rms_norm(x, &layer.input_norm)).collect();
        let project = |projection| -> Rows { attn_in.iter().map(|x| layer.matrix(projection).apply(x)).collect() };
        let q_turned = self.turn(layer_index, project(Projection::Q), mistake);
        let k_turned = self.turn(layer_index, project(Projection::K), mistake);
        let v = project(Projection::V);
        let mut q = self.normalise_heads(layer_index, &q_turned, mistake);
        let k = self.normalise_heads(layer_index, &k_turned, mistake);
        for (position, q) in q.iter_mut().enumerate() {
            let temperature = self.temperature(layer_index, position, mistake);
            q.iter_mut().for_each(|value| *value *= temperature);
        }
        let shares = self.shares(layer_index, &q, &k, mistake);
        let attn_ctx = self.mix(&shares, &v, mistake);
        let attn_out: Rows = attn_ctx.iter().map(|x| layer.matrix(Projection::O).apply(x)).collect();
        let middle = sum(&x, &attn_out);
        let ffn_in: Rows = middle.iter().map(|x| self.rms_norm(x, &layer.post_norm)).collect();
        let tokens: Vec<TokenPass> = ffn_in.iter().map(|x| token_forward(layer, x, mistake)).collect();
        let ffn_out: Rows = tokens.iter().map(|token| token.out.clone()).collect();
        let out = sum(&middle, &ffn_out);
        LayerPass { x, attn_in, q_turned, k_turned, q, k, v, shares, attn_ctx, attn_out, middle, ffn_in, tokens, out }
    }

    fn rms_norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let r = self.inverse_rms(x);
        x.iter().zip(weight).map(|(x, w)| x * r * w).collect()
    }

    pub fn inverse_rms(&self, x: &[f64]) -> f64 {
        1.0 / (dot(x, x) / x.len() as f64 + f64::from(self.config.rms_norm_eps)).sqrt()
    }

    /// Rotation frequencies, one for each pair of a head.
    pub fn frequencies(&self, mistake: Mistake) -> Vec<f64> {
        let rope = &self.config.rope;
        let head_dim = self.config.head_dim;
        let plain = |pair: usize| rope.theta.powf(-2.0 * pair as f64 / head_dim as f64);
        let banded = |pair: usize| {
            let frequency = plain(pair);
            let Some(bands) = rope.bands.filter(|_| mistake != Mistake::BandsIgnored) else { return frequency };
            let wavelength = 2.0 * PI / frequency;
            if wavelength < bands.original_max_position / bands.high_freq_factor {
                frequency
            } else if wavelength > bands.original_max_position / bands.low_freq_factor {
                frequency / bands.factor
            } else {
                let above_low = bands.original_max_position / wavelength - bands.low_freq_factor;
                let share = above_low / (bands.high_freq_factor - bands.low_freq_factor);
                (1.0 - share) * frequency / bands.factor + share * frequency
            }
        };
        (0..head_dim / 2).map(banded).collect()
    }

    fn turn(&self, layer_index: usize, mut rows: Rows, mistake: Mistake) -> Rows {
        if self.config.rope_layers[layer_index] || mistake == Mistake::RopeOnNopeLayers {
            let frequencies = self.frequencies(mistake);
            let direction = if mistake == Mistake::RotationTheOtherWay { -1.0 } else { 1.0 };
            for (position, row) in rows.iter_mut().enumerate() {
                for head in row.chunks_mut(self.config.head_dim) {
                    rotate(head, direction * position as f64, &frequencies, mistake);
                }
            }
        }
        rows
    }

    fn normalise_heads(&self, layer_index: usize, rows: &Rows, mistake: Mistake) -> Rows {
        let is_on = match mistake {
            Mistake::NoQkNorm => false,
            Mistake::QkNormOnNopeLayers => true,
            _ => self.config.use_qk_norm && self.config.rope_layers[layer_index],
        };
        if !is_on {
            return rows.clone();
        }
        let head_dim = self.config.head_dim;
        let normalise = |head: &[f64]| -> Vec<f64> {
            let factor = match mistake {
                Mistake::QkToUnitLength => 1.0 / dot(head, head).sqrt(),
                _ => self.inverse_rms(head),
            };
            head.iter().map(|x| x * factor).collect()
        };
        rows.iter().map(|row| row.chunks(head_dim).flat_map(normalise).collect()).collect()
    }

    pub fn temperature(&self, layer_index: usize, position: usize, mistake: Mistake) -> f64 {
        let is_on = match mistake {
            Mistake::NoTemperature => false,
            Mistake::TemperatureOnAllLayers => true,
            _ => !self.config.rope_layers[layer_index],
        };
        let Some(temperature) = self.config.temperature.filter(|_| is_on) else { return 1.0 };
        let counted = if mistake == Mistake::TemperatureWithoutPlusOne { position } else { position + 1 };
        let floors = (counted as f64 / f64::from(temperature.floor_scale)).floor();
        1.0 + f64::from(temperature.attn_scale) * (1.0 + floors).ln()
    }

    /// How much of each earlier position every query takes.
    fn shares(&self, layer_index: usize, q: &Rows, k: &Rows, mistake: Mistake) -> Vec<Rows> {
        let head_dim = self.config.head_dim;
        let of_head = |rows: &Rows, head: usize, t: usize| rows[t][head * head_dim..][..head_dim].to_vec();
        let share = |head: usize, i: usize| -> Vec<f64> {
            let query = of_head(q, head, i);
            let kv_head = self.kv_head(head, mistake);
            let scores: Vec<f64> = (0..=i)
                .map(|j| match self.sees(layer_index, i, j, mistake) {
                    true => dot(&query, &of_head(k, kv_head, j)) / (head_dim as f64).sqrt(),
                    false => f64::NEG_INFINITY,
                })
                .collect();
            softmax(&scores)
        };
        let by_position = |head: usize| -> Rows { (0..q.len()).map(|i| share(head, i)).collect() };
        (0..self.config.num_heads).map(by_position).collect()
    }

    /// Whether position `i` attends to position `j` before it.
    fn sees(&self, layer_index: usize, i: usize, j: usize, mistake: Mistake) -> bool {
        let chunk = self.config.attention_chunk_size;
        let is_chunked = match mistake {
            Mistake::PlainCausalOnRopeLayers => false,
            Mistake::ChunksOnNopeLayers => true,
            _ => self.config.rope_layers[layer_index],
        };
        match mistake {
            _ if !is_chunked => true,
            Mistake::SlidingWindow => i - j < chunk,
            _ => i / chunk == j / chunk,
        }
    }

    pub fn kv_head(&self, head: usize, mistake: Mistake) -> usize {
        match mistake {
            Mistake::TiledKvHeads => head % self.config.num_kv_heads,
            _ => head / (self.config.num_heads / self.config.num_kv_heads),
        }
    }

    /// The values of all positions, mixed by the shares; heads joined.
    fn mix(&self, shares: &[Rows], v: &Rows, mistake: Mistake) -> Rows {
        let head_dim = self.config.head_dim;
        let mut mixed = vec![vec![0.0; shares.len() * head_dim]; v.len()];
        for (head, by_position) in shares.iter().enumerate() {
            let kv_head = self.kv_head(head, mistake);
            for (i, shares) in by_position.iter().enumerate() {
                for (j, &share) in shares.iter().enumerate() {
                    add_scaled(
                        &mut mixed[i][head * head_dim..][..head_dim],
                        share,
                        &v[j][kv_head * head_dim..][..head_dim],
                    );
                }
            }
        }
        mixed
    }
}

/// Turns the pairs of one head by `position` times their frequencies.
pub fn rotate(head: &mut [f64], position: f64, frequencies: &[f64], mistake: Mistake) {
    for (pair, frequency) in frequencies.iter().enumerate() {
        let (first, second) = match mistake {
            Mistake::HalfSplitPairs => (pair, pair + frequencies.len()),
            _ => (2 * pair, 2 * pair + 1),
        };
        let (sin, cos) = (position * frequency).sin_cos();
        let (a, b) = (head[first], head[second]);
        head[first] = a * cos - b * sin;
        head[second] = a * sin + b * cos;
    }
}

fn token_forward(layer: &Layer, x: &[f64], mistake: Mistake) -> TokenPass {
    let router_logits = layer.router.apply(x);
    let expert =
        (0..router_logits.len()).fold(0, |best, e| if router_logits[e] > router_logits[best] { e } else { best });
    let score = match mistake {
        Mistake::Softmax => softmax(&router_logits)[expert],
        _ => sigmoid(router_logits[expert]),
    };
    let scale = if matches!(mistake, Mistake::ScoreIgnored | Mistake::ScoreOnOutput) { 1.0 } else { score };
    let input: Vec<f64> = x.iter().map(|x| scale * x).collect();
    let (gate, up) = split(&layer.expert(Projection::ExpertsGateUp, expert).apply(&input), mistake);
    let mut routed = gated(input, gate, up, layer.expert(Projection::ExpertsDown, expert));
    if mistake == Mistake::ScoreOnOutput {
        routed.out.iter_mut().for_each(|value| *value *= score);
    }
    let [gate, up] = [Projection::SharedGate, Projection::SharedUp].map(|half| layer.matrix(half).apply(x));
    let shared = gated(x.to_vec(), gate, up, layer.matrix(Projection::SharedDown));
    let mut out = vec![0.0; x.len()];
    if mistake != Mistake::NoSharedExpert {
        add_scaled(&mut out, 1.0, &shared.out);
    }
    if mistake != Mistake::NoRoutedExperts {
        add_scaled(&mut out, 1.0, &routed.out);
    }
    TokenPass { router_logits, expert, score, routed, shared, out }
}

/// Gate and up from the output of the one matrix that holds both.
fn split(both: &[f64], mistake: Mistake) -> (Vec<f64>, Vec<f64>) {
    let (first, second) = both.split_at(both.len() / 2);
    match mistake {
        Mistake::GateAndUpExchanged => (second.to_vec(), first.to_vec()),
        Mistake::GateAndUpInterleaved => both.chunks(2).map(|pair| (pair[0], pair[1])).unzip(),
        _ => (first.to_vec(), second.to_vec()),
    }
}

fn gated(input: Vec<f64>, gate: Vec<f64>, up: Vec<f64>, down: &Matrix) -> Gated {
    let hidden: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g * sigmoid(*g) * u).collect();
    let out = down.apply(&hidden);
    Gated { input, gate, up, hidden, out }
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.iter().map(|power| power / total).collect()
}
