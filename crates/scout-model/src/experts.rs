//! The feed-forward block: norm, router, shared expert, the one routed expert of each token, residual. The router passes
//! a gradient to `x`, trained or not: through the score, and through the score's logit.
#![expect(
    non_snake_case,
    reason = "shape suffixes: T tokens, D model width, F expert width, E experts; sorted = by expert"
)]

use scout_core::{Projection, UnitId};
use scout_device::{Tensor, UnitSource, UnitWeights};
use scout_kernels::matmul::Columns;
use scout_kernels::router::{RouterGradient, Routing};
use scout_kernels::swiglu::BackAndForth;
use scout_kernels::{grouped_matmul, matmul, rms_norm, router, swiglu};

use crate::adapted::{Narrow, Stack};
use crate::adapted_experts::{ExpertsAdapter, ExpertsBackward, NarrowSorted};
use crate::error::Result;
use crate::gradients::Gradients;
use crate::lora::Input;
use crate::pass::{Keep, KeptOfLayer, Pass, Trace};
use crate::routed_rows::{self, Destination, SentBack, SetOut};
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
    destination: Destination,
    inverse_rms_T: Tensor,
    /// Absent when the plan makes them again.
    shared: Option<Wide<Narrow>>,
    routed: Option<Wide<NarrowSorted>>,
    /// Else some rank wants the experts' input again.
    all_keep_routed: bool,
    narrow_shared_down: Narrow,
    narrow_routed_down: NarrowSorted,
}

/// The way back through the shared expert, half-way.
struct SharedHalfBack {
    dgate_up: Tensor,
    /// Of gate and up, where they were made again.
    narrow: Option<Narrow>,
}

/// Rows that the way back through the routed experts waits for.
struct RoutedSetOut<'a> {
    /// Where gate and up are made again, or trained.
    u_sorted_TD: Option<SetOut<'a>>,
    dy_sorted_TD: SetOut<'a>,
}

/// Gate and up halves of an expert, side by side, and the narrow products of the adapters that made them.
#[derive(Debug)]
struct Wide<N> {
    gate_up: Tensor,
    narrow: N,
}

