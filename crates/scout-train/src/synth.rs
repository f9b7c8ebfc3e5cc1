//! Synthetic model folders: random weights, a tokenizer and toy conversations in the Hub's layout. Every value is a pure
//! function of seed, tensor name and index, so any rank can make any part of any tensor without the rest.

use std::ops::Range;
use std::path::Path;

use scout_checkpoint::{CheckpointError, write_model};
use scout_core::{ByteCount, DType, ExitCode, ParamSpec};
use scout_data::{Tokenizer, alpaca_json, openai_jsonl, toy_conversations, toy_tokenizer_json};
use scout_kernels::noise;
use scout_model::config::{RopeBands, RopeConfig, Temperature};
use scout_model::{ModelConfig, NameStyle, UnitPlan};
use serde_json::{Value, json};

use crate::error::{Result, TrainError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthShape {
    /// 0.4 M parameters: tests and the demo.
    Tiny,
    /// About 100 M parameters: benchmarks on a host.
    Small,
    /// Llama 4 Scout.
    Scout,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SynthRequest {
    pub shape: SynthShape,
    pub num_layers: Option<usize>,
    pub dtype: DType,
    pub seed: u64,
}

/// Conversations in a synthetic data set.
const NUM_TOY_ROWS: usize = 96;
pub(crate) const MAX_SHARD_BYTES: ByteCount = ByteCount(5_000_000_000);

pub fn config(shape: SynthShape, num_layers: Option<usize>) -> ModelConfig {
    let base = ModelConfig::scout();
    let mut config = match shape {
        SynthShape::Scout => base,
        SynthShape::Tiny => ModelConfig {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 80,
            num_layers: 4,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            num_experts: 4,
            attention_chunk_size: 32,
            temperature: Some(Temperature { attn_scale: 0.1, floor_scale: 16.0 }),
            rope: rope_with_original_length(64.0),
            ..base
        },
        SynthShape::Small => ModelConfig {
            vocab_size: 8192,
            hidden_size: 512,
            intermediate_size: 1536,
            num_layers: 4,
            num_heads: 8,
            num_kv_heads: 2,
            head_dim: 64,
            num_experts: 8,
            attention_chunk_size: 1024,
            temperature: Some(Temperature { attn_scale: 0.1, floor_scale: 1024.0 }),
            rope: rope_with_original_length(1024.0),
            ..base
        },
    };
    config.num_layers = num_layers.unwrap_or(config.num_layers);
    config.rope_layers = (0..config.num_layers).map(|layer_index| (layer_index + 1) % 4 != 0).collect();
    config
}

fn rope_with_original_length(original_max_position: f64) -> RopeConfig {
    let bands = RopeBands { factor: 16.0, low_freq_factor: 1.0, high_freq_factor: 1.0, original_max_position };
    RopeConfig { theta: 500_000.0, bands: Some(bands) }
}

/// Writes a whole folder: `config.json`, weights, tokenizer, `data/` and a `scout-dist.yaml` that trains on them.
pub fn write_folder(folder: &Path, request: &SynthRequest) -> Result<()> {
    // Asked before anything is written: half of a new model over half of an old one would be neither.
    for file in ["model.safetensors.index.json", "model.safetensors", "config.json"] {
        if folder.join(file).exists() {
            return Err(CheckpointError::AlreadyThere { path: folder.to_path_buf(), file }.into());
        }
    }
    let config = config(request.shape, request.num_layers);
    let data = folder.join("data");
    std::fs::create_dir_all(&data).map_err(|cause| TrainError::Io {
        act: "create",
        path: data.display().to_string(),
        cause,
    })?;
    let conversations = toy_conversations(request.seed, NUM_TOY_ROWS);
    let texts: Vec<String> =
        conversations.iter().flat_map(|c| c.turns.iter().map(|turn| turn.content.clone())).collect();
    let tokenizer = toy_tokenizer_json(config.vocab_size, &texts)?;
    for (name, text) in [
        ("tokenizer.json", &tokenizer.tokenizer_json),
        ("tokenizer_config.json", &tokenizer.tokenizer_config_json),
        ("chat_template.jinja", &tokenizer.chat_template),
    ] {
        write(&folder.join(name), text)?;
    }
    write(&data.join("toy_alpaca.json"), &alpaca_json(&conversations))?;
    write(&data.join("toy_messages.jsonl"), &openai_jsonl(&conversations))?;
    let catalogue = json!({
        "toy_alpaca": { "file_name": "toy_alpaca.json" },
        "toy_messages": { "file_name": "toy_messages.jsonl", "formatting": "openai" },
    });
    write(&data.join("dataset_info.json"), &pretty(&catalogue))?;
    let special = Special::of(&Tokenizer::load(folder)?)?;
    write(&folder.join("config.json"), &pretty(&config_json(&config, &special, request.dtype)))?;
    let generation = json!({
        "_from_model_config": true, "bos_token_id": special.bos, "eos_token_id": special.eos,
        "pad_token_id": special.pad,
    });
    write(&folder.join("generation_config.json"), &pretty(&generation))?;
    write(&folder.join("scout-dist.yaml"), &starter(folder))?;
    let units = UnitPlan::new(&config, NameStyle::Text);
    let params = units.checkpoint_params(&config, NameStyle::Text);
    let seed = request.seed;
    write_model(folder, &params, request.dtype, MAX_SHARD_BYTES, &|param, range, out| {
        fill(seed, param, range, out);
        Ok(())
    })?;
    Ok(())
}

/// Elements `range` of a random tensor, the same on the host and on a GPU.
///
/// Small equal deviations would hide mistakes (flat attention, coin-flip routing, unit norms), so the scales keep
/// activations near 1, make routing decisive and give the norms weights of their own.
pub fn fill(seed: u64, param: &ParamSpec, range: Range<usize>, out: &mut [f32]) {
    let middle = if param.name.contains("norm") { 1.0 } else { 0.0 };
    let (stream, half_width) = (stream(seed, param), half_width(param));
    for (index, value) in range.zip(out) {
        *value = middle + half_width * noise::value_at(stream.of_piece(index / PIECE), index % PIECE);
    }
}

/// Elements that share a stream of noise: what a GPU makes at a time.
pub(crate) const PIECE: usize = 64 << 20;

/// What is wanted of one piece of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfPiece {
    pub piece: usize,
    /// Elements of the whole piece.
    pub piece_len: usize,
    /// The wanted ones, counted from where the piece begins.
    pub elements: Range<usize>,
}

/// Elements `range` of a tensor of `len`, at least one, piece by piece. A range may begin and end in the middle of a piece.
pub(crate) fn within_pieces(range: Range<usize>, len: usize) -> impl Iterator<Item = OfPiece> {
    let pieces = range.start / PIECE..range.end.div_ceil(PIECE);
    let of_piece = move |piece| {
        let begin = piece * PIECE;
        let elements = range.start.max(begin) - begin..range.end.min(begin + PIECE) - begin;
        OfPiece { piece, piece_len: PIECE.min(len - begin), elements }
    };
    pieces.map(of_piece)
}

/// Names the noise of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stream(u64);

impl Stream {
    /// The seed of one piece after the other.
    pub fn of_piece(self, index: usize) -> u64 {
        self.0.wrapping_add(index as u64)
    }
}

/// How far a random tensor spreads to both sides of its middle.
pub(crate) fn half_width(param: &ParamSpec) -> f32 {
    let (name, dims) = (param.name.as_str(), param.shape.dims());
    let is_stacked = name.contains(".experts.");
    let fan_in = if is_stacked { dims[1] } else { dims[dims.len() - 1] } as f32;
    let deviation = match name {
        _ if name.contains("norm") => 0.8 / 12f32.sqrt(),
        _ if name.contains("embed_tokens") => 0.7,
        _ if name.contains("router") => 2.0 / fan_in.sqrt(),
        _ => 1.2 / fan_in.sqrt(),
    };
    // Uniform values of the wanted deviation: half the width is the root of three times it.
    deviation * 3f32.sqrt()
}

/// A number of its own for each tensor.
pub(crate) fn stream(seed: u64, param: &ParamSpec) -> Stream {
    Stream(param.name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte))))
}

