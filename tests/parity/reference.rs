//! The text model once more, in plain f64 loops over one document at a time: slow, obvious, and sharing nothing with the
//! program but the reading of files. It can be told to make one well-known mistake; it is never told to be fast.

pub mod as_recorded;
mod backward;
mod forward;
pub mod lora;
pub mod mistake;

use std::collections::BTreeMap;
use std::path::Path;

use scout_checkpoint::{ModelFolder, TensorFile};
use scout_core::Projection;
use scout_model::ModelConfig;

pub use backward::Gradients;
pub use forward::Pass;
pub use lora::Adapter;
pub use mistake::Mistake;

/// One vector for each token.
pub type Rows = Vec<Vec<f64>>;

/// A matrix as it is multiplied: `[input, output]`, row-major.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub input: usize,
    pub output: usize,
    pub values: Vec<f64>,
}

/// The matrices of a layer that adapters can change: one each, or one for each routed expert.
pub type Projections = BTreeMap<Projection, Vec<Matrix>>;

#[derive(Debug, Clone)]
pub struct Layer {
    pub input_norm: Vec<f64>,
    pub post_norm: Vec<f64>,
    pub router: Matrix,
    pub projections: Projections,
}

#[derive(Debug, Clone)]
pub struct Reference {
    pub config: ModelConfig,
    /// One vector for each token of the vocabulary.
    pub embedding: Rows,
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f64>,
    pub head: Matrix,
}

impl Matrix {
    pub fn zeros_like(other: &Matrix) -> Matrix {
        Matrix { values: vec![0.0; other.values.len()], ..other.clone() }
    }

    /// From `[output, input]`, the way linear layers are stored.
    pub fn from_transposed(stored: &[f64], output: usize) -> Matrix {
        let input = stored.len() / output;
        let values = (0..input * output).map(|index| stored[index % output * input + index / output]).collect();
        Matrix { input, output, values }
    }

    pub fn row(&self, input_index: usize) -> &[f64] {
        &self.values[input_index * self.output..][..self.output]
    }

    /// `x · W`
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; self.output];
        for (input_index, &value) in x.iter().enumerate() {
            add_scaled(&mut y, value, self.row(input_index));
        }
        y
    }

    /// `dy · Wᵀ`
    pub fn apply_transposed(&self, dy: &[f64]) -> Vec<f64> {
        (0..self.input).map(|input_index| dot(self.row(input_index), dy)).collect()
    }

    /// Adds `xᵀ · dy`: what one token contributes to the gradient of this matrix.
    pub fn add_outer(&mut self, x: &[f64], dy: &[f64]) {
        for (row, &value) in self.values.chunks_mut(self.output).zip(x) {
            add_scaled(row, value, dy);
        }
    }
}

impl Layer {
    pub fn matrix(&self, projection: Projection) -> &Matrix {
        &self.projections[&projection][0]
    }

    pub fn expert(&self, projection: Projection, expert: usize) -> &Matrix {
        &self.projections[&projection][expert]
    }
}

impl Reference {
    /// Reads a folder of the text class.
    pub fn read(folder: &Path) -> Reference {
        let config = ModelConfig::read(&folder.join("config.json")).unwrap();
        let files = ModelFolder::open(folder).unwrap();
        let hidden = config.hidden_size;
        let layers = (0..config.num_layers).map(|index| read_layer(&files, &config, index)).collect();
        let embedding = read_values(&files, "model.embed_tokens.weight");
        Reference {
            embedding: embedding.chunks(hidden).map(<[f64]>::to_vec).collect(),
            layers,
            final_norm: read_values(&files, "model.norm.weight"),
            head: Matrix::from_transposed(&read_values(&files, "lm_head.weight"), config.vocab_size),
            config,
        }
    }
}

fn read_layer(files: &ModelFolder, config: &ModelConfig, layer_index: usize) -> Layer {
    let read = |name: &str| read_values(files, &format!("model.layers.{layer_index}.{name}"));
    let (hidden, width) = (config.hidden_size, config.intermediate_size);
    let (q_width, kv_width) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let matrices = |projection: Projection| match projection {
        // Routed experts are stored `[expert, input, output]`, and without the ending of linear layers.
        Projection::ExpertsGateUp => by_expert(&read(projection.path_in_layer()), hidden, 2 * width),
        Projection::ExpertsDown => by_expert(&read(projection.path_in_layer()), width, hidden),
        linear => {
            let output = match linear {
                Projection::Q => q_width,
                Projection::K | Projection::V => kv_width,
                Projection::SharedGate | Projection::SharedUp => width,
                _ => hidden,
            };
            vec![Matrix::from_transposed(&read(&format!("{}.weight", linear.path_in_layer())), output)]
        }
    };
    Layer {
        input_norm: read("input_layernorm.weight"),
        post_norm: read("post_attention_layernorm.weight"),
        router: Matrix::from_transposed(&read("feed_forward.router.weight"), config.num_experts),
        projections: Projection::ALL.into_iter().map(|projection| (projection, matrices(projection))).collect(),
    }
}

fn by_expert(stack: &[f64], input: usize, output: usize) -> Vec<Matrix> {
    stack.chunks(input * output).map(|values| Matrix { input, output, values: values.to_vec() }).collect()
}

fn read_values(files: &ModelFolder, name: &str) -> Vec<f64> {
    let num_elements = files.shape(name).unwrap().num_elements();
    let mut values = vec![0.0; num_elements];
    files.read_f32(name, 0..num_elements, &mut values).unwrap();
    values.into_iter().map(f64::from).collect()
}

/// The rows of a padded batch without their padding.
#[derive(Debug, Clone)]
pub struct Batch {
    pub rows: Vec<Document>,
    pub padded_len: usize,
}

#[derive(Debug, Clone)]
pub struct Document {
    pub ids: Vec<usize>,
    pub labels: Vec<i64>,
}

impl Batch {
    /// The probe batch of `expected.safetensors`.
    pub fn read(path: &Path) -> Batch {
        let file = TensorFile::open(path).unwrap();
        let [ids, labels, mask] = ["input_ids", "labels", "attention_mask"].map(|name| file.read_i64(name).unwrap().1);
        let padded_len = file.entry("input_ids").unwrap().shape.dims()[1];
        let padded = ids.chunks(padded_len).zip(labels.chunks(padded_len)).zip(mask.chunks(padded_len));
        let rows = padded.map(|((ids, labels), mask)| {
            let length = mask.iter().sum::<i64>() as usize;
            let ids = ids[..length].iter().map(|&id| id as usize).collect();
            Document { ids, labels: labels[..length].to_vec() }
        });
        Batch { rows: rows.collect(), padded_len }
    }

    pub fn num_targets(&self) -> usize {
        self.rows.iter().map(|row| row.targets().count()).sum()
    }
}

impl Document {
    /// Positions that are scored, with the token that each predicts: the label one place further on.
    pub fn targets(&self) -> impl Iterator<Item = (usize, usize)> {
        self.labels.iter().enumerate().skip(1).filter(|(_, label)| **label != -100).map(|(t, &l)| (t - 1, l as usize))
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub fn add_scaled(to: &mut [f64], scale: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += scale * from;
    }
}

pub fn sum(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}
