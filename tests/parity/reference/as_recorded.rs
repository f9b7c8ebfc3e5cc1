//! What the reference computes, under the names and in the padded shapes of the recorded files.

use scout_checkpoint::AdapterLayout;
use scout_checkpoint::adapter::file_tensors;
use scout_train::verify::{Numbered, Numbers};

use super::forward::{LayerPass, softmax};
use super::lora::{Factors, norm};
use super::{Adapter, Batch, Mistake, Pass, Reference, Rows};

/// One quantity of a layer, for every token of a document.
type OfLayer = fn(&LayerPass) -> Rows;

impl Reference {
    /// Every tensor of `expected.safetensors`.
    pub fn expected(&self, batch: &Batch, mistake: Mistake) -> Numbered {
        let passes = self.forward_all(batch, mistake);
        let mut numbered = outputs(batch, &passes);
        numbered.insert("embed_out".to_string(), by_token(batch, passes.iter().map(|pass| pass.embed_out.clone())));
        let final_norm_out = passes.iter().map(|pass| pass.final_norm_out.clone());
        numbered.insert("final_norm_out".to_string(), by_token(batch, final_norm_out));
        for layer_index in 0..self.layers.len() {
            let layers: Vec<&LayerPass> = passes.iter().map(|pass| &pass.layers[layer_index]).collect();
            let name = |quantity: &str| format!("layer.{layer_index}.{quantity}");
            numbered.extend(of_layer(batch, &layers).into_iter().map(|(quantity, x)| (name(quantity), x)));
            let heads: [(&str, OfLayer); 3] =
                [("q", |layer| layer.q.clone()), ("k", |layer| layer.k.clone()), ("v", |layer| layer.v.clone())];
            for (quantity, rows) in heads {
                let rows = layers.iter().map(|layer| rows(layer));
                numbered.insert(name(quantity), by_head(batch, rows, self.config.head_dim));
            }
        }
        let frequencies = narrow(&self.frequencies(mistake));
        numbered.insert("rope_inv_freq".to_string(), Numbers::floats(&[frequencies.len()], frequencies));
        numbered
    }

    /// What `adapter_X.expected.safetensors` holds of the forward pass; `self` has the adapter in its matrices.
    pub fn adapted_outputs(&self, batch: &Batch, mistake: Mistake) -> Numbered {
        let passes = self.forward_all(batch, mistake);
        let mut numbered = outputs(batch, &passes);
        for layer_index in 0..self.layers.len() {
            let outs = passes.iter().map(|pass| pass.layers[layer_index].out.clone());
            numbered.insert(format!("layer.{layer_index}.out"), by_token(batch, outs));
        }
        let mean_of_means = mean_of_row_means(batch, &passes);
        let accumulated = if mistake == Mistake::RowMeansAveraged { mean_of_means } else { mean_loss(batch, &passes) };
        numbered.insert("accum_loss".to_string(), Numbers::scalar(accumulated));
        numbered.insert("mean_of_row_means".to_string(), Numbers::scalar(mean_of_means));
        numbered
    }

    /// Gradients of the loss by the factors of `adapter`, which is in the matrices of `self`; those by layer outputs come
    /// beside them.
    pub fn adapted_gradients(&self, adapter: &Adapter, batch: &Batch, mistake: Mistake) -> (Factors, Numbered) {
        let mut gradients = self.no_gradients();
        let (mut of_layers, mut of_final) = (Vec::new(), Vec::new());
        for (document, pass) in batch.rows.iter().zip(self.forward_all(batch, mistake)) {
            let mut d_logits: Rows = pass.logits.iter().map(|logits| vec![0.0; logits.len()]).collect();
            for (t, token) in document.targets() {
                d_logits[t] = softmax(&pass.logits[t]);
                d_logits[t][token] -= 1.0;
                d_logits[t].iter_mut().for_each(|value| *value /= batch.num_targets() as f64);
            }
            self.backward(&pass, &d_logits, mistake, &mut gradients);
            of_layers.push(std::mem::take(&mut gradients.of_layer_out));
            of_final.push(std::mem::take(&mut gradients.of_final_norm_out));
        }
        let gradients = adapter.gradients(&gradients);
        let mut numbered = in_file(adapter, &gradients);
        numbered.insert("grad_norm".to_string(), Numbers::scalar(norm(&gradients)));
        numbered.insert("grad_of.final_norm_out".to_string(), by_token(batch, of_final.into_iter()));
        for layer_index in 0..self.layers.len() {
            let of_layer = of_layers.iter().map(|layers| layers[layer_index].clone());
            numbered.insert(format!("grad_of.layer.{layer_index}.out"), by_token(batch, of_layer));
        }
        (gradients, numbered)
    }

    pub fn loss(&self, batch: &Batch) -> f64 {
        mean_loss(batch, &self.forward_all(batch, Mistake::None))
    }

    fn forward_all(&self, batch: &Batch, mistake: Mistake) -> Vec<Pass> {
        batch.rows.iter().map(|row| self.forward(&row.ids, mistake)).collect()
    }
}

