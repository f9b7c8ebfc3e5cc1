//! What LoRA does to a projection: the product of two narrow factors is added to its output, and on the way back their
//! gradients are collected. Weights pass gradients through, and get their own where somebody trains them.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, I input, O output, R rank, E experts")]

use scout_core::{LoraModule, Projection, UnitId};
use scout_device::Tensor;
use scout_kernels::lora::DropoutKey;
use scout_kernels::{grouped_matmul, lora, matmul};

use crate::Result;
use crate::gradients::Gradients;
use crate::lora::{Factor, LoraGradients, LoraWeights, OuterProduct};
use crate::pass::Pass;

/// One adapted projection during a pass.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    index: usize,
    module: &'a LoraModule,
    a: &'a Tensor,
    b: &'a Tensor,
    scale: f32,
}

/// The narrow product between the two factors, kept for the backward pass.
#[derive(Debug)]
pub struct Narrow(Tensor);

impl<'a> Adapter<'a> {
    /// The adapter of a projection, if it carries one.
    pub fn find(lora: &'a LoraWeights, layer_index: usize, projection: Projection) -> Option<Adapter<'a>> {
        let LoraWeights { layout, factors } = lora;
        let index = layout.find(layer_index, projection)?;
        let (a, b) = &factors[index];
        Some(Adapter { index, module: &layout.modules()[index], a, b, scale: layout.scale })
    }

    /// `y[:, column_start..] += scale · (x·Aᵀ)·Bᵀ`.
    pub fn forward_linear(
        &self,
        y: Tensor,
        column_start: usize,
        x_TI: &Tensor,
        pass: &Pass,
    ) -> Result<(Tensor, Narrow)> {
        let narrow_TR = match self.dropped(x_TI, pass)? {
            Some(dropped_TI) => matmul::nt(&dropped_TI, self.a)?,
            None => matmul::nt(x_TI, self.a)?,
        };
        Ok((lora::add_nt(y, column_start, &narrow_TR, self.b, self.scale)?, Narrow(narrow_TR)))
    }

    /// Adds to the factors' gradients and to `dx`, given the gradient of the projection's output.
    pub fn backward_linear(&self, step: LinearBackward, pass: &Pass, gradients: &mut LoraGradients) -> Result<Tensor> {
        let LinearBackward { dy, column_start, x: x_TI, narrow: Narrow(narrow_TR), dx } = step;
        let is_whole = column_start == 0 && dy.dims()[1] == self.module.output;
        let dy_TO = if is_whole { dy.clone() } else { lora::columns(dy, column_start, self.module.output)? };
        gradients.add(self.index, Factor::B, self.outer([&dy_TO, narrow_TR], None))?;
        let dnarrow_TR = matmul::nn(&dy_TO, self.b)?;
        let dropped_TI = self.dropped(x_TI, pass)?;
        let seen_TI = dropped_TI.as_ref().unwrap_or(x_TI);
        gradients.add(self.index, Factor::A, self.outer([&dnarrow_TR, seen_TI], None))?;
        if dropped_TI.is_none() {
            return Ok(lora::add_nn(dx, 0, &dnarrow_TR, self.a, self.scale)?);
        }
        // The mask stands between the product and the sum.
        let through_TI = matmul::nn(&dnarrow_TR, self.a)?;
        let through_TI = self.dropped(&through_TI, pass)?.unwrap_or(through_TI);
        Ok(lora::add_delta(dx, 0, &through_TI, self.scale)?)
    }

    /// The same for stacked experts, whose rows are sorted: `y += scale · (u·B_e)·A_e`.
    pub fn forward_experts(&self, y: Tensor, u_TI: &Tensor, offsets: &[u32]) -> Result<(Tensor, Narrow)> {
        let narrow_TR = grouped_matmul::nn(u_TI, self.b, offsets)?;
        let delta_TO = grouped_matmul::nn(&narrow_TR, self.a, offsets)?;
        Ok((lora::add_delta(y, 0, &delta_TO, self.scale)?, Narrow(narrow_TR)))
    }

    pub fn backward_experts(&self, step: ExpertsBackward, gradients: &mut LoraGradients) -> Result<Tensor> {
        let ExpertsBackward { dy: dy_TO, u: u_TI, narrow: Narrow(narrow_TR), offsets, du } = step;
        gradients.add(self.index, Factor::A, self.outer([narrow_TR, dy_TO], Some(offsets)))?;
        let dnarrow_TR = grouped_matmul::nt(dy_TO, self.a, offsets)?;
        gradients.add(self.index, Factor::B, self.outer([u_TI, &dnarrow_TR], Some(offsets)))?;
        let through_TI = grouped_matmul::nt(&dnarrow_TR, self.b, offsets)?;
        Ok(lora::add_delta(du, 0, &through_TI, self.scale)?)
    }

    fn outer<'b>(&self, rows: [&'b Tensor; 2], offsets: Option<&'b [u32]>) -> OuterProduct<'b> {
        OuterProduct { rows, offsets, scale: self.scale }
    }

    /// `x` with this adapter's dropout, or `None` where nothing is dropped. The mask is a pure function of seed, step,
    /// module, sample and position, so the backward pass makes it again instead of keeping it.
    fn dropped(&self, x_TI: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        let Some(dropout) = pass.dropout else { return Ok(None) };
        // Named by place, not by position in the list of targets: other targets change nothing here.
        let module = (self.module.layer_index * Projection::ALL.len() + self.module.projection as usize) as u64;
        let key = DropoutKey { seed: dropout.seed, step: dropout.step, module };
        Ok(Some(lora::dropout(x_TI, &pass.batch.token_keys, key, dropout.probability)?))
    }
}

/// What the backward pass of an adapted linear projection starts from.
pub struct LinearBackward<'a> {
    pub dy: &'a Tensor,
    pub column_start: usize,
    pub x: &'a Tensor,
    pub narrow: &'a Narrow,
    pub dx: Tensor,
}

pub struct ExpertsBackward<'a> {
    pub dy: &'a Tensor,
    pub u: &'a Tensor,
    pub narrow: &'a Narrow,
    pub offsets: &'a [u32],
    pub du: Tensor,
}

/// A linear projection with its adapter, if it has one.
pub struct Linear<'a> {
    pub weight: Tensor,
    /// Unit of the weight, and its place there.
    pub place: (UnitId, usize),
    pub adapter: Option<Adapter<'a>>,
}

impl Linear<'_> {
    pub fn forward(&self, x_TI: &Tensor, pass: &Pass) -> Result<(Tensor, Option<Narrow>)> {
        let y_TO = matmul::nt(x_TI, &self.weight)?;
        match &self.adapter {
            None => Ok((y_TO, None)),
            Some(adapter) => {
                let (y_TO, narrow) = adapter.forward_linear(y_TO, 0, x_TI, pass)?;
                Ok((y_TO, Some(narrow)))
            }
        }
    }

    /// The gradient of the input; those of the factors and, where it is wanted, of the weight are added to `gradients`.
    pub fn backward(
        &self,
        dy_TO: &Tensor,
        x_TI: &Tensor,
        narrow: Option<&Narrow>,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        gradients.add(self.place.0, self.place.1, || matmul::tn(dy_TO, x_TI))?;
        let dx = matmul::nn(dy_TO, &self.weight)?;
        match (&self.adapter, narrow) {
            (Some(adapter), Some(narrow)) => {
                let step = LinearBackward { dy: dy_TO, column_start: 0, x: x_TI, narrow, dx };
                adapter.backward_linear(step, pass, gradients.lora)
            }
            _ => Ok(dx),
        }
    }
}
