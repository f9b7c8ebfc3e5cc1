//! The backward pass of one document, written out by hand from the values that the forward pass kept. It knows a single
//! mistake: to forget that the router's score depends on the token.

use scout_core::Projection;

use super::forward::{Gated, LayerPass, Pass, TokenPass, rotate, sigmoid};
use super::{Matrix, Mistake, Projections, Reference, Rows, add_scaled, dot, sum};

/// What a backward pass leaves behind. The gradients of the matrices add up over documents; the others are of the last
/// document.
#[derive(Debug)]
pub struct Gradients {
    pub projections: Vec<Projections>,
    pub of_layer_out: Vec<Rows>,
    pub of_final_norm_out: Rows,
}

impl Reference {
    pub fn no_gradients(&self) -> Gradients {
        let zeros = |matrices: &Vec<Matrix>| matrices.iter().map(Matrix::zeros_like).collect();
        let of_layer = |projections: &Projections| projections.iter().map(|(&p, m)| (p, zeros(m))).collect();
        Gradients {
            projections: self.layers.iter().map(|layer| of_layer(&layer.projections)).collect(),
            of_layer_out: Vec::new(),
            of_final_norm_out: Vec::new(),
        }
    }

    /// Takes the gradient of the loss by the logits back through the document.
    pub fn backward(&self, pass: &Pass, d_logits: &Rows, mistake: Mistake, gradients: &mut Gradients) {
        assert!(matches!(mistake, Mistake::None | Mistake::NoRouterGradient), "{mistake:?} has no backward pass here");
        gradients.of_final_norm_out = d_logits.iter().map(|dy| self.head.apply_transposed(dy)).collect();
        let last = &pass.layers.last().expect("a model has layers").out;
        let mut d_out = self.rms_norm_backward(last, &self.final_norm, &gradients.of_final_norm_out);
        gradients.of_layer_out = vec![Rows::new(); pass.layers.len()];
        for (layer_index, saved) in pass.layers.iter().enumerate().rev() {
            gradients.of_layer_out[layer_index] = d_out.clone();
            let of_layer = &mut gradients.projections[layer_index];
            let d_middle = self.experts_backward(layer_index, saved, &d_out, mistake, of_layer);
            d_out = self.attention_backward(layer_index, saved, d_middle, of_layer);
        }
    }

    fn experts_backward(
        &self,
        layer_index: usize,
        saved: &LayerPass,
        d_out: &Rows,
        mistake: Mistake,
        gradients: &mut Projections,
    ) -> Rows {
        let d_ffn_in: Rows = saved
            .tokens
            .iter()
            .zip(d_out)
            .map(|(token, dy)| {
                let mut dx = self.routed_backward(layer_index, token, dy, mistake, gradients);
                add_scaled(&mut dx, 1.0, &self.shared_backward(layer_index, &token.shared, dy, gradients));
                dx
            })
            .collect();
        let through_norm = self.rms_norm_backward(&saved.middle, &self.layers[layer_index].post_norm, &d_ffn_in);
        sum(d_out, &through_norm)
    }

    /// The router is frozen, and still its score carries a gradient to the token.
    fn routed_backward(
        &self,
        layer_index: usize,
        token: &TokenPass,
        dy: &[f64],
        mistake: Mistake,
        gradients: &mut Projections,
    ) -> Vec<f64> {
        let layer = &self.layers[layer_index];
        let (x, expert, score) = (&token.shared.input, token.expert, token.score);
        let down = layer.expert(Projection::ExpertsDown, expert);
        let d_down = &mut of_projection(gradients, Projection::ExpertsDown)[expert];
        let (d_gate, d_up) = gated_backward(&token.routed, down, dy, d_down);
        let d_both = [d_gate, d_up].concat();
        let d_input = layer.expert(Projection::ExpertsGateUp, expert).apply_transposed(&d_both);
        of_projection(gradients, Projection::ExpertsGateUp)[expert].add_outer(&token.routed.input, &d_both);
        let mut dx: Vec<f64> = d_input.iter().map(|du| score * du).collect();
        if mistake != Mistake::NoRouterGradient {
            let d_logit = dot(x, &d_input) * score * (1.0 - score);
            let mut d_logits = vec![0.0; layer.router.output];
            d_logits[expert] = d_logit;
            add_scaled(&mut dx, 1.0, &layer.router.apply_transposed(&d_logits));
        }
        dx
    }

    fn shared_backward(&self, layer_index: usize, shared: &Gated, dy: &[f64], gradients: &mut Projections) -> Vec<f64> {
        let layer = &self.layers[layer_index];
        let down = layer.matrix(Projection::SharedDown);
        let (d_gate, d_up) = gated_backward(shared, down, dy, &mut of_projection(gradients, Projection::SharedDown)[0]);
        let mut dx = vec![0.0; shared.input.len()];
        for (projection, dy) in [(Projection::SharedGate, d_gate), (Projection::SharedUp, d_up)] {
            add_scaled(&mut dx, 1.0, &layer.matrix(projection).apply_transposed(&dy));
            of_projection(gradients, projection)[0].add_outer(&shared.input, &dy);
        }
        dx
    }

