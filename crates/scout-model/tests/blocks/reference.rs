//! The blocks once more, in f64, from candle's own differentiable operations: dense masks instead of segments, rotation
//! matrices instead of pairs, factors merged into their matrices, every token through every expert with a score of zero
//! where it was not chosen. Slow; shares no formula with the code it checks but the frequencies.

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, IndexOp, Result, Tensor, Var};
use scout_core::Projection;
use scout_kernels::lora::{DropoutKey, dropout};
use scout_model::lora::Factor;
use scout_model::{Batch, Pass, rope};

use crate::rig::Rig;

/// What candle found.
pub struct Found {
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    /// Laid out like the adapter.
    pub gradients: Vec<f64>,
    /// Of each parameter of each unit.
    pub weights: Vec<Vec<Vec<f64>>>,
}

pub struct Reference<'a> {
    rig: &'a Rig,
    x: Var,
    /// Factors A and B of each module.
    factors: Vec<[Var; 2]>,
    /// Parameters of each unit.
    params: Vec<Vec<Var>>,
    /// Takes the router's score for a number that does not depend on the input, which is wrong.
    pub is_score_constant: bool,
}

impl<'a> Reference<'a> {
    pub fn new(rig: &'a Rig, x: &scout_device::Tensor) -> Reference<'a> {
        let x = Var::from_tensor(&double(x)).unwrap();
        let factor = |index: usize, factor: Factor, dims: &[usize]| {
            let values = &rig.flat[rig.layout.range(index, factor)];
            Var::from_tensor(&constant(values, dims)).unwrap()
        };
        let modules = rig.layout.modules().iter().enumerate();
        let factors = modules
            .map(|(index, m)| {
                [factor(index, Factor::A, m.a_shape().dims()), factor(index, Factor::B, m.b_shape().dims())]
            })
            .collect();
        let units = 0..rig.units.units().len();
        let params = units.map(|unit| params_of(rig, unit)).collect();
        Reference { rig, x, factors, params, is_score_constant: false }
    }

    pub fn attention(&self, layer: usize, pass: &Pass, dy: &scout_device::Tensor) -> Found {
        self.differentiate(self.attention_forward(layer, pass).unwrap(), dy)
    }

    pub fn experts(&self, layer: usize, pass: &Pass, dy: &scout_device::Tensor) -> Found {
        self.differentiate(self.experts_forward(layer, pass).unwrap(), dy)
    }

    /// Weighted loss, in the place of `y`.
    pub fn head(&self, batch: &Batch) -> Found {
        let loss = self.head_forward(batch).unwrap();
        self.found(&loss, &loss.backward().unwrap())
    }

    /// The embedding picks rows by one-hot products.
    pub fn embedding(&self, batch: &Batch, dy: &scout_device::Tensor) -> Found {
        let vocab_size = self.rig.config.vocab_size;
        let ids = batch.ids.u32s().unwrap().to_vec();
        let one_hot =
            ids.iter().flat_map(|&id| (0..vocab_size).map(move |word| f64::from(u8::from(word == id as usize))));
        let one_hot = Tensor::from_vec(one_hot.collect(), (ids.len(), vocab_size), &Device::Cpu).unwrap();
        self.differentiate(one_hot.matmul(&self.param(self.rig.units.embedding().0, 0)).unwrap(), dy)
    }

    fn differentiate(&self, y: Tensor, dy: &scout_device::Tensor) -> Found {
        let gradients = (&y * double(dy)).unwrap().sum_all().unwrap().backward().unwrap();
        self.found(&y, &gradients)
    }

    fn found(&self, y: &Tensor, gradients: &GradStore) -> Found {
        let mut of_factors = vec![0.0; self.rig.layout.num_elements()];
        for (index, [a, b]) in self.factors.iter().enumerate() {
            for (factor, var) in [(Factor::A, a), (Factor::B, b)] {
                of_factors[self.rig.layout.range(index, factor)].copy_from_slice(&gradient_of(gradients, var));
            }
        }
        let of_unit = |params: &Vec<Var>| params.iter().map(|param| gradient_of(gradients, param)).collect();
        let weights = self.params.iter().map(of_unit).collect();
        Found { y: vector(y), dx: gradient_of(gradients, &self.x), gradients: of_factors, weights }
    }

    fn attention_forward(&self, layer: usize, pass: &Pass) -> Result<Tensor> {
        let config = &self.rig.config;
        let unit = self.rig.units.layer(layer).attention;
        let [norm, q, k, v, o] = [0, 1, 2, 3, 4].map(|index| self.param(unit.0, index));
        let x = self.x.as_tensor();
        let normed = rms_norm(x, config.rms_norm_eps)?.broadcast_mul(&norm)?;
        let heads = |y: Tensor, count: usize| y.reshape((x.dim(0)?, count, config.head_dim));
        let mut q = heads(self.linear(&normed, &q, (layer, Projection::Q), pass)?, config.num_heads)?;
        let mut k = heads(self.linear(&normed, &k, (layer, Projection::K), pass)?, config.num_kv_heads)?;
        let v = heads(self.linear(&normed, &v, (layer, Projection::V), pass)?, config.num_kv_heads)?;
        let positions = pass.batch.positions.u32s().unwrap().to_vec();
        if config.rope_layers[layer] {
            let turns = self.rotations(&positions);
            q = q.matmul(&turns)?;
            k = k.matmul(&turns)?;
            if config.use_qk_norm {
                q = rms_norm(&q, config.rms_norm_eps)?;
                k = rms_norm(&k, config.rms_norm_eps)?;
            }
        } else if let Some(t) = config.temperature {
            let factor = |&p: &u32| {
                1.0 + f64::from(t.attn_scale) * (1.0 + ((f64::from(p) + 1.0) / f64::from(t.floor_scale)).floor()).ln()
            };
            let factors: Vec<f64> = positions.iter().map(factor).collect();
            q = q.broadcast_mul(&Tensor::from_vec(factors, (positions.len(), 1, 1), &Device::Cpu)?)?;
        }
        // Query head i looks at key head i / group.
        let group = config.num_heads / config.num_kv_heads;
        let of_query: Vec<u32> = (0..config.num_heads).map(|head| (head / group) as u32).collect();
        let of_query = Tensor::new(of_query, &Device::Cpu)?;
        let [k, v] = [k, v].map(|kv| kv.index_select(&of_query, 1).unwrap());
        let [q, k, v] = [q, k, v].map(|qkv| qkv.transpose(0, 1).unwrap().contiguous().unwrap());
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (config.head_dim as f64).sqrt())?;
        let scores = scores.broadcast_add(&self.mask(layer, pass.batch)?)?;
        let context = softmax(&scores)?.matmul(&v)?.transpose(0, 1)?.contiguous()?;
        let context = context.reshape((x.dim(0)?, config.num_heads * config.head_dim))?;
        x + self.linear(&context, &o, (layer, Projection::O), pass)?
    }