/// What every recorded pass holds.
fn outputs(batch: &Batch, passes: &[Pass]) -> Numbered {
    let losses = batch.rows.iter().zip(passes).flat_map(|(document, pass)| {
        let mut of_row = vec![0.0; batch.padded_len - 1];
        for (t, token) in document.targets() {
            of_row[t] = cross_entropy(&pass.logits[t], token);
        }
        of_row
    });
    let shape = [batch.rows.len(), batch.padded_len - 1];
    let mut numbered = Numbered::from([
        ("logits".to_string(), by_token(batch, passes.iter().map(|pass| pass.logits.clone()))),
        ("token_loss".to_string(), Numbers::floats(&shape, losses.map(|loss| loss as f32).collect())),
        ("loss".to_string(), Numbers::scalar(mean_loss(batch, passes))),
        ("num_target_tokens".to_string(), Numbers::integers(&[1], vec![batch.num_targets() as i64])),
    ]);
    for layer_index in 0..passes[0].layers.len() {
        let mut experts = vec![-1; batch.rows.len() * batch.padded_len];
        for (row, pass) in passes.iter().enumerate() {
            for (t, token) in pass.layers[layer_index].tokens.iter().enumerate() {
                experts[row * batch.padded_len + t] = token.expert as i64;
            }
        }
        let experts = Numbers::integers(&[batch.rows.len(), batch.padded_len], experts);
        numbered.insert(format!("layer.{layer_index}.router_expert"), experts);
    }
    numbered
}

/// The floating-point tensors of one layer that do not come in heads; `layers` holds that layer of every document.
fn of_layer(batch: &Batch, layers: &[&LayerPass]) -> Vec<(&'static str, Numbers)> {
    let by_name: [(&str, OfLayer); 8] = [
        ("attn_in", |layer| layer.attn_in.clone()),
        ("attn_ctx", |layer| layer.attn_ctx.clone()),
        ("attn_out", |layer| layer.attn_out.clone()),
        ("ffn_in", |layer| layer.ffn_in.clone()),
        ("shared_out", |layer| layer.tokens.iter().map(|token| token.shared.out.clone()).collect()),
        ("ffn_out", |layer| layer.tokens.iter().map(|token| token.out.clone()).collect()),
        ("router_logits", |layer| layer.tokens.iter().map(|token| token.router_logits.clone()).collect()),
        ("out", |layer| layer.out.clone()),
    ];
    let of_quantity = |rows: OfLayer| by_token(batch, layers.iter().map(|layer| rows(layer)));
    let mut numbers: Vec<_> = by_name.into_iter().map(|(name, rows)| (name, of_quantity(rows))).collect();
    let scores = |layer: &LayerPass| layer.tokens.iter().map(|token| vec![token.score]).collect();
    let mut scores = by_token(batch, layers.iter().map(|layer| scores(layer)));
    scores.shape.pop();
    numbers.push(("router_score", scores));
    numbers
}

fn mean_loss(batch: &Batch, passes: &[Pass]) -> f64 {
    let sums = batch.rows.iter().zip(passes).map(|(document, pass)| {
        document.targets().map(|(t, token)| cross_entropy(&pass.logits[t], token)).sum::<f64>()
    });
    sums.sum::<f64>() / batch.num_targets() as f64
}

/// The wrong mean: every row counts alike, however many targets it has.
fn mean_of_row_means(batch: &Batch, passes: &[Pass]) -> f64 {
    let means = batch.rows.iter().zip(passes).map(|(document, pass)| {
        let losses: Vec<f64> = document.targets().map(|(t, token)| cross_entropy(&pass.logits[t], token)).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    });
    means.sum::<f64>() / batch.rows.len() as f64
}

fn cross_entropy(logits: &[f64], token: usize) -> f64 {
    -softmax(logits)[token].ln()
}

/// Gradients under the names and in the shapes of the adapter's file.
fn in_file(adapter: &Adapter, gradients: &Factors) -> Numbered {
    let narrowed: Vec<_> = gradients.iter().map(|(a, b)| (narrow(a), narrow(b))).collect();
    let factors = |index: usize| (narrowed[index].0.as_slice(), narrowed[index].1.as_slice());
    file_tensors(AdapterLayout::Text, &adapter.modules, &factors)
        .into_iter()
        .map(|(param, x)| (format!("grad.{}", param.name), Numbers::floats(param.shape.dims(), x.into_owned())))
        .collect()
}

/// `[rows, padded_len, width]`, padding 0.
fn by_token(batch: &Batch, documents: impl Iterator<Item = Rows>) -> Numbers {
    let documents: Vec<Rows> = documents.collect();
    let width = documents[0][0].len();
    let mut values = vec![0.0; documents.len() * batch.padded_len * width];
    for (row, document) in documents.iter().enumerate() {
        for (t, token) in document.iter().enumerate() {
            values[(row * batch.padded_len + t) * width..][..width].copy_from_slice(&narrow(token));
        }
    }
    Numbers::floats(&[documents.len(), batch.padded_len, width], values)
}

/// `[rows, heads, padded_len, head_dim]`, padding 0.
fn by_head(batch: &Batch, documents: impl Iterator<Item = Rows>, head_dim: usize) -> Numbers {
    let documents: Vec<Rows> = documents.collect();
    let num_heads = documents[0][0].len() / head_dim;
    let mut values = vec![0.0; documents.len() * num_heads * batch.padded_len * head_dim];
    for (row, document) in documents.iter().enumerate() {
        for (t, token) in document.iter().enumerate() {
            for (head, x) in token.chunks(head_dim).enumerate() {
                let place = ((row * num_heads + head) * batch.padded_len + t) * head_dim;
                values[place..][..head_dim].copy_from_slice(&narrow(x));
            }
        }
    }
    Numbers::floats(&[documents.len(), num_heads, batch.padded_len, head_dim], values)
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}
