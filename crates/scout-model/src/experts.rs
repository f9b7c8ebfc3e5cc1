//! The feed-forward block: norm, router, shared expert, the one routed expert of each token, residual. The router passes
//! a gradient to `x`, trained or not: through the score, and through the score's logit.
#![expect(
    non_snake_case,
    reason = "shape suffixes: T tokens, D model width, F expert width, E experts; sorted = by expert"
)]

use scout_core::{Projection, UnitId};
use scout_device::{Tensor, UnitSource, UnitWeights};
use scout_kernels::router::{RouterGradient, Routing};
use scout_kernels::{grouped_matmul, matmul, rms_norm, router, rows, swiglu};

use crate::Result;
use crate::adapted::{Adapter, ExpertsBackward, Linear, LinearBackward, Narrow};
use crate::gradients::Gradients;
use crate::pass::{Keep, Pass, Trace};
use crate::units::{LayerUnits, shared_params as param};

#[derive(Debug)]
pub struct ExpertsBlock {
    pub layer_index: usize,
    pub units: LayerUnits,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub rms_norm_eps: f32,
}

#[derive(Debug)]
pub struct SavedExperts {
    x_TD: Tensor,
    routing: Routing,
    inverse_rms_T: Tensor,
    /// Absent when the plan makes them again.
    shared: Option<Wide>,
    routed: Option<Wide>,
    narrow_shared_down: Option<Narrow>,
    narrow_routed_down: Option<Narrow>,
}

/// Gate and up halves of an expert, side by side, and the narrow products of the adapters that made them.
#[derive(Debug)]
struct Wide {
    gate_up: Tensor,
    narrow_gate: Option<Narrow>,
    narrow_up: Option<Narrow>,
}

impl ExpertsBlock {
    pub fn forward(
        &self,
        weights: &mut dyn UnitSource,
        x_TD: Tensor,
        pass: &Pass,
        trace: &mut dyn Trace,
    ) -> Result<(Tensor, SavedExperts)> {
        let unit = weights.take(self.units.shared)?;
        let normed = rms_norm::forward(&x_TD, &unit.param(param::NORM)?, self.rms_norm_eps)?;
        let logits_TE = router::logits(&normed.y, &unit.param(param::ROUTER)?)?;
        let routing = match pass.routes {
            Some(routes) => router::forced(&logits_TE, &routes[self.layer_index])?,
            None => router::choose(&logits_TE)?,
        };
        let shared = self.shared_gate_up(&unit, &normed.y, pass)?;
        let hidden_TF = swiglu::forward(&shared.gate_up)?;
        let (shared_TD, narrow_shared_down) = self.shared_down(&unit, pass)?.forward(&hidden_TF, pass)?;
        drop(unit);

        let u_sorted_TD = router::gather_scaled(&normed.y, &routing)?;
        let unit = weights.take(self.units.gate_up)?;
        let routed = self.routed_gate_up(&unit, &u_sorted_TD, &routing, pass)?;
        drop(unit);
        let hidden_sorted_TF = swiglu::forward(&routed.gate_up)?;
        let unit = weights.take(self.units.down)?;
        let (routed_sorted_TD, narrow_routed_down) = self.routed_down(&unit, &hidden_sorted_TF, &routing, pass)?;
        drop(unit);
        let y_TD = router::combine(&routed_sorted_TD, &routing, &shared_TD, Some(&x_TD))?;

        if trace.is_on() {
            let ffn_out_TD = router::combine(&routed_sorted_TD, &routing, &shared_TD, None)?;
            let named = [
                ("ffn_in", &normed.y),
                ("router_logits", &logits_TE),
                ("router_expert", &routing.expert_T),
                ("router_score", &routing.score_T),
                ("shared_out", &shared_TD),
                ("ffn_out", &ffn_out_TD),
            ];
            for (name, tensor) in named {
                trace.record_layer(self.layer_index, name, tensor);
            }
        }
        let keeps_wide = pass.keep == Keep::Everything;
        let saved = SavedExperts {
            x_TD,
            routing,
            inverse_rms_T: normed.inverse_rms,
            shared: keeps_wide.then_some(shared),
            routed: keeps_wide.then_some(routed),
            narrow_shared_down,
            narrow_routed_down,
        };
        Ok((y_TD, saved))
    }

