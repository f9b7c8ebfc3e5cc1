//! A checkpoint's `config.json`, in every spelling that is around: nested as on the Hub or flat, `rope_scaling` beside
//! `rope_theta` or one `rope_parameters`, layer lists written out or left to the rules. Nothing falls back to defaults
//! that a real checkpoint must state.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{ModelError, Result};

/// Of a message about one key.
const MAX_PROBLEM_CHARS: usize = 200;

/// The numbers of the text model, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Width of one routed expert and of the shared expert.
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub num_experts: usize,
    pub rms_norm_eps: f32,
    pub use_qk_norm: bool,
    /// One entry a layer: true where positions are rotated into q and k.
    pub rope_layers: Vec<bool>,
    pub attention_chunk_size: usize,
    /// `None` when temperature tuning is off.
    pub temperature: Option<Temperature>,
    pub rope: RopeConfig,
    pub vision: Option<VisionConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    pub attn_scale: f32,
    pub floor_scale: f32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// `None` for plain frequencies.
    pub bands: Option<RopeBands>,
}

/// The frequency bands of rope type `llama3`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeBands {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position: f64,
}

/// The picture tower, as far as its tensors' shapes need it.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub num_layers: usize,
    pub intermediate_size: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub pixel_shuffle_ratio: f64,
    pub projector_input_dim: usize,
    pub projector_output_dim: usize,
    pub vision_output_dim: usize,
}

impl ModelConfig {
    /// Reads `config.json` (or any file of that form).
    pub fn read(path: &Path) -> Result<ModelConfig> {
        let text =
            std::fs::read_to_string(path).map_err(|cause| ModelError::Read { path: path.to_path_buf(), cause })?;
        ModelConfig::parse(path, &text)
    }

    /// `path` only names the source in errors.
    pub fn parse(path: &Path, text: &str) -> Result<ModelConfig> {
        let value: Value =
            serde_json::from_str(text).map_err(|cause| ModelError::Json { path: path.to_path_buf(), cause })?;
        let top = Fields::new(path, "", &value)?;
        let text = match top.get("text_config") {
            Some(nested) => Fields::new(path, "text_config.", nested)?,
            None => Fields::new(path, "", &value)?,
        };
        text.expect_model_type()?;
        for of in [&top, &text] {
            if of.get("quantization_config").is_some() {
                let problem =
                    "says that weights are quantized, which is not built: give the checkpoint in bf16".to_string();
                return Err(of.wrong("quantization_config", problem));
            }
        }
        let vision = top.get("vision_config").map(|v| vision_config(&Fields::new(path, "vision_config.", v)?));
        let config = text_config(&text, vision.transpose()?)?;
        config.check(&text)?;
        Ok(config)
    }

    /// Scout's own numbers, for planning and synthesis without a checkpoint.
    pub fn scout() -> ModelConfig {
        let num_layers = 48;
        ModelConfig {
            vocab_size: 202_048,
            hidden_size: 5120,
            intermediate_size: 8192,
            num_layers,
            num_heads: 40,
            num_kv_heads: 8,
            head_dim: 128,
            num_experts: 16,
            rms_norm_eps: 1e-5,
            use_qk_norm: true,
            rope_layers: rope_layers_by_interval(num_layers, 4),
            attention_chunk_size: 8192,
            temperature: Some(Temperature { attn_scale: 0.1, floor_scale: 8192.0 }),
            rope: RopeConfig {
                theta: 500_000.0,
                bands: Some(RopeBands {
                    factor: 16.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 1.0,
                    original_max_position: 8192.0,
                }),
            },
            vision: None,
        }
    }

    /// What is allowed and still most likely wrong: the frequency bands of launch day, which Meta corrected within a
    /// week and which live on in old copies of the file.
    pub fn warning(&self) -> Option<String> {
        let bands = self.rope.bands?;
        let is_launch_day = bands.factor == 8.0 && bands.high_freq_factor == 4.0;
        is_launch_day.then(|| {
            "`rope_scaling` says factor 8 and high_freq_factor 4, the numbers of launch day; Meta's corrected file says 16 and 1"
                .to_string()
        })
    }

    pub fn num_params(&self) -> u64 {
        self.num_params_of_any_size() as u64
    }

    /// In 128 bits, which hold the product of any counts that a file may name.
    fn num_params_of_any_size(&self) -> u128 {
        let [vocab, hidden, width, experts] =
            [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_experts].map(|n| n as u128);
        let heads = 2 * (self.num_heads + self.num_kv_heads) as u128;
        let attention = heads * self.head_dim as u128 * hidden;
        let layer = attention + (experts + 1) * 3 * hidden * width + experts * hidden + 2 * hidden;
        self.num_layers as u128 * layer + 2 * vocab * hidden + hidden
    }

