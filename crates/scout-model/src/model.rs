//! The model as a list of blocks between an embedding and a head.

use scout_core::UnitId;
use scout_device::{Device, Tensor, UnitSource};
use scout_kernels::qk_position::Position;

use crate::attention::{AttentionBlock, SavedAttention};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::experts::{ExpertsBlock, SavedExperts};
use crate::gradients::Gradients;
use crate::head::{Embedding, Head};
use crate::pass::{Pass, Trace};
use crate::rope;
use crate::units::UnitPlan;

#[derive(Debug)]
pub struct Model {
    pub embedding: Embedding,
    pub blocks: Vec<Block>,
    pub head: Head,
}

/// One step of the residual stream.
#[derive(Debug)]
pub enum Block {
    Attention(AttentionBlock),
    Experts(ExpertsBlock),
}

/// What a block kept for its backward pass.
#[derive(Debug)]
pub enum SavedBlock {
    Attention(SavedAttention),
    Experts(SavedExperts),
}

impl Model {
    pub fn new(config: &ModelConfig, units: &UnitPlan) -> Result<Model> {
        let mut blocks = Vec::with_capacity(2 * config.num_layers);
        for layer_index in 0..config.num_layers {
            let of_layer = units.layer(layer_index);
            blocks.push(Block::Attention(AttentionBlock {
                layer_index,
                unit: of_layer.attention,
                num_heads: config.num_heads,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
                rms_norm_eps: config.rms_norm_eps,
                position: position(config, layer_index)?,
                is_chunked: config.rope_layers[layer_index],
            }));
            blocks.push(Block::Experts(ExpertsBlock {
                layer_index,
                units: of_layer,
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                rms_norm_eps: config.rms_norm_eps,
            }));
        }
        Ok(Model {
            embedding: Embedding { unit: units.embedding(), vocab_size: config.vocab_size },
            blocks,
            head: Head { unit: units.head(), rms_norm_eps: config.rms_norm_eps },
        })
    }
}

impl Model {
    /// The constants that blocks compute with, where they are to compute. Weights come from elsewhere.
    pub fn to_device(mut self, device: &Device) -> Result<Model> {
        for block in &mut self.blocks {
            if let Block::Attention(AttentionBlock { position, .. }) = block {
                match position {
                    Position::RotateAndNormalise { frequencies, .. } | Position::Rotate { frequencies } => {
                        *frequencies = frequencies.to_device(device)?;
                    }
                    Position::Temperature { .. } | Position::Unchanged => {}
                }
            }
        }
        Ok(self)
    }
}

fn position(config: &ModelConfig, layer_index: usize) -> Result<Position> {
    if !config.rope_layers[layer_index] {
        return Ok(match config.temperature {
            Some(t) => Position::Temperature { attn_scale: t.attn_scale, floor_scale: t.floor_scale },
            None => Position::Unchanged,
        });
    }
    let frequencies = rope::frequencies(&config.rope, config.head_dim);
    let num_pairs = frequencies.len();
    let frequencies = Tensor::from_f32(frequencies, [num_pairs])?;
    Ok(match config.use_qk_norm {
        true => Position::RotateAndNormalise { frequencies, epsilon: config.rms_norm_eps },
        false => Position::Rotate { frequencies },
    })
}

impl Block {
    /// The block's units in the order in which its forward pass takes them.
    pub fn forward_units(&self) -> Vec<UnitId> {
        match self {
            Block::Attention(block) => vec![block.unit],
            Block::Experts(block) => block.forward_units().to_vec(),
        }
    }

    /// The block's units in the order in which its backward pass takes them.
    pub fn backward_units(&self) -> Vec<UnitId> {
        match self {
            Block::Attention(block) => vec![block.unit],
            Block::Experts(block) => block.backward_units().to_vec(),
        }
    }

    pub fn forward(
        &self,
        weights: &mut dyn UnitSource,
        x: Tensor,
        pass: &Pass,
        trace: &mut dyn Trace,
    ) -> Result<(Tensor, SavedBlock)> {
        match self {
            Block::Attention(block) => {
                let (y, saved) = block.forward(weights, x, pass, trace)?;
                Ok((y, SavedBlock::Attention(saved)))
            }
            Block::Experts(block) => {
                let (y, saved) = block.forward(weights, x, pass, trace)?;
                trace.record_layer(block.layer_index, "out", &y);
                Ok((y, SavedBlock::Experts(saved)))
            }
        }
    }

    pub fn backward(
        &self,
        weights: &mut dyn UnitSource,
        dy: Tensor,
        saved: SavedBlock,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        match (self, saved) {
            (Block::Attention(block), SavedBlock::Attention(saved)) => {
                block.backward(weights, dy, saved, pass, gradients)
            }
            (Block::Experts(block), SavedBlock::Experts(saved)) => block.backward(weights, dy, saved, pass, gradients),
            _ => unreachable!("a tape is taken back in the order in which it was laid"),
        }
    }

    /// The layer whose output this block's output is, if it closes a layer.
    pub fn closes_layer(&self) -> Option<usize> {
        match self {
            Block::Attention(_) => None,
            Block::Experts(block) => Some(block.layer_index),
        }
    }
}