impl ExpertsBlock {
    pub fn forward(
        &self,
        weights: &mut dyn UnitSource,
        x_TD: Tensor,
        pass: &Pass,
        trace: &mut dyn Trace,
    ) -> Result<(Tensor, SavedExperts)> {
        let shared_unit = weights.take(self.units.shared)?;
        let normed = rms_norm::forward(&x_TD, &shared_unit.param(param::NORM)?, self.rms_norm_eps)?;
        let logits_TE = router::logits(&normed.y, &shared_unit.param(param::ROUTER)?)?;
        let routing = match pass.routes {
            Some(routes) => router::forced(&logits_TE, &routes[self.layer_index])?,
            None => router::choose(&logits_TE)?,
        };
        let u_sorted_TD = || router::gather_scaled(&normed.y, &routing);
        let rows_out = routed_rows::set_out(&routing, pass, u_sorted_TD)?;
        let shared = self.shared_gate_up(&shared_unit, &normed.y, pass)?;
        let hidden_TF = swiglu::forward(&shared.gate_up)?;
        let (u_sorted_TD, destination) = rows_out.arrive_and_stay(&routing, pass)?;
        let gate_up_unit = weights.take(self.units.gate_up)?;
        let offsets = destination.offsets(&routing)?;
        let routed = self.routed_gate_up(&gate_up_unit, &u_sorted_TD, (&routing, &destination), pass)?;
        drop(gate_up_unit);
        let hidden_sorted_TF = swiglu::forward(&routed.gate_up)?;
        let down_unit = weights.take(self.units.down)?;
        let through_TD = grouped_matmul::nn(&hidden_sorted_TF, down_unit.matrices()?, offsets)?;
        drop(down_unit);
        let routed_down = ExpertsAdapter::of(pass, (self.layer_index, &destination), Projection::ExpertsDown);
        let (through_TD, narrow_routed_down) = routed_down.forward(through_TD, &hidden_sorted_TF, offsets)?;
        let results_out = destination.send_back(through_TD, pass)?;

        let shared_down = Stack::of(pass, self.layer_index, Input::SharedHidden);
        let narrow_shared_down = shared_down.narrow(&hidden_TF)?;
        let delta_TD = shared_down.delta(Projection::SharedDown, &narrow_shared_down)?;
        let shared_TD = matmul::add_nt(delta_TD, &hidden_TF, &shared_unit.param(param::DOWN)?)?;
        drop(shared_unit);
        let routed_sorted_TD = results_out.come_back()?;
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
            named.into_iter().for_each(|(name, tensor)| trace.record_layer(self.layer_index, name, tensor));
        }
        let keeps_wide = pass.keep.of_layer(self.layer_index) == Keep::Everything;
        let kept = if keeps_wide { destination.kept(pass) } else { KeptOfLayer::NOTHING };
        let saved = SavedExperts {
            x_TD,
            routing,
            destination,
            inverse_rms_T: normed.inverse_rms,
            shared: keeps_wide.then_some(shared),
            routed: kept.by_this_rank.then_some(routed),
            all_keep_routed: kept.by_all_ranks,
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
        let wants_input = !saved.all_keep_routed || self.trains_gate_up(pass, gradients);
        let under_way_there = self.routed_set_out(&dy_TD, wants_input.then_some(&normed_TD), &saved, pass)?;
        let half_back = self.shared_down_backward(&shared_unit, &dy_TD, &normed_TD, &saved, pass, gradients)?;
        let second_half = |gradients: &mut Gradients| {
            self.shared_gate_up_backward(&shared_unit, half_back, (&normed_TD, &saved), pass, gradients)
        };
        // It covers the way back of results. Where none travel it comes first: what it waits with is wide.
        let (dshared_TD, under_way_back);
        match &saved.destination {
            Destination::Here => {
                dshared_TD = second_half(gradients)?;
                under_way_back = self.routed_backward(weights, under_way_there, &saved, pass, gradients)?;
            }
            Destination::Keepers(_) => {
                under_way_back = self.routed_backward(weights, under_way_there, &saved, pass, gradients)?;
                dshared_TD = second_half(gradients)?;
            }
        }
        let du_sorted_TD = under_way_back.come_back()?;
        let router_ED = shared_unit.param(param::ROUTER)?;
        let RouterGradient { dx: dnormed_TD, dlogit_T } =
            router::backward(&du_sorted_TD, &normed_TD, &saved.routing, &router_ED, &dshared_TD)?;
        let unit = self.units.shared;
        gradients.add(unit, param::ROUTER, || router::weight_gradient(&dlogit_T, &normed_TD, &saved.routing))?;
        gradients
            .add(unit, param::NORM, || rms_norm::weight_gradient(&dnormed_TD, &saved.x_TD, &saved.inverse_rms_T))?;
        Ok(rms_norm::backward(&dnormed_TD, &saved.x_TD, &saved.inverse_rms_T, &norm_D, Some(&dy_TD))?)
    }

    pub fn forward_units(&self) -> [UnitId; 3] {
        [self.units.shared, self.units.gate_up, self.units.down]
    }

    /// The shared unit comes first and stays to the end: its norm and router close the chain. Gate and up come before
    /// down, so that one order serves whether or not they are made again.
    pub fn backward_units(&self) -> [UnitId; 3] {
        self.forward_units()
    }