    fn experts_forward(&self, layer: usize, pass: &Pass) -> Result<Tensor> {
        let config = &self.rig.config;
        let units = self.rig.units.layer(layer);
        let [norm, router, gate, up, down] = [0, 1, 2, 3, 4].map(|index| self.param(units.shared.0, index));
        let (gate_up, down_of_experts) = (self.param(units.gate_up.0, 0), self.param(units.down.0, 0));
        let x = self.x.as_tensor();
        let normed = rms_norm(x, config.rms_norm_eps)?.broadcast_mul(&norm)?;
        let linear = |x: &Tensor, weight: &Tensor, projection| self.linear(x, weight, (layer, projection), pass);
        let hidden =
            (linear(&normed, &gate, Projection::SharedGate)?.silu()? * linear(&normed, &up, Projection::SharedUp)?)?;
        let mut y = (x + linear(&hidden, &down, Projection::SharedDown)?)?;

        let logits = normed.matmul(&router.t()?)?;
        let chosen = match pass.routes {
            Some(routes) => routes[layer].u32s().unwrap().to_vec(),
            None => logits.detach().argmax(D::Minus1)?.to_vec1::<u32>()?,
        };
        for expert in 0..config.num_experts {
            let is_chosen: Vec<f64> = chosen.iter().map(|&c| f64::from(u8::from(c as usize == expert))).collect();
            let is_chosen = Tensor::from_vec(is_chosen, (chosen.len(), 1), &Device::Cpu)?;
            let score = (sigmoid(&logits.narrow(1, expert, 1)?)? * is_chosen)?;
            let score = if self.is_score_constant { score.detach() } else { score };
            let u = normed.broadcast_mul(&score)?;
            let wide = u.matmul(&self.stacked(&gate_up, expert, (layer, Projection::ExpertsGateUp))?)?;
            let [gate, up] =
                [0, 1].map(|half| wide.narrow(1, half * config.intermediate_size, config.intermediate_size).unwrap());
            let hidden = (gate.silu()? * up)?;
            let weight = self.stacked(&down_of_experts, expert, (layer, Projection::ExpertsDown))?;
            y = (y + hidden.matmul(&weight)?)?;
        }
        Ok(y)
    }

