//! The attention block: norm, projections, positions, causal attention inside documents or chunks, output projection,
//! residual. Forward and backward are written out; nothing is recorded behind their back.
#![expect(non_snake_case, reason = "shape suffixes: T tokens, D model width, h heads, d head size")]

use scout_core::{Projection, UnitId};
use scout_device::{Tensor, UnitSource, UnitWeights};
use scout_kernels::attention::{Attended, QkvGradients, Segments};
use scout_kernels::qk_position::{Placed, Position};
use scout_kernels::{attention, qk_position, rms_norm, rows};

use crate::Result;
use crate::adapted::{Adapter, Linear, Narrow};
use crate::gradients::Gradients;
use crate::pass::{Keep, Pass, Trace};
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
    narrow_q: Option<Narrow>,
    narrow_k: Option<Narrow>,
    narrow_v: Option<Narrow>,
    narrow_o: Option<Narrow>,
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
        let (y_TD, inner) = self.run(&unit, &x_TD, pass, trace)?;
        let inner = (pass.keep != Keep::InputOnly).then_some(inner);
        Ok((y_TD, SavedAttention { x_TD, inner }))
    }

    fn run(&self, unit: &UnitWeights, x_TD: &Tensor, pass: &Pass, trace: &mut dyn Trace) -> Result<(Tensor, Inner)> {
        let batch = pass.batch;
        let normed = rms_norm::forward(x_TD, &unit.param(param::NORM)?, self.rms_norm_eps)?;
        let (q, narrow_q) = self.linear(unit, param::Q, pass)?.forward(&normed.y, pass)?;
        let (k, narrow_k) = self.linear(unit, param::K, pass)?.forward(&normed.y, pass)?;
        let (v, narrow_v) = self.linear(unit, param::V, pass)?.forward(&normed.y, pass)?;
        let q = qk_position::forward(&self.heads(&q, self.num_heads)?, &batch.positions, &self.position)?;
        let k = match self.position {
            // The temperature of layers without rotation belongs to the queries alone.
            Position::Temperature { .. } => Placed { y: self.heads(&k, self.num_kv_heads)?, inverse_rms: None },
            _ => qk_position::forward(&self.heads(&k, self.num_kv_heads)?, &batch.positions, &self.position)?,
        };
        let v_Thd = self.heads(&v, self.num_kv_heads)?;
        let attended = attention::forward(&q.y, &k.y, &v_Thd, self.segments(pass), self.scale())?;
        let context_TD = self.joined(&attended.context)?;
        let (out_TD, narrow_o) = self.linear(unit, param::O, pass)?.forward(&context_TD, pass)?;
        for (name, tensor) in [("attn_in", &normed.y), ("q", &q.y), ("k", &k.y), ("v", &v_Thd)] {
            trace.record_layer(self.layer_index, name, tensor);
        }
        trace.record_layer(self.layer_index, "attn_ctx", &context_TD);
        trace.record_layer(self.layer_index, "attn_out", &out_TD);
        let y_TD = rows::add(x_TD, &out_TD)?;
        let inverse_rms_T = normed.inverse_rms;
        Ok((y_TD, Inner { inverse_rms_T, q, k, v_Thd, attended, narrow_q, narrow_k, narrow_v, narrow_o }))
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
            None => self.run(&unit, &x_TD, pass, &mut crate::NoTrace)?.1,
        };
        let context_TD = self.joined(&inner.attended.context)?;
        let dcontext_TD = self.linear(&unit, param::O, pass)?.backward(
            &dy_TD,
            &context_TD,
            inner.narrow_o.as_ref(),
            pass,
            gradients,
        )?;
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
        let dk = match self.position {
            Position::Temperature { .. } => dk,
            _ => qk_position::backward(&dk, &inner.k, positions, &self.position)?,
        };
        let norm_D = unit.param(param::NORM)?;
        let normed_TD = rms_norm::forward(&x_TD, &norm_D, self.rms_norm_eps)?.y;
        let mut project = |index, dy: &Tensor, narrow: &Option<Narrow>| {
            self.linear(&unit, index, pass)?.backward(&self.joined(dy)?, &normed_TD, narrow.as_ref(), pass, gradients)
        };
        let through_q = project(param::Q, &dq, &inner.narrow_q)?;
        let through_k = project(param::K, &dk, &inner.narrow_k)?;
        let through_v = project(param::V, &dv, &inner.narrow_v)?;
        let dnormed_TD = rows::add(&rows::add(&through_q, &through_k)?, &through_v)?;
        gradients
            .add(self.unit, param::NORM, || rms_norm::weight_gradient(&dnormed_TD, &x_TD, &inner.inverse_rms_T))?;
        let dx_TD = rms_norm::backward(&dnormed_TD, &x_TD, &inner.inverse_rms_T, &norm_D)?;
        Ok(rows::add(&dy_TD, &dx_TD)?)
    }

    fn linear<'a>(&self, unit: &UnitWeights, index: usize, pass: &Pass<'a>) -> Result<Linear<'a>> {
        let projection = match index {
            param::Q => Projection::Q,
            param::K => Projection::K,
            param::V => Projection::V,
            _ => Projection::O,
        };
        let adapter = Adapter::find(pass.lora, self.layer_index, projection);
        Ok(Linear { weight: unit.param(index)?, place: (self.unit, index), adapter })
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
