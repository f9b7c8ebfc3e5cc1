//! The attention block: norm, projections, positions, causal attention inside documents or chunks, output projection,
//! residual. Forward and backward are written out; nothing is recorded behind their back.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D model width, h heads, d head size")]

use scout_core::{Projection, UnitId};
use scout_device::{Tensor, UnitSource, UnitWeights};
use scout_kernels::attention::{Attended, QkvGradients, Segments};
use scout_kernels::qk_position::{Placed, Position};
use scout_kernels::{attention, lora, matmul, qk_position, rms_norm, rows};

use crate::adapted::{Narrow, Stack};
use crate::error::Result;
use crate::gradients::Gradients;
use crate::lora::Input;
use crate::pass::{Keep, NoTrace, Pass, Trace};
use crate::units::attention_params as param;

#[derive(Debug)]
pub struct AttentionBlock {
    pub layer_index: usize,
    pub unit: UnitId,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub position: Position,
    /// Whether attention stops at chunk borders inside a document.
    pub is_chunked: bool,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct SavedAttention {
    x_TD: Tensor,
    /// Absent when the plan keeps the input only: made again from `x_TD`.
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    inverse_rms_T: Tensor,
    q: Placed,
    k: Placed,
    v_Thd: Tensor,
    attended: Attended,
    narrow_qkv: Narrow,
    narrow_o: Narrow,
}

impl AttentionBlock {
    pub fn forward(
        &self,
        weights: &mut dyn UnitSource,
        x_TD: Tensor,
        pass: &Pass,
        trace: &mut dyn Trace,
    ) -> Result<(Tensor, SavedAttention)> {
        let unit = weights.take(self.unit)?;
        let inner = self.attend(&unit, &x_TD, pass, trace)?;
        let y_TD = self.output(&unit, &inner, Some(&x_TD), pass)?;
        if trace.is_on() {
            trace.record_layer(self.layer_index, "attn_out", &self.output(&unit, &inner, None, pass)?);
        }
        let inner = (pass.keep.of_layer(self.layer_index) != Keep::InputOnly).then_some(inner);
        Ok((y_TD, SavedAttention { x_TD, inner }))
    }

    /// The temperature of layers without rotation belongs to the queries alone.
    fn position_of_keys(&self) -> Option<&Position> {
        match &self.position {
            Position::Temperature { .. } => None,
            position => Some(position),
        }
    }

    /// Everything up to the output projection.
    fn attend(&self, unit: &UnitWeights, x_TD: &Tensor, pass: &Pass, trace: &mut dyn Trace) -> Result<Inner> {
        let batch = pass.batch;
        let normed = rms_norm::forward(x_TD, &unit.param(param::NORM)?, self.rms_norm_eps)?;
        let qkv = Stack::of(pass, self.layer_index, Input::Attention);
        let narrow_qkv = qkv.narrow(&normed.y)?;
        let project = |projection, index| -> Result<Tensor> {
            let delta = qkv.delta(projection, &narrow_qkv)?;
            Ok(matmul::add_nt(delta, &normed.y, &unit.param(index)?)?)
        };
        let q = self.heads(&project(Projection::Q, param::Q)?, self.num_heads)?;
        let k = self.heads(&project(Projection::K, param::K)?, self.num_kv_heads)?;
        let v_Thd = self.heads(&project(Projection::V, param::V)?, self.num_kv_heads)?;
        let q = qk_position::forward(&q, &batch.positions, &self.position)?;
        let k = match self.position_of_keys() {
            None => Placed { y: k, inverse_rms: None },
            Some(position) => qk_position::forward(&k, &batch.positions, position)?,
        };
        let attended = attention::forward(&q.y, &k.y, &v_Thd, self.segments(pass), self.scale())?;
        let context_TD = self.joined(&attended.context)?;
        let narrow_o = Stack::of(pass, self.layer_index, Input::Context).narrow(&context_TD)?;
        for (name, tensor) in [("attn_in", &normed.y), ("q", &q.y), ("k", &k.y), ("v", &v_Thd)] {
            trace.record_layer(self.layer_index, name, tensor);
        }
        trace.record_layer(self.layer_index, "attn_ctx", &context_TD);
        Ok(Inner { inverse_rms_T: normed.inverse_rms, q, k, v_Thd, attended, narrow_qkv, narrow_o })
    }

