//! How long each use of a unit computes, worked out from shapes and measured rates: operations where a product is bound by
//! arithmetic, bytes where a kernel is bound by memory, and the start of each kernel. Knows nothing of gathers.
//!
//! The bytes are those that the kernels of the model's `attention.rs` and `experts.rs` read and write, counted in rows of
//! the model's width and of an expert's.

use std::ops::{Add, Mul};

use scout_core::{Projection, UnitId};
use scout_model::{Keep, Keeping, LoraSettings, ModelConfig, UnitPlan};
use scout_shard::Schedule;

use crate::machine::ComputeType;
use crate::rates::{
    self, ATTENTION_BACKWARD, ATTENTION_FORWARD, FIRST_ROW, MEETING, MEMORY, QUEUEING, ROWS, START, WASTED_ROWS,
};

/// Seconds, by what bounds them: a gather on its way takes another share of each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    pub arithmetic: f64,
    /// Bytes that are read and written, and starts of kernels.
    pub memory: f64,
    /// In which arithmetic waits for rows of other ranks.
    pub waiting: f64,
}

impl Work {
    fn arithmetic(seconds: f64) -> Work {
        Work { arithmetic: seconds, ..Work::default() }
    }

    fn waiting(seconds: f64) -> Work {
        Work { waiting: seconds, ..Work::default() }
    }

    fn memory(seconds: f64) -> Work {
        Work { memory: seconds, ..Work::default() }
    }

    /// In which something computes.
    pub fn seconds(self) -> f64 {
        self.arithmetic + self.memory
    }

    /// Where the host takes longer to queue it, that is how long it takes: what the GPU stands still counts as arithmetic.
    fn queued_in(self, seconds: f64) -> Work {
        Work { arithmetic: self.arithmetic.max(seconds - self.memory), ..self }
    }
}

impl Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            arithmetic: self.arithmetic + other.arithmetic,
            memory: self.memory + other.memory,
            waiting: self.waiting + other.waiting,
        }
    }
}

impl Mul<Work> for f64 {
    type Output = Work;

    fn mul(self, work: Work) -> Work {
        Work { arithmetic: self * work.arithmetic, memory: self * work.memory, waiting: self * work.waiting }
    }
}

/// So many kernels begin and end: as many as a trace of a step shows where all projections are adapted.
fn starts(num_kernels: usize) -> Work {
    Work::memory(START * num_kernels as f64)
}

/// One flat run of tokens, forward and back, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Times<'a> {
    pub config: &'a ModelConfig,
    pub lora: &'a LoraSettings,
    pub compute: ComputeType,
    pub keep: Keeping,
    /// As of a pass in memory.
    pub num_sources: usize,
    /// How many times an even share of rows comes to the experts of the rank that all wait for.
    pub busiest_share: f64,
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
    Shared { layer_index: usize },
    GateUp { layer_index: usize },
    Down,
}