/// One round of splitmix64: every bit of the input changes every bit of the output with even odds.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Ids of the tokens a configuration names.
struct Special {
    bos: u32,
    eos: Vec<u32>,
    pad: u32,
}

impl Special {
    fn of(tokenizer: &Tokenizer) -> Result<Special> {
        let id = |name: &str| {
            tokenizer.special(name).ok_or_else(|| TrainError::Input {
                path: "tokenizer.json".to_string(),
                problem: format!("has no token {name}"),
                code: ExitCode::Internal,
            })
        };
        Ok(Special {
            bos: tokenizer.bos(),
            eos: vec![id("<|end_of_text|>")?, id("<|eom|>")?, id("<|eot|>")?],
            pad: id("<|finetune_right_pad|>")?,
        })
    }
}

fn config_json(config: &ModelConfig, special: &Special, dtype: DType) -> Value {
    let bands = config.rope.bands.expect("synthetic shapes have frequency bands");
    let temperature = config.temperature.expect("synthetic shapes have a temperature");
    let layer_type = |&rotates: &bool| if rotates { "chunked_attention" } else { "full_attention" };
    json!({
        "architectures": ["Llama4ForCausalLM"],
        "attention_bias": false,
        "attention_chunk_size": config.attention_chunk_size,
        "attention_dropout": 0.0,
        "attn_scale": f64::from(temperature.attn_scale * 10.0).round() / 10.0,
        "attn_temperature_tuning": true,
        "bos_token_id": special.bos,
        "dtype": if dtype == DType::BF16 { "bfloat16" } else { "float32" },
        "eos_token_id": special.eos,
        "floor_scale": temperature.floor_scale as u64,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "interleave_moe_layer_step": 1,
        "intermediate_size": config.intermediate_size,
        "intermediate_size_mlp": 2 * config.intermediate_size,
        "layer_types": config.rope_layers.iter().map(layer_type).collect::<Vec<_>>(),
        "max_position_embeddings": 4096.max(config.attention_chunk_size * 4),
        "model_type": "llama4_text",
        "moe_layers": (0..config.num_layers).collect::<Vec<_>>(),
        "no_rope_layers": config.rope_layers.iter().map(|&rotates| u8::from(rotates)).collect::<Vec<_>>(),
        "num_attention_heads": config.num_heads,
        "num_experts_per_tok": 1,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "num_local_experts": config.num_experts,
        "output_router_logits": false,
        "pad_token_id": special.pad,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "factor": bands.factor,
            "high_freq_factor": bands.high_freq_factor,
            "low_freq_factor": bands.low_freq_factor,
            "original_max_position_embeddings": bands.original_max_position as u64,
            "rope_theta": config.rope.theta,
            "rope_type": "llama3",
        },
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": false,
        "use_cache": true,
        "use_qk_norm": config.use_qk_norm,
        "vocab_size": config.vocab_size,
    })
}