    fn head_forward(&self, batch: &Batch) -> Result<Tensor> {
        let unit = self.rig.units.head();
        let [norm, head] = [0, 1].map(|index| self.param(unit.0, index));
        let normed = rms_norm(self.x.as_tensor(), self.rig.config.rms_norm_eps)?.broadcast_mul(&norm)?;
        let logits = normed.matmul(&head.t()?)?;
        let largest = logits.max_keepdim(D::Minus1)?.detach();
        let log_sum = logits.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?.log()?;
        let surprise = logits.broadcast_sub(&(largest + log_sum)?)?.neg()?;
        // One-hot rows that carry the weight: everything unscored is multiplied with 0.
        let (num_tokens, vocab_size) = logits.dims2()?;
        let mut weights = vec![0.0; num_tokens * vocab_size];
        let (rows, tokens) = (batch.target_rows.u32s().unwrap(), batch.target_tokens.u32s().unwrap());
        let of_targets = batch.target_weights.f32s().unwrap();
        for ((&row, &token), &weight) in rows.iter().zip(tokens.iter()).zip(of_targets.iter()) {
            weights[row as usize * vocab_size + token as usize] += f64::from(weight);
        }
        (surprise * Tensor::from_vec(weights, (num_tokens, vocab_size), &Device::Cpu)?)?.sum_all()
    }

    /// `x·(W + c·B·A)ᵀ`; with dropout, which sees the adapter's input only, the two products stay apart.
    fn linear(&self, x: &Tensor, weight: &Tensor, place: (usize, Projection), pass: &Pass) -> Result<Tensor> {
        let Some(index) = self.rig.layout.find(place.0, place.1) else { return x.matmul(&weight.t()?) };
        let [a, b] = &self.factors[index];
        let scale = f64::from(self.rig.scale);
        match self.kept(x, place, pass) {
            None => x.matmul(&(weight + (b.matmul(a)? * scale)?)?.t()?),
            Some(kept) => x.matmul(&weight.t()?)? + ((x * kept)?.matmul(&a.t()?)?.matmul(&b.t()?)? * scale)?,
        }
    }

    /// Matrix `[in, out]` of one expert with its adapter merged in.
    fn stacked(&self, weight: &Tensor, expert: usize, place: (usize, Projection)) -> Result<Tensor> {
        let weight = weight.i(expert)?;
        let Some(index) = self.rig.layout.find(place.0, place.1) else { return Ok(weight) };
        let [a, b] = &self.factors[index];
        weight + (b.i(expert)?.matmul(&a.i(expert)?)? * f64::from(self.rig.scale))?
    }

