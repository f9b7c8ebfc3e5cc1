//! What LoRA does to linear projections. What an adapter adds is written first, as the product of two narrow factors, and
//! the product with the weight is added to it; the gradient of an input comes about in the same order. The weights
//! themselves are not seen here.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, I input, O output, R ranks of all adapters of a stack")]

use std::ops::Range;

use scout_core::{LoraModule, Projection};
use scout_device::Tensor;
use scout_kernels::lora::{DropoutKey, Side};
use scout_kernels::matmul::Columns;
use scout_kernels::{lora, matmul};

use crate::error::Result;
use crate::lora::{Factor, Input, LoraGradients};
use crate::pass::{Dropout, Pass};

/// The adapters of those projections of a layer that read one input; there may be none.
pub struct Stack<'a> {
    pass: &'a Pass<'a>,
    modules: Range<usize>,
}

/// One narrow product for each adapter of a stack, side by side: kept for the backward pass, or the gradient of what was
/// kept. Nothing where there is no adapter.
#[derive(Debug)]
pub struct Narrow(Option<Tensor>);

/// An adapter of a stack.
struct Member<'a> {
    module: &'a LoraModule,
    index: usize,
    /// Where its columns begin in a narrow product.
    start: usize,
}

impl Member<'_> {
    fn columns<'a>(&self, narrow_TR: &'a Tensor) -> Columns<'a> {
        Columns { tensor: narrow_TR, start: self.start, count: self.module.rank }
    }
}

