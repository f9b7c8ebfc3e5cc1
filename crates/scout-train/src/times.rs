//! How long each use of a unit computes, worked out from shapes and measured rates: operations where a product is bound by
//! arithmetic, bytes where a kernel is bound by memory. Knows nothing of gathers.
//!
//! The bytes are those that the kernels of the model's `attention.rs` and `experts.rs` read and write, counted in rows of
//! the model's width and of an expert's.

use scout_core::{Projection, UnitId};
use scout_model::{Keep, LoraSettings, ModelConfig, UnitPlan};
use scout_shard::Schedule;

use crate::machine::ComputeType;
use crate::rates::{self, ATTENTION_BACKWARD, ATTENTION_FORWARD, GAPS, MEMORY, QUEUEING, WASTED_ROWS};

/// One flat run of tokens, forward and back, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Times<'a> {
    pub config: &'a ModelConfig,
    pub lora: &'a LoraSettings,
    pub compute: ComputeType,
    pub keep: Keep,
    pub num_tokens: f64,
    /// On average.
    pub row_length: f64,
}

/// Which part of the model a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Embedding,
    Head,
    Attention { layer_index: usize },
    Shared,
    GateUp,
    Down,
}

impl Times<'_> {
    /// For each entry of the schedule's order. What follows the head goes back.
    pub fn of_order(&self, units: &UnitPlan, schedule: &Schedule) -> Vec<f64> {
        let parts = parts(units, self.config.num_layers);
        let mut is_back = false;
        let time = |unit: &UnitId| {
            let part = parts[unit.0];
            let seconds = if is_back { self.backward(part) } else { self.forward(part) };
            is_back |= part == Part::Head;
            (seconds + GAPS).max(QUEUEING)
        };
        schedule.order().iter().map(time).collect()
    }

    fn forward(&self, part: Part) -> f64 {
        let Widths { d, f, q, .. } = self.widths();
        match part {
            Part::Embedding => self.rows(2.0 * d),
            Part::Head => self.head(),
            Part::Attention { layer_index } => {
                self.attend(layer_index)
                    + self.product(q, d, 1.0)
                    + self.adapters(&[Projection::O])
                    + self.rows(3.0 * d)
            }
            Part::Shared => {
                let adapted = [Projection::SharedGate, Projection::SharedUp, Projection::SharedDown];
                // The norm, the router and the hidden product.
                self.shared_gate_up() + self.product(f, d, 1.0) + self.adapters(&adapted) + self.rows(3.0 * d + 3.0 * f)
            }
            Part::GateUp => self.routed_gate_up(),
            Part::Down => {
                let adapted = self.adapters(&[Projection::ExpertsDown]);
                self.experts_product(f, d) + adapted + self.rows(3.0 * f + 4.0 * d)
            }
        }
    }

    fn backward(&self, part: Part) -> f64 {
        let Widths { d, f, q, k } = self.widths();
        let is_made_again = self.keep != Keep::Everything;
        match part {
            // Nothing below it is trained.
            Part::Embedding | Part::Head => 0.0,
            Part::Attention { layer_index } => {
                let again = if self.keep == Keep::InputOnly { self.attend(layer_index) } else { 0.0 };
                let products = 2.0 * (self.product(d, q, 1.0) + self.product(d, k, 1.0));
                let adapted = [Projection::Q, Projection::K, Projection::V, Projection::O];
                let rest = self.rows(6.0 * d + 3.0 * (q + k));
                again
                    + products
                    + self.attention(layer_index, 2.5, ATTENTION_BACKWARD)
                    + self.adapters_backward(&adapted)
                    + rest
            }
            Part::Shared => {
                let again = if is_made_again { self.shared_gate_up() } else { 0.0 };
                let adapted = [Projection::SharedGate, Projection::SharedUp, Projection::SharedDown];
                let products = self.product(d, 2.0 * f, 1.0) + self.product(f, d, 1.0);
                again + products + self.adapters_backward(&adapted) + self.rows(2.0 * d + 6.0 * f)
            }
            // What it brought is still there.
            Part::GateUp if !is_made_again => 0.0,
            Part::GateUp => self.routed_gate_up(),
            Part::Down => {
                let adapted = [Projection::ExpertsGateUp, Projection::ExpertsDown];
                let products = self.experts_product(f, d) + self.experts_product(d, 2.0 * f);
                products + self.adapters_backward(&adapted) + self.rows(10.0 * d + 5.0 * f)
            }
        }
    }

    /// Up to the output projection.
    fn attend(&self, layer_index: usize) -> f64 {
        let Widths { d, q, k, .. } = self.widths();
        let products = self.product(d, q, 1.0) + 2.0 * self.product(d, k, 1.0);
        let adapted = self.adapters(&[Projection::Q, Projection::K, Projection::V]);
        products + adapted + self.attention(layer_index, 1.0, ATTENTION_FORWARD) + self.rows(2.0 * d + 2.0 * (q + k))
    }

    /// `factor` times the operations of the forward pass; pairs that see each other are half of the square.
    fn attention(&self, layer_index: usize, factor: f64, rate: rates::AttentionRate) -> f64 {
        let seen = match self.config.rope_layers[layer_index] {
            true => self.row_length.min(self.config.attention_chunk_size as f64),
            false => self.row_length,
        };
        let pairs = self.num_tokens * (seen + 1.0) / 2.0;
        let width = (self.config.num_heads * self.config.head_dim) as f64;
        factor * 4.0 * width * pairs / rate.at(seen).min(rates::products(self.compute))
    }

    fn shared_gate_up(&self) -> f64 {
        let Widths { d, f, .. } = self.widths();
        self.product(d, 2.0 * f, 1.0)
    }

    fn routed_gate_up(&self) -> f64 {
        let Widths { d, f, .. } = self.widths();
        self.experts_product(d, 2.0 * f) + self.adapters(&[Projection::ExpertsGateUp]) + self.rows(2.0 * d)
    }

    /// Every position scored: logits, losses, and the gradient of the input.
    fn head(&self) -> f64 {
        let Widths { d, .. } = self.widths();
        let vocabulary = self.config.vocab_size as f64;
        2.0 * self.product(d, vocabulary, 1.0) + self.rows(2.0 * vocabulary + 8.0 * d)
    }

    /// All tokens through one matrix: by its operations, or by its bytes where few tokens pass.
    fn product(&self, from: f64, to: f64, copies: f64) -> f64 {
        let wasted = if copies > 1.0 { WASTED_ROWS * copies } else { 0.0 };
        let operations = 2.0 * (self.num_tokens + wasted) * from * to / rates::products(self.compute);
        operations.max(self.element_size() * from * to * copies / MEMORY)
    }

    /// Each token through the matrix of its expert.
    fn experts_product(&self, from: f64, to: f64) -> f64 {
        self.product(from, to, self.config.num_experts as f64)
    }

    /// A sweep over rows of this width.
    fn rows(&self, width: f64) -> f64 {
        self.num_tokens * width * self.element_size() / MEMORY
    }

    /// Thin products: the input is read, and what is added to the output is written.
    fn adapters(&self, projections: &[Projection]) -> f64 {
        let width = |[input, output]: [f64; 2], _| input + output;
        self.adapted(projections, width)
    }

    /// The input is read, and what is added to its gradient is written; the gradient of the output is read, that of an
    /// expert twice. For its gate and up the scaled rows are gathered again.
    fn adapters_backward(&self, projections: &[Projection]) -> f64 {
        let width = |[input, output]: [f64; 2], projection| match projection {
            Projection::ExpertsGateUp => 4.0 * input + 2.0 * output,
            Projection::ExpertsDown => 2.0 * input + 2.0 * output,
            _ => 2.0 * input + output,
        };
        self.adapted(projections, width)
    }

    /// Sweeps over rows that are as wide as `width` says of input and output, for each adapted projection.
    fn adapted(&self, projections: &[Projection], width: impl Fn([f64; 2], Projection) -> f64) -> f64 {
        let Widths { d, f, q, k } = self.widths();
        let ends = |projection| match projection {
            Projection::Q => [d, q],
            Projection::K | Projection::V => [d, k],
            Projection::O => [q, d],
            Projection::SharedGate | Projection::SharedUp => [d, f],
            Projection::SharedDown | Projection::ExpertsDown => [f, d],
            Projection::ExpertsGateUp => [d, 2.0 * f],
        };
        let adapted = projections.iter().filter(|projection| self.lora.projections.contains(projection));
        self.rows(adapted.map(|&projection| width(ends(projection), projection)).sum())
    }

    fn element_size(&self) -> f64 {
        self.compute.dtype().size().as_f64()
    }

    fn widths(&self) -> Widths {
        let ModelConfig { hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, .. } = *self.config;
        let [d, f, q, k] =
            [hidden_size, intermediate_size, num_heads * head_dim, num_kv_heads * head_dim].map(|width| width as f64);
        Widths { d, f, q, k }
    }
}

/// Elements of one token: the model's width, an expert's, all query heads, all key heads.
struct Widths {
    d: f64,
    f: f64,
    q: f64,
    k: f64,
}

/// By unit.
fn parts(units: &UnitPlan, num_layers: usize) -> Vec<Part> {
    let mut parts = vec![Part::Embedding; units.units().len()];
    parts[units.head().0] = Part::Head;
    for layer_index in 0..num_layers {
        let layer = units.layer(layer_index);
        parts[layer.attention.0] = Part::Attention { layer_index };
        parts[layer.shared.0] = Part::Shared;
        parts[layer.gate_up.0] = Part::GateUp;
        parts[layer.down.0] = Part::Down;
    }
    parts
}