    /// Parameters that a token is multiplied with: one expert instead of all, the head, no embedding, no norms.
    pub fn num_active_matmul_params(&self) -> u64 {
        let [vocab, hidden, width, experts] =
            [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_experts].map(|n| n as u64);
        self.num_layers as u64 * (self.attention_params() + 2 * 3 * hidden * width + experts * hidden) + vocab * hidden
    }

    fn attention_params(&self) -> u64 {
        let heads = (2 * self.num_heads + 2 * self.num_kv_heads) as u64;
        heads * self.head_dim as u64 * self.hidden_size as u64
    }

    /// Numbers that other numbers forbid.
    fn check(&self, text: &Fields) -> Result<()> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let problem = format!("is {}, which does not divide the {} heads", self.num_kv_heads, self.num_heads);
            return Err(text.wrong("num_key_value_heads", problem));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(text.wrong("head_dim", format!("is {}, expected an even number", self.head_dim)));
        }
        if !self.rms_norm_eps.is_finite() || self.rms_norm_eps <= 0.0 {
            return Err(text.wrong("rms_norm_eps", format!("is {}, expected a number above 0", self.rms_norm_eps)));
        }
        if self.num_params_of_any_size() > MAX_PARAMS {
            let problem =
                format!("is {}, which with the other sizes makes more than 2^48 parameters", self.hidden_size);
            return Err(text.wrong("hidden_size", problem));
        }
        Ok(())
    }
}

/// Beyond any model that exists; larger counts are mistakes, and overflow or fill the memory further on.
const MAX_PARAMS: u128 = 1 << 48;
const MAX_LAYERS: usize = 4096;

fn rope_layers_by_interval(num_layers: usize, interval: usize) -> Vec<bool> {
    (0..num_layers).map(|layer_index| !(layer_index + 1).is_multiple_of(interval)).collect()
}

fn text_config(text: &Fields, vision: Option<VisionConfig>) -> Result<ModelConfig> {
    let num_layers = text.layers()?;
    let num_heads = text.count("num_attention_heads")?;
    let hidden_size = text.count("hidden_size")?;
    text.expect("hidden_act", "silu")?;
    text.expect_false("attention_bias")?;
    if let Some(dropout) = text.optional_number("attention_dropout")?.filter(|dropout| *dropout != 0.0) {
        return Err(text.wrong("attention_dropout", format!("is {dropout}, only 0 is built")));
    }
    text.expect_false("tie_word_embeddings")?;
    let experts_per_token = text.count("num_experts_per_tok")?;
    if experts_per_token != 1 {
        return Err(text.wrong("num_experts_per_tok", format!("is {experts_per_token}, only 1 is built")));
    }
    expect_experts_in_every_layer(text, num_layers)?;
    Ok(ModelConfig {
        vocab_size: text.count("vocab_size")?,
        hidden_size,
        intermediate_size: text.count("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads: text.optional_count("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim: text.optional_count("head_dim")?.unwrap_or(hidden_size / num_heads),
        num_experts: text.count("num_local_experts")?,
        rms_norm_eps: text.number("rms_norm_eps")? as f32,
        use_qk_norm: text.flag("use_qk_norm")?,
        rope_layers: rope_layers(text, num_layers)?,
        attention_chunk_size: text.count("attention_chunk_size")?,
        temperature: temperature(text)?,
        rope: rope_config(text)?,
        vision,
    })
}

/// Which layers rotate: as `no_rope_layers` says (where 1 means "rotates") or `layer_types`, which must say the same, else by the
/// interval.
fn rope_layers(text: &Fields, num_layers: usize) -> Result<Vec<bool>> {
    let of_kind = |kind: &Value| match kind.as_str() {
        Some("chunked_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(format!("holds {kind}, expected \"chunked_attention\" or \"full_attention\"")),
    };
    let of_entry = |entry: &Value| match entry.as_u64() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(format!("holds {entry}, expected 0 or 1")),
    };
    let by_kind = one_of_each_layer(text, "layer_types", num_layers, of_kind)?;
    let written = match text.list("no_rope_layers")? {
        Some(entries) if entries.is_empty() => None,
        _ => one_of_each_layer(text, "no_rope_layers", num_layers, of_entry)?,
    };
    match (by_kind, written) {
        (Some(by_kind), Some(written)) if by_kind != written => {
            // The reference would rotate by one list and cut into chunks by the other.
            let problem = "says of other layers than `no_rope_layers` that they rotate, which is not built".to_string();
            Err(text.wrong("layer_types", problem))
        }
        (Some(layers), _) | (None, Some(layers)) => Ok(layers),
        (None, None) => {
            let interval = text.optional_count("no_rope_layer_interval")?.unwrap_or(4);
            Ok(rope_layers_by_interval(num_layers, interval))
        }
    }
}

