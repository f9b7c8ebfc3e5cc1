//! The two ends of the model: tokens to vectors, and vectors to a loss. The head sees scored positions only, and loss
//! and gradient come out of one pass, so logits never exist for the whole batch.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, N scored positions, D model width, V vocabulary")]

use scout_core::UnitId;
use scout_device::{Tensor, UnitSource};
use scout_kernels::cross_entropy::HeadLoss;
use scout_kernels::{cross_entropy, embedding, matmul, rms_norm, rows};

use crate::batch::Batch;
use crate::error::Result;
use crate::gradients::Gradients;
use crate::pass::Trace;
use crate::units::head_params as param;

#[derive(Debug)]
pub struct Embedding {
    pub unit: UnitId,
    pub vocab_size: usize,
}

impl Embedding {
    pub fn forward(&self, weights: &mut dyn UnitSource, batch: &Batch, trace: &mut dyn Trace) -> Result<Tensor> {
        let x_TD = embedding::forward(&batch.ids, &weights.take(self.unit)?.param(0)?)?;
        if trace.is_on() {
            trace.record("embed_out", &x_TD);
        }
        Ok(x_TD)
    }

    /// The end of the chain: nothing is below the embedding, so all there is to find is its own gradient.
    pub fn backward(&self, dx_TD: &Tensor, batch: &Batch, gradients: &mut Gradients) -> Result<()> {
        gradients.add(self.unit, 0, || embedding::weight_gradient(dx_TD, &batch.ids, self.vocab_size))
    }
}

#[derive(Debug)]
pub struct Head {
    pub unit: UnitId,
    pub rms_norm_eps: f32,
}

/// The losses of a batch, which may still be under way from a GPU.
#[derive(Debug)]
pub struct Loss {
    /// Unweighted loss of each scored position, `[N]`.
    pub token_loss: Tensor,
    /// How much each counts, on the host.
    weights_N: Tensor,
}

impl Loss {
    /// Adds up in f64 and in the order of the batch, so that the sum depends on nothing else. Stops the host until a GPU
    /// has come this far: ask when everything else is queued.
    pub fn weighted_sum(&self) -> Result<f64> {
        let losses = self.token_loss.to_host()?;
        let weighted =
            losses.f32s()?.iter().zip(self.weights_N.f32s()?.iter()).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum();
        Ok(weighted)
    }
}

impl Head {
    /// The loss of the batch and the gradient of the last block's output; the head's own are added to `gradients`.
    pub fn loss_and_gradient(
        &self,
        weights: &mut dyn UnitSource,
        x_TD: &Tensor,
        batch: &Batch,
        gradients: &mut Gradients,
        trace: &mut dyn Trace,
    ) -> Result<(Loss, Tensor)> {
        let unit = weights.take(self.unit)?;
        let norm_D = unit.param(param::NORM)?;
        let x_ND = rows::gather(x_TD, &batch.target_rows)?;
        let normed = rms_norm::forward(&x_ND, &norm_D, self.rms_norm_eps)?;
        let (tokens, shares) = (&batch.target_tokens, &batch.target_weights);
        let head_VD = unit.param(param::HEAD)?;
        let HeadLoss { token_loss, dx: dnormed_ND } = if gradients.weights.wants(self.unit, param::HEAD) {
            let found = cross_entropy::forward_backward_of_head(&normed.y, &head_VD, tokens, shares)?;
            gradients.weights.add(self.unit, param::HEAD, &found.dweight)?;
            found.loss
        } else {
            cross_entropy::forward_backward(&normed.y, &head_VD, tokens, shares)?
        };
        gradients.add(self.unit, param::NORM, || rms_norm::weight_gradient(&dnormed_ND, &x_ND, &normed.inverse_rms))?;
        if trace.is_on() {
            trace
                .record("grad_of.final_norm_out", &rows::scatter(&dnormed_ND, &batch.target_rows, batch.num_tokens())?);
        }
        let dx_ND = rms_norm::backward(&dnormed_ND, &x_ND, &normed.inverse_rms, &norm_D, None)?;
        let dx_TD = rows::scatter(&dx_ND, &batch.target_rows, batch.num_tokens())?;
        Ok((Loss { token_loss, weights_N: batch.weights_on_host.clone() }, dx_TD))
    }

    /// The loss alone, for evaluation.
    pub fn loss(&self, weights: &mut dyn UnitSource, x_TD: &Tensor, batch: &Batch) -> Result<Loss> {
        let unit = weights.take(self.unit)?;
        let x_ND = rows::gather(x_TD, &batch.target_rows)?;
        let normed_ND = rms_norm::forward(&x_ND, &unit.param(param::NORM)?, self.rms_norm_eps)?.y;
        let token_loss = cross_entropy::forward(&normed_ND, &unit.param(param::HEAD)?, &batch.target_tokens)?;
        Ok(Loss { token_loss, weights_N: batch.weights_on_host.clone() })
    }

    /// Logits of every position, for comparison with recorded numbers; training never makes them.
    pub fn logits(&self, weights: &mut dyn UnitSource, x_TD: &Tensor, trace: &mut dyn Trace) -> Result<Tensor> {
        let unit = weights.take(self.unit)?;
        let normed_TD = rms_norm::forward(x_TD, &unit.param(param::NORM)?, self.rms_norm_eps)?.y;
        if trace.is_on() {
            trace.record("final_norm_out", &normed_TD);
        }
        Ok(matmul::nt(&normed_TD, &unit.param(param::HEAD)?)?)
    }
}
