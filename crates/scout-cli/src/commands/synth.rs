//! `synth`: a model folder made of random weights, a tokenizer and toy conversations.

use std::path::PathBuf;

use scout_core::{DType, ExitCode};
use scout_train::synth::{SynthRequest, SynthShape, write_folder};

use crate::surroundings::print;

#[derive(clap::Args)]
pub struct Arguments {
    /// Size of the model
    #[arg(long, value_enum)]
    shape: Shape,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of layers, where it should differ from the shape's own
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    layers: Option<u16>,
    /// Element type of the weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Element,
    /// Everything random follows from this number
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Shape {
    Tiny,
    Small,
    Scout,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Element {
    F32,
    Bf16,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let request = SynthRequest {
        shape: match arguments.shape {
            Shape::Tiny => SynthShape::Tiny,
            Shape::Small => SynthShape::Small,
            Shape::Scout => SynthShape::Scout,
        },
        num_layers: arguments.layers.map(usize::from),
        dtype: match arguments.dtype {
            Element::F32 => DType::F32,
            Element::Bf16 => DType::BF16,
        },
        seed: arguments.seed,
    };
    write_folder(&arguments.out, &request)?;
    print(&format!("wrote {}", arguments.out.display()))?;
    print(&format!("train on it: scout-dist train {}", arguments.out.join("scout-dist.yaml").display()))?;
    Ok(ExitCode::Success)
}