    fn attention_backward(
        &self,
        layer_index: usize,
        saved: &LayerPass,
        d_middle: Rows,
        gradients: &mut Projections,
    ) -> Rows {
        let layer = &self.layers[layer_index];
        let output = layer.matrix(Projection::O);
        let d_ctx: Rows = d_middle.iter().map(|dy| output.apply_transposed(dy)).collect();
        for (ctx, dy) in saved.attn_ctx.iter().zip(&d_middle) {
            of_projection(gradients, Projection::O)[0].add_outer(ctx, dy);
        }
        let (mut dq, dk, dv) = self.shares_backward(saved, &d_ctx);
        for (position, dq) in dq.iter_mut().enumerate() {
            let temperature = self.temperature(layer_index, position, Mistake::None);
            dq.iter_mut().for_each(|value| *value *= temperature);
        }
        let dq = self.turn_backward(layer_index, &saved.q_turned, dq);
        let dk = self.turn_backward(layer_index, &saved.k_turned, dk);
        let mut d_attn_in = vec![vec![0.0; self.config.hidden_size]; dq.len()];
        for (projection, d_projected) in [(Projection::Q, dq), (Projection::K, dk), (Projection::V, dv)] {
            for ((x, dy), dx) in saved.attn_in.iter().zip(&d_projected).zip(&mut d_attn_in) {
                add_scaled(dx, 1.0, &layer.matrix(projection).apply_transposed(dy));
                of_projection(gradients, projection)[0].add_outer(x, dy);
            }
        }
        sum(&d_middle, &self.rms_norm_backward(&saved.x, &layer.input_norm, &d_attn_in))
    }

    /// Through the weighted mean of the values and the softmax of the scores.
    fn shares_backward(&self, saved: &LayerPass, d_ctx: &Rows) -> (Rows, Rows, Rows) {
        let head_dim = self.config.head_dim;
        let zeros = |rows: &Rows| -> Rows { rows.iter().map(|row| vec![0.0; row.len()]).collect() };
        let (mut dq, mut dk, mut dv) = (zeros(&saved.q), zeros(&saved.k), zeros(&saved.v));
        for (head, by_position) in saved.shares.iter().enumerate() {
            let of_head = head * head_dim..(head + 1) * head_dim;
            let kv_head = self.kv_head(head, Mistake::None);
            let of_kv = kv_head * head_dim..(kv_head + 1) * head_dim;
            for (i, shares) in by_position.iter().enumerate() {
                let d_mixed = &d_ctx[i][of_head.clone()];
                let mean = dot(d_mixed, &saved.attn_ctx[i][of_head.clone()]);
                for (j, &share) in shares.iter().enumerate() {
                    add_scaled(&mut dv[j][of_kv.clone()], share, d_mixed);
                    let d_score = share * (dot(d_mixed, &saved.v[j][of_kv.clone()]) - mean) / (head_dim as f64).sqrt();
                    add_scaled(&mut dq[i][of_head.clone()], d_score, &saved.k[j][of_kv.clone()]);
                    add_scaled(&mut dk[j][of_kv.clone()], d_score, &saved.q[i][of_head.clone()]);
                }
            }
        }
        (dq, dk, dv)
    }

    /// Through the norm of each head and the rotation before it, on layers that have them.
    fn turn_backward(&self, layer_index: usize, turned: &Rows, dy: Rows) -> Rows {
        if !self.config.rope_layers[layer_index] {
            return dy;
        }
        let head_dim = self.config.head_dim;
        let frequencies = self.frequencies(Mistake::None);
        let ones = vec![1.0; head_dim];
        turned
            .iter()
            .zip(&dy)
            .enumerate()
            .map(|(position, (turned, dy))| {
                let mut dx = Vec::new();
                for (x, dy) in turned.chunks(head_dim).zip(dy.chunks(head_dim)) {
                    let mut d_head = dy.to_vec();
                    if self.config.use_qk_norm {
                        d_head = self.rms_norm_row_backward(x, &ones, dy);
                    }
                    rotate(&mut d_head, -(position as f64), &frequencies, Mistake::None);
                    dx.extend(d_head);
                }
                dx
            })
            .collect()
    }

    fn rms_norm_backward(&self, x: &Rows, weight: &[f64], dy: &Rows) -> Rows {
        x.iter().zip(dy).map(|(x, dy)| self.rms_norm_row_backward(x, weight, dy)).collect()
    }

    fn rms_norm_row_backward(&self, x: &[f64], weight: &[f64], dy: &[f64]) -> Vec<f64> {
        let r = self.inverse_rms(x);
        let g: Vec<f64> = dy.iter().zip(weight).map(|(dy, w)| dy * w).collect();
        let mean = dot(&g, x) / x.len() as f64;
        g.iter().zip(x).map(|(g, x)| r * (g - x * r * r * mean)).collect()
    }
}

/// Gradients of gate and up; the one of the matrix behind them is added to `d_down`.
fn gated_backward(saved: &Gated, down: &Matrix, dy: &[f64], d_down: &mut Matrix) -> (Vec<f64>, Vec<f64>) {
    d_down.add_outer(&saved.hidden, dy);
    let d_hidden = down.apply_transposed(dy);
    let pairs = saved.gate.iter().zip(&saved.up).zip(d_hidden);
    pairs
        .map(|((&gate, &up), d)| {
            let s = sigmoid(gate);
            (d * up * s * (1.0 + gate * (1.0 - s)), d * gate * s)
        })
        .unzip()
}

fn of_projection(gradients: &mut Projections, projection: Projection) -> &mut Vec<Matrix> {
    gradients.get_mut(&projection).expect("every projection has gradients")
}
