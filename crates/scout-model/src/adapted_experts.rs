//! What LoRA does to the stacked matrices of the routed experts: factor A faces the output, `y += scale · (u·B_e)·A_e` for
//! rows that are sorted by expert. There is no dropout. Where experts stay with their ranks, each rank reads the factors of its
//! own, and finds their gradients from the rows of all ranks.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, I input, O output, R rank")]

use std::ops::Range;

use scout_core::Projection;
use scout_device::Tensor;
use scout_kernels::{grouped_matmul, lora};

use crate::error::Result;
use crate::lora::{Factor, LoraGradients, LoraWeights};
use crate::pass::Pass;
use crate::routed_rows::Destination;

/// The adapter of all experts on one of their projections, if there is one.
pub struct ExpertsAdapter<'a> {
    weights: &'a LoraWeights,
    index: Option<usize>,
    /// Those that are here.
    experts: Range<usize>,
}

/// The narrow product between the two factors, kept for the backward pass, or its gradient. Nothing where there is no
/// adapter.
#[derive(Debug)]
pub struct NarrowSorted(Option<Tensor>);

/// What the backward pass of an adapter starts from.
pub struct ExpertsBackward<'a> {
    pub dy: &'a Tensor,
    pub narrow: &'a NarrowSorted,
    pub offsets: &'a [u32],
    /// The gradient of the input that goes through the weights.
    pub du: Tensor,
}

impl<'a> ExpertsAdapter<'a> {
    pub fn of(
        pass: &Pass<'a>,
        (layer_index, destination): (usize, &Destination),
        projection: Projection,
    ) -> ExpertsAdapter<'a> {
        let (weights, index) = (pass.lora, pass.lora.layout.find(layer_index, projection));
        let num_experts = index.map_or(0, |index| num_experts(weights, index));
        ExpertsAdapter { weights, index, experts: destination.experts(num_experts) }
    }

    fn factor(&self, index: usize, factor: Factor) -> Result<Tensor> {
        Ok(self.weights.factor(index, factor)?.rows(self.experts.start, self.experts.len())?)
    }

    fn range(&self, index: usize, factor: Factor) -> Range<usize> {
        let all = self.weights.layout.range(index, factor);
        let of_expert = all.len() / num_experts(self.weights, index);
        all.start + self.experts.start * of_expert..all.start + self.experts.end * of_expert
    }

    pub fn is_none(&self) -> bool {
        self.index.is_none()
    }

    /// Adds to the output.
    pub fn forward(&self, y: Tensor, u_TI: &Tensor, offsets: &[u32]) -> Result<(Tensor, NarrowSorted)> {
        let Some(index) = self.index else { return Ok((y, NarrowSorted(None))) };
        let narrow_TR = grouped_matmul::nn(u_TI, &self.factor(index, Factor::B)?, offsets)?;
        let delta_TO = grouped_matmul::nn(&narrow_TR, &self.factor(index, Factor::A)?, offsets)?;
        Ok((lora::add_delta(y, &delta_TO, self.weights.layout.scale)?, NarrowSorted(Some(narrow_TR))))
    }

    /// The gradients of the input and of the narrow product; adds to that of factor A.
    pub fn backward(&self, step: ExpertsBackward, gradients: &mut LoraGradients) -> Result<(Tensor, NarrowSorted)> {
        let ExpertsBackward { dy: dy_TO, narrow: NarrowSorted(narrow), offsets, du } = step;
        let (Some(index), Some(narrow_TR)) = (self.index, narrow) else { return Ok((du, NarrowSorted(None))) };
        gradients.add_by_expert(self.range(index, Factor::A), [narrow_TR, dy_TO], offsets)?;
        let dnarrow_TR = grouped_matmul::nt(dy_TO, &self.factor(index, Factor::A)?, offsets)?;
        let through_TI = grouped_matmul::nt(&dnarrow_TR, &self.factor(index, Factor::B)?, offsets)?;
        Ok((lora::add_delta(du, &through_TI, self.weights.layout.scale)?, NarrowSorted(Some(dnarrow_TR))))
    }

    /// Adds to the gradient of factor B, given the input.
    pub fn add_gradient_of_b(
        &self,
        dnarrow: &NarrowSorted,
        u_TI: &Tensor,
        offsets: &[u32],
        gradients: &mut LoraGradients,
    ) -> Result<()> {
        let (Some(index), Some(dnarrow_TR)) = (self.index, &dnarrow.0) else { return Ok(()) };
        gradients.add_by_expert(self.range(index, Factor::B), [u_TI, dnarrow_TR], offsets)
    }
}

fn num_experts(weights: &LoraWeights, index: usize) -> usize {
    weights.layout.modules()[index].num_experts.expect("an adapter of routed experts has one for each")
}