/// What the list `key` says of each layer, where it is there.
fn one_of_each_layer(
    text: &Fields,
    key: &str,
    num_layers: usize,
    of_one: impl Fn(&Value) -> std::result::Result<bool, String>,
) -> Result<Option<Vec<bool>>> {
    let Some(entries) = text.list(key)? else { return Ok(None) };
    if entries.len() != num_layers {
        let problem = format!("has {} entries, expected one for each of the {num_layers} layers", entries.len());
        return Err(text.wrong(key, problem));
    }
    let layers = entries.iter().map(|entry| of_one(entry).map_err(|problem| text.wrong(key, problem)));
    layers.collect::<Result<_>>().map(Some)
}

fn expect_experts_in_every_layer(text: &Fields, num_layers: usize) -> Result<()> {
    if let Some(layers) = text.list("moe_layers")? {
        let all = layers.iter().map(Value::as_u64).eq((0..num_layers as u64).map(Some));
        if !all {
            return Err(text.wrong("moe_layers", "leaves layers without experts, which are not built".to_string()));
        }
        return Ok(());
    }
    match text.optional_count("interleave_moe_layer_step")?.unwrap_or(1) {
        1 => Ok(()),
        step => {
            Err(text.wrong("interleave_moe_layer_step", format!("is {step}; layers without experts are not built")))
        }
    }
}

/// Older copies of Scout's file say `4` where `true` is meant: any number but 0 switches the tuning on.
fn temperature(text: &Fields) -> Result<Option<Temperature>> {
    let on = match text.get("attn_temperature_tuning") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(on)) => *on,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(other) => return Err(text.wrong("attn_temperature_tuning", format!("is {other}, expected true or false"))),
    };
    let floor_scale = text.optional_number("floor_scale")?.unwrap_or(8192.0) as f32;
    let attn_scale = text.optional_number("attn_scale")?.unwrap_or(0.1) as f32;
    if floor_scale.is_nan() || floor_scale <= 0.0 {
        return Err(text.wrong("floor_scale", format!("is {floor_scale}, expected a number above 0")));
    }
    Ok(on.then_some(Temperature { attn_scale, floor_scale }))
}

fn rope_config(text: &Fields) -> Result<RopeConfig> {
    let (place, theta) = match (text.get("rope_parameters"), text.get("rope_scaling")) {
        (Some(value @ Value::Object(_)), _) => {
            let place = text.nested("rope_parameters", value)?;
            let theta = place.positive("rope_theta")?;
            (Some(place), theta)
        }
        (_, Some(value @ Value::Object(_))) => {
            (Some(text.nested("rope_scaling", value)?), text.positive("rope_theta")?)
        }
        _ => (None, text.positive("rope_theta")?),
    };
    let Some(place) = place else {
        return Ok(RopeConfig { theta, bands: None });
    };
    match place.text("rope_type")? {
        "default" => Ok(RopeConfig { theta, bands: None }),
        "llama3" => {
            let bands = RopeBands {
                factor: place.positive("factor")?,
                low_freq_factor: place.positive("low_freq_factor")?,
                high_freq_factor: place.positive("high_freq_factor")?,
                original_max_position: place.positive("original_max_position_embeddings")?,
            };
            if bands.high_freq_factor < bands.low_freq_factor {
                let (high, low) = (bands.high_freq_factor, bands.low_freq_factor);
                return Err(place.wrong("high_freq_factor", format!("is {high}, below `low_freq_factor` {low}")));
            }
            Ok(RopeConfig { theta, bands: Some(bands) })
        }
        other => Err(place.wrong("rope_type", format!("is \"{other}\", expected \"llama3\" or \"default\""))),
    }
}