    /// What dropout multiplies each element with, found by sending ones through it.
    fn kept(&self, x: &Tensor, (layer, projection): (usize, Projection), pass: &Pass) -> Option<Tensor> {
        let settings = pass.dropout?;
        let (num_tokens, width) = x.dims2().unwrap();
        let ones = scout_device::Tensor::from_f32(vec![1.0; num_tokens * width], [num_tokens, width]).unwrap();
        let module = (layer * Projection::ALL.len() + projection as usize) as u64;
        let key = DropoutKey { seed: settings.seed, step: settings.step, module };
        Some(double(&dropout(&ones, &pass.batch.token_keys, key, settings.probability).unwrap()))
    }

    /// One matrix for each token: `x·R` turns every adjacent pair by its own angle.
    fn rotations(&self, positions: &[u32]) -> Tensor {
        let size = self.rig.config.head_dim;
        let frequencies = rope::frequencies(&self.rig.config.rope, size);
        let mut turns = vec![0.0; positions.len() * size * size];
        for (token, &position) in positions.iter().enumerate() {
            for (pair, &frequency) in frequencies.iter().enumerate() {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                let mut set = |row: usize, column: usize, value: f64| {
                    turns[(token * size + 2 * pair + row) * size + 2 * pair + column] = value;
                };
                set(0, 0, cos);
                set(1, 0, -sin);
                set(0, 1, sin);
                set(1, 1, cos);
            }
        }
        Tensor::from_vec(turns, (positions.len(), size, size), &Device::Cpu).unwrap()
    }

    /// 0 where a token sees another, far below every score elsewhere.
    fn mask(&self, layer: usize, batch: &Batch) -> Result<Tensor> {
        let config = &self.rig.config;
        let positions = batch.positions.u32s().unwrap();
        let document =
            |token: usize| batch.documents.borders().iter().filter(|&&start| start as usize <= token).count();
        let chunk = |token: usize| positions[token] as usize / config.attention_chunk_size;
        let sees = |i: usize, j: usize| {
            j <= i && document(i) == document(j) && (!config.rope_layers[layer] || chunk(i) == chunk(j))
        };
        let num_tokens = positions.len();
        let cells = (0..num_tokens).flat_map(|i| (0..num_tokens).map(move |j| (i, j)));
        let cells: Vec<f64> = cells.map(|(i, j)| if sees(i, j) { 0.0 } else { -1e30 }).collect();
        Tensor::from_vec(cells, (1, num_tokens, num_tokens), &Device::Cpu)
    }

    fn param(&self, unit: usize, index: usize) -> Tensor {
        self.params[unit][index].as_tensor().clone()
    }
}

fn params_of(rig: &Rig, unit: usize) -> Vec<Var> {
    let flat = rig.weights[unit].f32s().unwrap();
    let mut rest = &flat[..];
    let mut params = Vec::new();
    for param in &rig.units.units()[unit].params {
        let (values, behind) = rest.split_at(param.num_elements());
        params.push(Var::from_tensor(&constant(values, param.shape.dims())).unwrap());
        rest = behind;
    }
    params
}

fn rms_norm(x: &Tensor, epsilon: f32) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?.sqrt()?)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let exponentials = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// Zeros for what the result does not depend on.
fn gradient_of(gradients: &GradStore, var: &Var) -> Vec<f64> {
    gradients.get(var).map_or_else(|| vec![0.0; var.elem_count()], vector)
}

fn constant(values: &[f32], dims: &[usize]) -> Tensor {
    Tensor::from_slice(values, dims, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

fn double(tensor: &scout_device::Tensor) -> Tensor {
    constant(&tensor.f32s().unwrap(), tensor.dims())
}

fn vector(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