    /// The gradient of the block's input. Units are used in the order [`ExpertsBlock::backward_units`] says.
    pub fn backward(
        &self,
        weights: &mut dyn UnitSource,
        dy_TD: Tensor,
        saved: SavedExperts,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let shared_unit = weights.take(self.units.shared)?;
        let norm_D = shared_unit.param(param::NORM)?;
        let normed_TD = rms_norm::forward(&saved.x_TD, &norm_D, self.rms_norm_eps)?.y;
        let dshared_TD = self.shared_backward(&shared_unit, &dy_TD, &normed_TD, &saved, pass, gradients)?;
        let du_sorted_TD = self.routed_backward(weights, &dy_TD, &normed_TD, &saved, pass, gradients)?;
        let router_ED = shared_unit.param(param::ROUTER)?;
        let RouterGradient { dx: dnormed_TD, dlogit_T } =
            router::backward(&du_sorted_TD, &normed_TD, &saved.routing, &router_ED, &dshared_TD)?;
        let unit = self.units.shared;
        gradients.add(unit, param::ROUTER, || router::weight_gradient(&dlogit_T, &normed_TD, &saved.routing))?;
        gradients
            .add(unit, param::NORM, || rms_norm::weight_gradient(&dnormed_TD, &saved.x_TD, &saved.inverse_rms_T))?;
        let dx_TD = rms_norm::backward(&dnormed_TD, &saved.x_TD, &saved.inverse_rms_T, &norm_D)?;
        Ok(rows::add(&dy_TD, &dx_TD)?)
    }

    pub fn forward_units(&self) -> [UnitId; 3] {
        [self.units.shared, self.units.gate_up, self.units.down]
    }

    /// The shared unit comes first and stays to the end: its norm and router close the chain. Gate and up come before
    /// down, so that one order serves whether or not they are made again.
    pub fn backward_units(&self) -> [UnitId; 3] {
        self.forward_units()
    }

    fn shared_backward(
        &self,
        unit: &UnitWeights,
        dy_TD: &Tensor,
        normed_TD: &Tensor,
        saved: &SavedExperts,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let made_again;
        let wide = match &saved.shared {
            Some(wide) => wide,
            None => {
                made_again = self.shared_gate_up(unit, normed_TD, pass)?;
                &made_again
            }
        };
        let hidden_TF = swiglu::forward(&wide.gate_up)?;
        let narrow = saved.narrow_shared_down.as_ref();
        let dhidden_TF = self.shared_down(unit, pass)?.backward(dy_TD, &hidden_TF, narrow, pass, gradients)?;
        let dgate_up = swiglu::backward(&dhidden_TF, &wide.gate_up)?;
        self.add_shared_gate_up(&dgate_up, normed_TD, gradients)?;
        let mut dx = matmul::nn(&dgate_up, &self.shared_gate_up_weight(unit)?)?;
        let halves = [
            (Projection::SharedGate, 0, &wide.narrow_gate),
            (Projection::SharedUp, self.intermediate_size, &wide.narrow_up),
        ];
        for (projection, column_start, narrow) in halves {
            if let (Some(adapter), Some(narrow)) = (self.adapter(projection, pass), narrow) {
                let step = LinearBackward { dy: &dgate_up, column_start, x: normed_TD, narrow, dx };
                dx = adapter.backward_linear(step, pass, gradients.lora)?;
            }
        }
        Ok(dx)
    }

    fn routed_backward(
        &self,
        weights: &mut dyn UnitSource,
        dy_TD: &Tensor,
        normed_TD: &Tensor,
        saved: &SavedExperts,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let routing = &saved.routing;
        let offsets = routing.offsets()?;
        let gate_up_unit = weights.take(self.units.gate_up)?;
        let u_sorted_TD = router::gather_scaled(normed_TD, routing)?;
        let made_again;
        let wide = match &saved.routed {
            Some(wide) => wide,
            None => {
                made_again = self.routed_gate_up(&gate_up_unit, &u_sorted_TD, routing, pass)?;
                &made_again
            }
        };
        let hidden_TF = swiglu::forward(&wide.gate_up)?;
        let dy_sorted_TD = router::gather(dy_TD, routing)?;

        gradients.add(self.units.down, 0, || grouped_matmul::tn(&hidden_TF, &dy_sorted_TD, offsets))?;
        let down_unit = weights.take(self.units.down)?;
        let mut dhidden_TF = grouped_matmul::nt(&dy_sorted_TD, &down_unit.param(0)?, offsets)?;
        drop(down_unit);
        if let (Some(adapter), Some(narrow)) = (self.adapter(Projection::ExpertsDown, pass), &saved.narrow_routed_down)
        {
            let step = ExpertsBackward { dy: &dy_sorted_TD, u: &hidden_TF, narrow, offsets, du: dhidden_TF };
            dhidden_TF = adapter.backward_experts(step, gradients.lora)?;
        }
        let dgate_up = swiglu::backward(&dhidden_TF, &wide.gate_up)?;
        gradients.add(self.units.gate_up, 0, || grouped_matmul::tn(&u_sorted_TD, &dgate_up, offsets))?;
        let mut du_sorted_TD = grouped_matmul::nt(&dgate_up, &gate_up_unit.param(0)?, offsets)?;
        drop(gate_up_unit);
        if let (Some(adapter), Some(narrow)) = (self.adapter(Projection::ExpertsGateUp, pass), &wide.narrow_gate) {
            let step = ExpertsBackward { dy: &dgate_up, u: &u_sorted_TD, narrow, offsets, du: du_sorted_TD };
            du_sorted_TD = adapter.backward_experts(step, gradients.lora)?;
        }
        Ok(du_sorted_TD)
    }

