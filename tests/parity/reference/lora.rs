//! Adapters the obvious way: the product of the factors is added to the matrix, and the factors' gradients follow from
//! the matrix's own.

use scout_checkpoint::LoadedAdapter;
use scout_core::LoraModule;

use super::{Gradients, Reference, add_scaled};

/// Factors A and B of every module, each as it lies in [`LoadedAdapter::factors`].
pub type Factors = Vec<(Vec<f64>, Vec<f64>)>;

/// `W + scale · I · O`: of the two factors one faces the input of the matrix and the other its output.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub modules: Vec<LoraModule>,
    pub factors: Factors,
    scale: f64,
}

impl Adapter {
    pub fn new(loaded: &LoadedAdapter) -> Adapter {
        assert!(!loaded.settings.use_rslora, "the recorded adapters scale by alpha / rank");
        let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect();
        Adapter {
            modules: loaded.modules.clone(),
            factors: loaded.factors.iter().map(|(a, b)| (wide(a), wide(b))).collect(),
            scale: loaded.settings.alpha / loaded.settings.rank as f64,
        }
    }

    /// The adapter that lies `distance` further along a direction.
    pub fn moved(&self, direction: &Factors, distance: f64) -> Adapter {
        let mut moved = self.clone();
        for ((a, b), (da, db)) in moved.factors.iter_mut().zip(direction) {
            add_scaled(a, distance, da);
            add_scaled(b, distance, db);
        }
        moved
    }

    /// The model with this adapter in its matrices.
    pub fn merged_into(&self, base: &Reference) -> Reference {
        let mut merged = base.clone();
        for (module, (a, b)) in self.modules.iter().zip(&self.factors) {
            let (inputs, outputs) = by_side(module, a, b);
            let layer = &mut merged.layers[module.layer_index];
            let matrices = layer.projections.get_mut(&module.projection).expect("every projection has matrices");
            for (expert, matrix) in matrices.iter_mut().enumerate() {
                for i in 0..module.input {
                    for o in 0..module.output {
                        let product =
                            |k| inputs[input_at(module, expert, i, k)] * outputs[output_at(module, expert, k, o)];
                        matrix.values[i * module.output + o] += self.scale * (0..module.rank).map(product).sum::<f64>();
                    }
                }
            }
        }
        merged
    }

    /// The factors' gradients: `dI = scale · dW · Oᵀ` and `dO = scale · Iᵀ · dW`.
    pub fn gradients(&self, gradients: &Gradients) -> Factors {
        let mut of_factors = self.factors.clone();
        for ((module, (a, b)), (da, db)) in self.modules.iter().zip(&self.factors).zip(&mut of_factors) {
            let (inputs, outputs) = by_side(module, a, b);
            let (d_inputs, d_outputs) = by_side(module, da, db);
            d_inputs.fill(0.0);
            d_outputs.fill(0.0);
            for (expert, dw) in gradients.projections[module.layer_index][&module.projection].iter().enumerate() {
                for i in 0..module.input {
                    for (o, dw) in dw.row(i).iter().enumerate() {
                        for k in 0..module.rank {
                            let (input, output) = (input_at(module, expert, i, k), output_at(module, expert, k, o));
                            d_inputs[input] += self.scale * dw * outputs[output];
                            d_outputs[output] += self.scale * dw * inputs[input];
                        }
                    }
                }
            }
        }
        of_factors
    }
}

/// Length of all factors taken together.
pub fn norm(factors: &Factors) -> f64 {
    factors.iter().flat_map(|(a, b)| a.iter().chain(b)).map(|value| value * value).sum::<f64>().sqrt()
}

/// (Input side, output side): in linear layers factor A faces the input, in stacked experts factor B does.
fn by_side<V>(module: &LoraModule, a: V, b: V) -> (V, V) {
    if module.num_experts.is_some() { (b, a) } else { (a, b) }
}

/// Where `I[i, k]` lies: linear layers hold it as `[rank, input]`, experts as `[expert, input, rank]`.
fn input_at(module: &LoraModule, expert: usize, i: usize, k: usize) -> usize {
    match module.num_experts {
        None => k * module.input + i,
        Some(_) => (expert * module.input + i) * module.rank + k,
    }
}

/// Where `O[k, o]` lies: linear layers hold it as `[output, rank]`, experts as `[expert, rank, output]`.
fn output_at(module: &LoraModule, expert: usize, k: usize, o: usize) -> usize {
    match module.num_experts {
        None => o * module.rank + k,
        Some(_) => (expert * module.rank + k) * module.output + o,
    }
}