/// A configuration that trains on what was just written; paths are those the folder was asked for with.
fn starter(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "### model\n\
         model_name_or_path: {folder}\n\n\
         ### method\n\
         stage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 16\nlora_target: all+experts\n\n\
         ### dataset\n\
         dataset: toy_messages\ndataset_dir: {folder}/data\ntemplate: llama4\ncutoff_len: 256\n\n\
         ### output\n\
         output_dir: {folder}/run\nlogging_steps: 5\nplot_loss: true\noverwrite_output_dir: true\n\n\
         ### train\n\
         per_device_train_batch_size: 8\ngradient_accumulation_steps: 1\nlearning_rate: 2.0e-2\n\
         num_train_epochs: 10.0\nlr_scheduler_type: cosine\nwarmup_ratio: 0.05\n"
    )
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value becomes text");
    text.push('\n');
    text
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|cause| TrainError::Io { act: "write", path: path.display().to_string(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_random_tensor_equals_that_part_of_the_whole() {
        let param = ParamSpec::new("model.layers.0.self_attn.q_proj.weight", [40, 25]);
        let mut whole = vec![0.0; 1000];
        fill(7, &param, 0..1000, &mut whole);
        let mut part = vec![0.0; 123];
        fill(7, &param, 456..579, &mut part);
        assert_eq!(part, whole[456..579]);
        let mean = whole.iter().sum::<f32>() / 1000.0;
        let variance = whole.iter().map(|v| v * v).sum::<f32>() / 1000.0;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((variance.sqrt() / (1.2 / 5.0) - 1.0).abs() < 0.1, "{variance}");
        fill(8, &param, 0..123, &mut part);
        assert_ne!(part, whole[..123]);
    }

    #[test]
    fn parts_of_pieces_put_together_are_the_range_that_was_wanted() {
        let len = 3 * PIECE + 7;
        for range in [0..len, 0..1, 5..PIECE, PIECE - 1..PIECE + 1, PIECE..2 * PIECE, 2 * PIECE + 3..len] {
            let mut next = range.start;
            for part in within_pieces(range.clone(), len) {
                assert_eq!(part.piece_len, if part.piece == 3 { 7 } else { PIECE });
                assert_eq!(part.piece * PIECE + part.elements.start, next, "{range:?}");
                assert!(!part.elements.is_empty() && part.elements.end <= part.piece_len, "{range:?}: {part:?}");
                next += part.elements.len();
            }
            assert_eq!(next, range.end, "{range:?}");
        }
    }

    #[test]
    fn shapes_have_the_sizes_their_names_promise() {
        assert_eq!(config(SynthShape::Scout, None), ModelConfig::scout());
        let small = config(SynthShape::Small, None).num_params();
        assert!((80_000_000..120_000_000).contains(&small), "{small}");
        assert!(config(SynthShape::Tiny, None).num_params() < 1_000_000);
        assert_eq!(config(SynthShape::Scout, Some(12)).rope_layers.len(), 12);
    }
}