    /// The output projection, onto `residual` if there is one. What an adapter adds must meet the product first: in bf16 it
    /// would be rounded away beside a residual, which is much larger.
    fn output(&self, unit: &UnitWeights, inner: &Inner, residual_TD: Option<&Tensor>, pass: &Pass) -> Result<Tensor> {
        let o = Stack::of(pass, self.layer_index, Input::Context);
        let (begun_TD, residual_TD) = match o.delta(Projection::O, &inner.narrow_o)? {
            Some(part_TD) => (Some(part_TD), residual_TD),
            None => (residual_TD.map(rows::copy).transpose()?, None),
        };
        let y_TD = matmul::add_nt(begun_TD, &self.joined(&inner.attended.context)?, &unit.param(param::O)?)?;
        Ok(match residual_TD {
            Some(residual_TD) => lora::add_delta(y_TD, residual_TD, 1.0)?,
            None => y_TD,
        })
    }

    /// The gradient of the block's input, given that of its output.
    pub fn backward(
        &self,
        weights: &mut dyn UnitSource,
        dy_TD: Tensor,
        saved: SavedAttention,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let unit = weights.take(self.unit)?;
        let SavedAttention { x_TD, inner } = saved;
        let inner = match inner {
            Some(inner) => inner,
            None => self.attend(&unit, &x_TD, pass, &mut NoTrace)?,
        };
        let dcontext_TD = self.output_backward(&unit, &dy_TD, &inner, pass, gradients)?;
        let QkvGradients { dq, dk, dv } = attention::backward(
            &self.heads(&dcontext_TD, self.num_heads)?,
            &inner.q.y,
            &inner.k.y,
            &inner.v_Thd,
            &inner.attended,
            self.segments(pass),
            self.scale(),
        )?;
        let positions = &pass.batch.positions;
        let dq = qk_position::backward(&dq, &inner.q, positions, &self.position)?;
        let dk = match self.position_of_keys() {
            None => dk,
            Some(position) => qk_position::backward(&dk, &inner.k, positions, position)?,
        };
        let norm_D = unit.param(param::NORM)?;
        let normed_TD = rms_norm::forward(&x_TD, &norm_D, self.rms_norm_eps)?.y;
        let dqkv = [self.joined(&dq)?, self.joined(&dk)?, self.joined(&dv)?];
        let dnormed_TD = self.qkv_backward(&unit, dqkv, (&normed_TD, &inner.narrow_qkv), pass, gradients)?;
        gradients
            .add(self.unit, param::NORM, || rms_norm::weight_gradient(&dnormed_TD, &x_TD, &inner.inverse_rms_T))?;
        Ok(rms_norm::backward(&dnormed_TD, &x_TD, &inner.inverse_rms_T, &norm_D, Some(&dy_TD))?)
    }

    fn output_backward(
        &self,
        unit: &UnitWeights,
        dy_TD: &Tensor,
        inner: &Inner,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let context_TD = self.joined(&inner.attended.context)?;
        let o = Stack::of(pass, self.layer_index, Input::Context);
        let dnarrow = o.backward(&[(Projection::O, dy_TD.into())], &inner.narrow_o, gradients.lora)?;
        o.add_gradients_of_a(&dnarrow, &context_TD, gradients.lora)?;
        gradients.add(self.unit, param::O, || matmul::tn(dy_TD, &context_TD))?;
        Ok(matmul::add_nn(o.dx(&dnarrow)?, dy_TD, &unit.param(param::O)?)?)
    }

    fn qkv_backward(
        &self,
        unit: &UnitWeights,
        [dq, dk, dv]: [Tensor; 3],
        (normed_TD, narrow): (&Tensor, &Narrow),
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let qkv = Stack::of(pass, self.layer_index, Input::Attention);
        let dys = [(Projection::Q, (&dq).into()), (Projection::K, (&dk).into()), (Projection::V, (&dv).into())];
        let dnarrow = qkv.backward(&dys, narrow, gradients.lora)?;
        qkv.add_gradients_of_a(&dnarrow, normed_TD, gradients.lora)?;
        for (index, dy) in [(param::Q, &dq), (param::K, &dk), (param::V, &dv)] {
            gradients.add(self.unit, index, || matmul::tn(dy, normed_TD))?;
        }
        let through_q = matmul::add_nn(qkv.dx(&dnarrow)?, &dq, &unit.param(param::Q)?)?;
        let and_k = matmul::add_nn(Some(through_q), &dk, &unit.param(param::K)?)?;
        Ok(matmul::add_nn(Some(and_k), &dv, &unit.param(param::V)?)?)
    }

    fn segments<'a>(&self, pass: &Pass<'a>) -> &'a Segments {
        if self.is_chunked { &pass.batch.chunks } else { &pass.batch.documents }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn heads(&self, x: &Tensor, num_heads: usize) -> Result<Tensor> {
        Ok(x.reshape([x.dims()[0], num_heads, self.head_dim])?)
    }

    fn joined(&self, x: &Tensor) -> Result<Tensor> {
        let num_tokens = x.dims()[0];
        let width: usize = x.dims()[1..].iter().product();
        Ok(x.reshape([num_tokens, width])?)
    }
}