    fn shared_gate_up(&self, unit: &UnitWeights, normed_TD: &Tensor, pass: &Pass) -> Result<Wide> {
        let mut gate_up = matmul::nt(normed_TD, &self.shared_gate_up_weight(unit)?)?;
        let add = |projection, column_start, gate_up: Tensor| match self.adapter(projection, pass) {
            None => Ok::<_, crate::ModelError>((gate_up, None)),
            Some(adapter) => {
                let (gate_up, narrow) = adapter.forward_linear(gate_up, column_start, normed_TD, pass)?;
                Ok((gate_up, Some(narrow)))
            }
        };
        let (narrow_gate, narrow_up);
        (gate_up, narrow_gate) = add(Projection::SharedGate, 0, gate_up)?;
        (gate_up, narrow_up) = add(Projection::SharedUp, self.intermediate_size, gate_up)?;
        Ok(Wide { gate_up, narrow_gate, narrow_up })
    }

    fn routed_gate_up(&self, unit: &UnitWeights, u_sorted_TD: &Tensor, routing: &Routing, pass: &Pass) -> Result<Wide> {
        let gate_up = grouped_matmul::nn(u_sorted_TD, &unit.param(0)?, routing.offsets()?)?;
        let (gate_up, narrow_gate) = match self.adapter(Projection::ExpertsGateUp, pass) {
            None => (gate_up, None),
            Some(adapter) => {
                let (gate_up, narrow) = adapter.forward_experts(gate_up, u_sorted_TD, routing.offsets()?)?;
                (gate_up, Some(narrow))
            }
        };
        Ok(Wide { gate_up, narrow_gate, narrow_up: None })
    }

    fn routed_down(
        &self,
        unit: &UnitWeights,
        hidden_sorted_TF: &Tensor,
        routing: &Routing,
        pass: &Pass,
    ) -> Result<(Tensor, Option<Narrow>)> {
        let y = grouped_matmul::nn(hidden_sorted_TF, &unit.param(0)?, routing.offsets()?)?;
        match self.adapter(Projection::ExpertsDown, pass) {
            None => Ok((y, None)),
            Some(adapter) => {
                let (y, narrow) = adapter.forward_experts(y, hidden_sorted_TF, routing.offsets()?)?;
                Ok((y, Some(narrow)))
            }
        }
    }

    /// Gate and up lie next to each other in their unit: one matrix of twice the rows, one product.
    fn shared_gate_up_weight(&self, unit: &UnitWeights) -> Result<Tensor> {
        Ok(unit.span(param::GATE..param::UP + 1, [2 * self.intermediate_size, self.hidden_size].into())?)
    }

    /// One product finds the gradients of both halves; each is taken out of it where it is wanted.
    fn add_shared_gate_up(&self, dgate_up: &Tensor, normed_TD: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let halves = [(param::GATE, 0), (param::UP, self.intermediate_size)];
        if !halves.iter().any(|&(param, _)| gradients.weights.wants(self.units.shared, param)) {
            return Ok(());
        }
        let both = matmul::tn(dgate_up, normed_TD)?;
        for (param, first_row) in halves {
            gradients.add(self.units.shared, param, || both.rows(first_row, self.intermediate_size))?;
        }
        Ok(())
    }

    fn shared_down<'a>(&self, unit: &UnitWeights, pass: &Pass<'a>) -> Result<Linear<'a>> {
        let adapter = self.adapter(Projection::SharedDown, pass);
        Ok(Linear { weight: unit.param(param::DOWN)?, place: (self.units.shared, param::DOWN), adapter })
    }

    fn adapter<'a>(&self, projection: Projection, pass: &Pass<'a>) -> Option<Adapter<'a>> {
        Adapter::find(pass.lora, self.layer_index, projection)
    }
}