    /// The first half of the way back through the shared expert.
    fn shared_down_backward(
        &self,
        unit: &UnitWeights,
        dy_TD: &Tensor,
        normed_TD: &Tensor,
        saved: &SavedExperts,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<SharedHalfBack> {
        let made_again = match &saved.shared {
            Some(_) => None,
            None => Some(self.shared_gate_up(unit, normed_TD, pass)?),
        };
        let wide = saved.shared.as_ref().or(made_again.as_ref()).expect("what is not kept is made again");
        let down = Stack::of(pass, self.layer_index, Input::SharedHidden);
        let dys = [(Projection::SharedDown, dy_TD.into())];
        let dnarrow = down.backward(&dys, &saved.narrow_shared_down, gradients.lora)?;
        let dhidden_TF = matmul::add_nn(down.dx(&dnarrow)?, dy_TD, &unit.param(param::DOWN)?)?;
        let is_trained = !down.is_empty() || gradients.weights.wants(self.units.shared, param::DOWN);
        let (dgate_up, hidden_TF) = activation_backward(&dhidden_TF, &wide.gate_up, is_trained)?;
        if let Some(hidden_TF) = hidden_TF {
            down.add_gradients_of_a(&dnarrow, &hidden_TF, gradients.lora)?;
            gradients.add(self.units.shared, param::DOWN, || matmul::tn(dy_TD, &hidden_TF))?;
        }
        Ok(SharedHalfBack { dgate_up, narrow: made_again.map(|wide| wide.narrow) })
    }

    /// The second half: the gradient of the normed input.
    fn shared_gate_up_backward(
        &self,
        unit: &UnitWeights,
        SharedHalfBack { dgate_up, narrow }: SharedHalfBack,
        (normed_TD, saved): (&Tensor, &SavedExperts),
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let kept = saved.shared.as_ref().map(|wide| &wide.narrow);
        let narrow = kept.or(narrow.as_ref()).expect("what is not kept is made again");
        self.add_shared_gate_up(&dgate_up, normed_TD, gradients)?;
        let half = |start| Columns { tensor: &dgate_up, start, count: self.intermediate_size };
        let dys = [(Projection::SharedGate, half(0)), (Projection::SharedUp, half(self.intermediate_size))];
        let both = Stack::of(pass, self.layer_index, Input::Shared);
        let dnarrow = both.backward(&dys, narrow, gradients.lora)?;
        both.add_gradients_of_a(&dnarrow, normed_TD, gradients.lora)?;
        Ok(matmul::add_nn(both.dx(&dnarrow)?, &dgate_up, &self.shared_gate_up_weight(unit)?)?)
    }

    /// What the way back through the routed experts starts from: `normed_TD` where their input is wanted again, then gradients.
    fn routed_set_out<'a>(
        &self,
        dy_TD: &'a Tensor,
        normed_TD: Option<&'a Tensor>,
        saved: &'a SavedExperts,
        pass: &Pass<'a>,
    ) -> Result<RoutedSetOut<'a>> {
        let SavedExperts { routing, destination, .. } = saved;
        let u_sorted_TD =
            |normed_TD| destination.set_out_again(pass, move || router::gather_scaled(normed_TD, routing));
        Ok(RoutedSetOut {
            u_sorted_TD: normed_TD.map(u_sorted_TD).transpose()?,
            dy_sorted_TD: destination.set_out_again(pass, || router::gather(dy_TD, routing))?,
        })
    }

    fn routed_backward<'a>(
        &self,
        weights: &mut dyn UnitSource,
        under_way: RoutedSetOut,
        saved: &SavedExperts,
        pass: &Pass<'a>,
        gradients: &mut Gradients,
    ) -> Result<SentBack<'a>> {
        let routing = &saved.routing;
        let offsets = saved.destination.offsets(routing)?;
        let gate_up_unit = weights.take(self.units.gate_up)?;
        let RoutedSetOut { u_sorted_TD, dy_sorted_TD } = under_way;
        u_sorted_TD.iter().try_for_each(SetOut::take)?;
        let u_sorted_TD = || u_sorted_TD.as_ref().expect("they set out where somebody asks for them").arrive();
        let made_again = match &saved.routed {
            Some(_) => None,
            None => Some(self.routed_gate_up(&gate_up_unit, &u_sorted_TD()?, (routing, &saved.destination), pass)?),
        };
        let wide = saved.routed.as_ref().or(made_again.as_ref()).expect("what is not kept is made again");
        let dy_sorted_TD = dy_sorted_TD.arrive()?;
        let down_unit = weights.take(self.units.down)?;
        let through_TF = grouped_matmul::nt(&dy_sorted_TD, down_unit.matrices()?, offsets)?;
        drop(down_unit);
        let down = ExpertsAdapter::of(pass, (self.layer_index, &saved.destination), Projection::ExpertsDown);
        let step = ExpertsBackward { dy: &dy_sorted_TD, narrow: &saved.narrow_routed_down, offsets, du: through_TF };
        let (dhidden_TF, dnarrow) = down.backward(step, gradients.lora)?;
        let is_trained = !down.is_none() || gradients.weights.wants(self.units.down, 0);
        let (dgate_up, hidden_TF) = activation_backward(&dhidden_TF, &wide.gate_up, is_trained)?;
        if let Some(hidden_TF) = hidden_TF {
            down.add_gradient_of_b(&dnarrow, &hidden_TF, offsets, gradients.lora)?;
            gradients.add(self.units.down, 0, || grouped_matmul::tn(&hidden_TF, &dy_sorted_TD, offsets))?;
        }

        gradients.add(self.units.gate_up, 0, || grouped_matmul::tn(&u_sorted_TD()?, &dgate_up, offsets))?;
        let through_TD = grouped_matmul::nt(&dgate_up, gate_up_unit.matrices()?, offsets)?;
        drop(gate_up_unit);
        let both = ExpertsAdapter::of(pass, (self.layer_index, &saved.destination), Projection::ExpertsGateUp);
        let step = ExpertsBackward { dy: &dgate_up, narrow: &wide.narrow, offsets, du: through_TD };
        let (du_sorted_TD, dnarrow) = both.backward(step, gradients.lora)?;
        if !both.is_none() {
            both.add_gradient_of_b(&dnarrow, &u_sorted_TD()?, offsets, gradients.lora)?;
        }
        Ok(saved.destination.send_back(du_sorted_TD, pass)?)
    }

    fn trains_gate_up(&self, pass: &Pass, gradients: &Gradients) -> bool {
        let is_adapted = pass.lora.layout.find(self.layer_index, Projection::ExpertsGateUp).is_some();
        is_adapted || gradients.weights.wants(self.units.gate_up, 0)
    }

    fn shared_gate_up(&self, unit: &UnitWeights, normed_TD: &Tensor, pass: &Pass) -> Result<Wide<Narrow>> {
        let both = Stack::of(pass, self.layer_index, Input::Shared);
        let narrow = both.narrow(normed_TD)?;
        let deltas = both.deltas([Projection::SharedGate, Projection::SharedUp], &narrow, self.intermediate_size)?;
        let gate_up = matmul::add_nt(deltas, normed_TD, &self.shared_gate_up_weight(unit)?)?;
        Ok(Wide { gate_up, narrow })
    }

    fn routed_gate_up(
        &self,
        unit: &UnitWeights,
        u_sorted_TD: &Tensor,
        (routing, destination): (&Routing, &Destination),
        pass: &Pass,
    ) -> Result<Wide<NarrowSorted>> {
        let offsets = destination.offsets(routing)?;
        let gate_up = grouped_matmul::nn(u_sorted_TD, unit.matrices()?, offsets)?;
        let adapter = ExpertsAdapter::of(pass, (self.layer_index, destination), Projection::ExpertsGateUp);
        let (gate_up, narrow) = adapter.forward(gate_up, u_sorted_TD, offsets)?;
        Ok(Wide { gate_up, narrow })
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
}

/// The gradients of gate and up, and in the same sweep the hidden activations where somebody is trained on them.
fn activation_backward(dhidden: &Tensor, gate_up: &Tensor, is_trained: bool) -> Result<(Tensor, Option<Tensor>)> {
    if !is_trained {
        return Ok((swiglu::backward(dhidden, gate_up)?, None));
    }
    let BackAndForth { d_gate_up, h } = swiglu::back_and_forth(dhidden, gate_up)?;
    Ok((d_gate_up, Some(h)))
}