fn vision_config(vision: &Fields) -> Result<VisionConfig> {
    let config = VisionConfig {
        hidden_size: vision.count("hidden_size")?,
        num_layers: vision.layers()?,
        intermediate_size: vision.count("intermediate_size")?,
        num_channels: vision.count("num_channels")?,
        image_size: vision.count("image_size")?,
        patch_size: vision.count("patch_size")?,
        pixel_shuffle_ratio: vision.positive("pixel_shuffle_ratio")?,
        projector_input_dim: vision.count("projector_input_dim")?,
        projector_output_dim: vision.count("projector_output_dim")?,
        vision_output_dim: vision.count("vision_output_dim")?,
    };
    if config.patch_size > config.image_size {
        let problem = format!("is {}, larger than a picture's {}", config.patch_size, config.image_size);
        return Err(vision.wrong("patch_size", problem));
    }
    let patch = (config.num_channels as u128) * (config.patch_size as u128).pow(2);
    let num_patches = ((config.image_size / config.patch_size) as u128).pow(2);
    if patch.max(num_patches) * config.hidden_size as u128 > MAX_PARAMS {
        let problem = format!("is {}, too large or too small for the other sizes", config.patch_size);
        return Err(vision.wrong("patch_size", problem));
    }
    Ok(config)
}

/// A JSON object with the way to it, so that every complaint names file and key.
struct Fields<'a> {
    path: PathBuf,
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(path: &Path, prefix: &str, value: &'a Value) -> Result<Fields<'a>> {
        let object = value.as_object().ok_or_else(|| ModelError::Config {
            path: path.to_path_buf(),
            key: prefix.trim_end_matches('.').to_string(),
            problem: "is not a JSON object".to_string(),
        })?;
        Ok(Fields { path: path.to_path_buf(), prefix: prefix.to_string(), object })
    }

    fn nested(&self, key: &str, value: &'a Value) -> Result<Fields<'a>> {
        Fields::new(&self.path, &format!("{}{key}.", self.prefix), value)
    }

    fn wrong(&self, key: &str, problem: String) -> ModelError {
        // The problem quotes the file, and no file may break our line in two, speak to the terminal or flood it.
        let shown = problem.chars().take(MAX_PROBLEM_CHARS);
        let problem = shown.flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
        ModelError::Config { path: self.path.clone(), key: format!("{}{key}", self.prefix), problem }
    }

    /// The value of `key`; a JSON null counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn need(&self, key: &str) -> Result<&'a Value> {
        self.get(key).ok_or_else(|| self.wrong(key, "is missing".to_string()))
    }

    fn number(&self, key: &str) -> Result<f64> {
        let value = self.need(key)?;
        value.as_f64().ok_or_else(|| self.wrong(key, format!("is {value}, expected a number")))
    }

    fn positive(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            number if number > 0.0 => Ok(number),
            other => Err(self.wrong(key, format!("is {other}, expected a number above 0"))),
        }
    }

    fn layers(&self) -> Result<usize> {
        match self.count("num_hidden_layers")? {
            count if count <= MAX_LAYERS => Ok(count),
            other => Err(self.wrong("num_hidden_layers", format!("is {other}, expected at most {MAX_LAYERS}"))),
        }
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|_| self.number(key)).transpose()
    }

    /// A whole number from 1 to 2^31: larger ones cannot be meant and would overflow further on.
    fn count(&self, key: &str) -> Result<usize> {
        let value = self.need(key)?;
        match value.as_u64() {
            Some(count) if (1..=1 << 31).contains(&count) => Ok(count as usize),
            _ => Err(self.wrong(key, format!("is {value}, expected a whole number above 0"))),
        }
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|_| self.count(key)).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        let value = self.need(key)?;
        value.as_bool().ok_or_else(|| self.wrong(key, format!("is {value}, expected true or false")))
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        let value = self.need(key)?;
        value.as_str().ok_or_else(|| self.wrong(key, format!("is {value}, expected a string")))
    }

    fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(entries)) => Ok(Some(entries)),
            Some(other) => Err(self.wrong(key, format!("is {other}, expected a list"))),
        }
    }

    /// Fails when `key` is there and is not `expected`.
    fn expect(&self, key: &str, expected: &str) -> Result<()> {
        match self.get(key) {
            Some(value) if value.as_str() != Some(expected) => {
                Err(self.wrong(key, format!("is {value}, only \"{expected}\" is built")))
            }
            _ => Ok(()),
        }
    }

    fn expect_false(&self, key: &str) -> Result<()> {
        match self.get(key) {
            Some(value) if value.as_bool() != Some(false) => {
                Err(self.wrong(key, format!("is {value}, only false is built")))
            }
            _ => Ok(()),
        }
    }

    fn expect_model_type(&self) -> Result<()> {
        match self.get("model_type").and_then(Value::as_str) {
            Some("llama4_text") => Ok(()),
            Some(other) => {
                Err(self.wrong("model_type", format!("is \"{other}\", expected \"llama4_text\" or \"llama4\"")))
            }
            None => Err(self.wrong("model_type", "is missing".to_string())),
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