impl Times<'_> {
    /// For each entry of the schedule's order. What follows the head goes back.
    pub fn of_order(&self, units: &UnitPlan, schedule: &Schedule) -> Vec<Work> {
        let parts = parts(units, self.config.num_layers);
        let mut is_back = false;
        let work = |unit: &UnitId| {
            let part = parts[unit.0];
            let work = if is_back { self.backward(part) } else { self.forward(part) };
            is_back |= part == Part::Head;
            work.queued_in(QUEUEING)
        };
        schedule.order().iter().map(work).collect()
    }

    fn forward(&self, part: Part) -> Work {
        let Widths { d, f, q, .. } = self.widths();
        match part {
            Part::Embedding => self.rows(2.0 * d) + starts(1),
            Part::Head => self.head(),
            Part::Attention { layer_index } => {
                self.attend(layer_index)
                    + self.product(q, d)
                    + self.adapters(&[Projection::O])
                    + self.rows(3.0 * d)
                    + starts(3)
            }
            Part::Shared { .. } => {
                let adapted = [Projection::SharedGate, Projection::SharedUp, Projection::SharedDown];
                // The norm, the router and the hidden product.
                let rest = self.rows(3.0 * d + 3.0 * f) + starts(9);
                self.shared_gate_up() + self.product(f, d) + self.adapters(&adapted) + rest
            }
            Part::GateUp { .. } => self.routed_gate_up() + starts(1),
            Part::Down => {
                let adapted = self.adapters(&[Projection::ExpertsDown]);
                self.experts_product(f, d)
                    + adapted
                    + self.arrived_rows(3.0 * f)
                    + self.rows(4.0 * d)
                    + starts(5)
                    + self.results(self.product(f, d))
            }
        }
    }

    fn backward(&self, part: Part) -> Work {
        let Widths { d, f, q, k } = self.widths();
        let kept = |layer_index| self.keep.of_layer(layer_index);
        let again = |is_made_again: bool, work: Work| if is_made_again { work } else { Work::default() };
        match part {
            // Nothing below it is trained.
            Part::Embedding | Part::Head => Work::default(),
            Part::Attention { layer_index } => {
                let products = 2.0 * (self.product(d, q) + self.product(d, k));
                let adapted = [Projection::Q, Projection::K, Projection::V, Projection::O];
                let attention = self.attention(layer_index, 2.5, ATTENTION_BACKWARD);
                let rest = self.rows(6.0 * d + 3.0 * (q + k)) + starts(13);
                let again = again(kept(layer_index) == Keep::InputOnly, self.attend(layer_index));
                again + products + attention + self.adapters_backward(&adapted) + rest
            }
            Part::Shared { layer_index } => {
                let again = again(kept(layer_index) != Keep::Everything, self.shared_gate_up());
                let adapted = [Projection::SharedGate, Projection::SharedUp, Projection::SharedDown];
                let products = self.product(d, 2.0 * f) + self.product(f, d);
                again + products + self.adapters_backward(&adapted) + self.rows(2.0 * d + 6.0 * f) + starts(9)
            }
            // What is kept of it is still there.
            Part::GateUp { layer_index } => again(kept(layer_index) != Keep::Everything, self.routed_gate_up()),
            Part::Down => {
                let adapted = [Projection::ExpertsGateUp, Projection::ExpertsDown];
                let products = self.experts_product(f, d) + self.experts_product(d, 2.0 * f);
                products
                    + self.adapters_backward(&adapted)
                    + self.rows(10.0 * d)
                    + self.arrived_rows(5.0 * f)
                    + starts(9)
                    + self.results(self.product(d, 2.0 * f))
            }
        }
    }

    /// What results that come back from experts of other ranks are waited for, while half of the shared expert's work covers
    /// them. The other half covers the way of rows there, which is as long.
    fn results(&self, cover: Work) -> Work {
        if self.num_sources == 1 {
            return Work::default();
        }
        let num_sources = self.num_sources as f64;
        let rows = self.busiest_share * self.num_tokens * (num_sources - 1.0) / num_sources;
        let bytes = rows * self.widths().d * self.element_size();
        Work::waiting(MEETING + (FIRST_ROW + bytes / ROWS - cover.seconds()).max(0.0))
    }

    /// Up to the output projection.
    fn attend(&self, layer_index: usize) -> Work {
        let Widths { d, q, k, .. } = self.widths();
        let products = self.product(d, q) + 2.0 * self.product(d, k);
        let adapted = self.adapters(&[Projection::Q, Projection::K, Projection::V]);
        let rest = self.rows(2.0 * d + 2.0 * (q + k)) + starts(12);
        products + adapted + self.attention(layer_index, 1.0, ATTENTION_FORWARD) + rest
    }

    /// `factor` times the operations of the forward pass; pairs that see each other are half of the square.
    fn attention(&self, layer_index: usize, factor: f64, rate: rates::AttentionRate) -> Work {
        let seen = match self.config.rope_layers[layer_index] {
            true => self.row_length.min(self.config.attention_chunk_size as f64),
            false => self.row_length,
        };
        let pairs = self.num_tokens * (seen + 1.0) / 2.0;
        let width = (self.config.num_heads * self.config.head_dim) as f64;
        Work::arithmetic(factor * 4.0 * width * pairs / rate.at(seen).min(rates::products(self.compute)))
    }

    fn shared_gate_up(&self) -> Work {
        let Widths { d, f, .. } = self.widths();
        self.product(d, 2.0 * f) + starts(4)
    }

    fn routed_gate_up(&self) -> Work {
        let Widths { d, f, .. } = self.widths();
        let adapted = self.adapters(&[Projection::ExpertsGateUp]);
        self.experts_product(d, 2.0 * f) + adapted + self.rows(2.0 * d) + starts(2)
    }

    /// Every position scored: logits, losses, and the gradient of the input.
    fn head(&self) -> Work {
        let Widths { d, .. } = self.widths();
        let vocabulary = self.config.vocab_size as f64;
        2.0 * self.product(d, vocabulary) + self.rows(2.0 * vocabulary + 8.0 * d) + starts(6)
    }

    /// All tokens through one matrix.
    fn product(&self, from: f64, to: f64) -> Work {
        self.by_the_slower(self.num_tokens, from * to, 1.0)
    }

    /// Each token through the matrix of its expert, or as many of all ranks through those of this one.
    fn experts_product(&self, from: f64, to: f64) -> Work {
        let num_experts = self.config.num_experts as f64 / self.num_sources as f64;
        self.by_the_slower(self.busiest_share * self.num_tokens + WASTED_ROWS * num_experts, from * to, num_experts)
    }

    /// By operations, or by bytes where few rows pass such matrices.
    fn by_the_slower(&self, num_rows: f64, matrix_len: f64, num_matrices: f64) -> Work {
        let by_operations = 2.0 * num_rows * matrix_len / rates::products(self.compute);
        let by_bytes = self.element_size() * matrix_len * num_matrices / MEMORY;
        if by_bytes > by_operations { Work::memory(by_bytes) } else { Work::arithmetic(by_operations) }
    }

    /// A sweep over rows of this width.
    fn rows(&self, width: f64) -> Work {
        Work::memory(self.num_tokens * width * self.element_size() / MEMORY)
    }

    /// The same over those that came to experts.
    fn arrived_rows(&self, width: f64) -> Work {
        self.busiest_share * self.rows(width)
    }

    /// Thin products: the input is read, and what is added to the output is written.
    fn adapters(&self, projections: &[Projection]) -> Work {
        let width = |[input, output]: [f64; 2], _| input + output;
        self.adapted(projections, width)
    }

    /// The input is read, and what is added to its gradient is written; the gradient of the output is read, that of an
    /// expert twice. For its gate and up the scaled rows are gathered again.
    fn adapters_backward(&self, projections: &[Projection]) -> Work {
        let width = |[input, output]: [f64; 2], projection| match projection {
            Projection::ExpertsGateUp => 4.0 * input + 2.0 * output,
            Projection::ExpertsDown => 2.0 * input + 2.0 * output,
            _ => 2.0 * input + output,
        };
        self.adapted(projections, width)
    }

    /// Sweeps over rows that are as wide as `width` says of input and output, for each adapted projection.
    fn adapted(&self, projections: &[Projection], width: impl Fn([f64; 2], Projection) -> f64) -> Work {
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
        let work = adapted.map(|&projection| {
            let width = width(ends(projection), projection);
            match projection {
                Projection::ExpertsGateUp | Projection::ExpertsDown => self.arrived_rows(width),
                _ => self.rows(width),
            }
        });
        work.fold(Work::default(), Add::add)
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
        parts[layer.shared.0] = Part::Shared { layer_index };
        parts[layer.gate_up.0] = Part::GateUp { layer_index };
        parts[layer.down.0] = Part::Down;
    }
    parts
}