impl<'a> Stack<'a> {
    pub fn of(pass: &'a Pass<'a>, layer_index: usize, input: Input) -> Stack<'a> {
        Stack { pass, modules: pass.lora.layout.stack(layer_index, input) }
    }

    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// `x·Aᵀ` of each adapter.
    pub fn narrow(&self, x_TI: &Tensor) -> Result<Narrow> {
        if self.is_empty() {
            return Ok(Narrow(None));
        }
        if self.dropout().is_none() {
            return Ok(Narrow(Some(matmul::nt(x_TI, &self.pass.lora.stacked_a(&self.modules)?)?)));
        }
        let mut factors = Vec::new();
        for member in self.members() {
            factors.push((self.dropped(x_TI, member.module)?, self.pass.lora.factor(member.index, Factor::A)?));
        }
        let pairs: Vec<_> = factors.iter().map(|(x_TI, a)| (x_TI.into(), a)).collect();
        Ok(Narrow(Some(matmul::side_by_side_nt(&pairs)?)))
    }

    /// What an adapter adds to a projection. Nothing where it has none.
    pub fn delta(&self, projection: Projection, narrow: &Narrow) -> Result<Option<Tensor>> {
        let (Some(member), Some(narrow_TR)) = (self.member(projection), &narrow.0) else { return Ok(None) };
        let b = self.pass.lora.factor(member.index, Factor::B)?;
        Ok(Some(lora::product_nt(member.columns(narrow_TR), &b, self.scale(), None)?))
    }

    /// The deltas of two projections of `width` columns each, side by side.
    pub fn deltas(&self, projections: [Projection; 2], narrow: &Narrow, width: usize) -> Result<Option<Tensor>> {
        let Some(narrow_TR) = &narrow.0 else { return Ok(None) };
        let members = projections.map(|projection| self.member(projection));
        let factor = |member: &Member| self.pass.lora.factor(member.index, Factor::B);
        let factors = [members[0].as_ref().map(factor).transpose()?, members[1].as_ref().map(factor).transpose()?];
        let sides = [0, 1].map(|side| match (&members[side], &factors[side]) {
            (Some(member), Some(b)) => Side::Product(member.columns(narrow_TR), b),
            _ => Side::Zeros(width),
        });
        Ok(Some(lora::side_by_side(&sides, self.scale())?))
    }

    /// The gradient of the narrow products, given those of the outputs of all projections of the stack; adds to the
    /// gradients of the factors B.
    pub fn backward(
        &self,
        dys: &[(Projection, Columns)],
        narrow: &Narrow,
        gradients: &mut LoraGradients,
    ) -> Result<Narrow> {
        let Some(narrow_TR) = &narrow.0 else { return Ok(Narrow(None)) };
        let of = |member: Member| dys.iter().find(|(projection, _)| *projection == member.module.projection);
        let dys: Vec<Columns> = self.members().filter_map(of).map(|&(_, dy_TO)| dy_TO).collect();
        let lora = self.pass.lora;
        let range = lora.layout.range_of_stack(&self.modules, Factor::B);
        Ok(Narrow(Some(gradients.add_b(range, &dys, &lora.stacked_b(&self.modules)?, narrow_TR)?)))
    }

    /// What the gradient of the input is without the weights. Nothing where there is no adapter.
    pub fn dx(&self, dnarrow: &Narrow) -> Result<Option<Tensor>> {
        let Some(dnarrow_TR) = &dnarrow.0 else { return Ok(None) };
        if self.dropout().is_none() {
            let a = self.pass.lora.stacked_a(&self.modules)?;
            return Ok(Some(lora::product_nn(dnarrow_TR, &a, self.scale())?));
        }
        let mut sum: Option<Tensor> = None;
        for member in self.members() {
            let a = self.pass.lora.factor(member.index, Factor::A)?;
            let through_TI = lora::product_nn(member.columns(dnarrow_TR), &a, self.scale())?;
            let through_TI = self.dropped(&through_TI, member.module)?;
            sum = Some(match sum {
                None => through_TI,
                Some(sum) => lora::add_delta(sum, &through_TI, 1.0)?,
            });
        }
        Ok(sum)
    }

    /// Adds to the gradients of the factors A, given the input.
    pub fn add_gradients_of_a(&self, dnarrow: &Narrow, x_TI: &Tensor, gradients: &mut LoraGradients) -> Result<()> {
        let Some(dnarrow_TR) = &dnarrow.0 else { return Ok(()) };
        let layout = &self.pass.lora.layout;
        if self.dropout().is_none() {
            return gradients.add_a(layout.range_of_stack(&self.modules, Factor::A), dnarrow_TR.into(), x_TI.into());
        }
        for member in self.members() {
            let dropped_TI = self.dropped(x_TI, member.module)?;
            let range = layout.range(member.index, Factor::A);
            gradients.add_a(range, member.columns(dnarrow_TR), (&dropped_TI).into())?;
        }
        Ok(())
    }

    fn members(&self) -> impl Iterator<Item = Member<'a>> + use<'a> {
        let modules = self.pass.lora.layout.modules();
        let first = self.modules.start;
        self.modules.clone().map(move |index| {
            let module = &modules[index];
            Member { module, index, start: (index - first) * module.rank }
        })
    }

    fn member(&self, projection: Projection) -> Option<Member<'a>> {
        self.members().find(|member| member.module.projection == projection)
    }

    fn scale(&self) -> f32 {
        self.pass.lora.layout.scale
    }

    fn dropout(&self) -> Option<Dropout> {
        self.pass.dropout.filter(|dropout| dropout.probability > 0.0)
    }

    /// `x` with the dropout of one adapter, if there is any. The mask is a pure function of seed, step, module, sample and
    /// position, so the backward pass makes it again instead of keeping it.
    fn dropped(&self, x_TI: &Tensor, module: &LoraModule) -> Result<Tensor> {
        let Some(dropout) = self.dropout() else { return Ok(x_TI.clone()) };
        // Named by place, not by position in the list of targets: other targets change nothing here.
        let place = (module.layer_index * Projection::ALL.len() + module.projection as usize) as u64;
        let key = DropoutKey { seed: dropout.seed, step: dropout.step, module: place };
        Ok(lora::dropout(x_TI, &self.pass.batch.token_keys, key, dropout.probability)?)
    }
}
