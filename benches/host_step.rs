//! The host step on `synth --shape small` beside candle's bare matrix products of the same shapes, in one run and in
//! turn, so that whatever else the machine does slows both. Prints a table and writes nothing unless `--json FILE` is given.

use std::error::Error;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use scout_benches::{Request, Spread, batch, commit};
use scout_comm::Job;
use scout_config::RunConfig;
use scout_core::DType;
use scout_model::{Batch, ModelConfig, NoTrace};
use scout_train::assemble::build;
use scout_train::plan::useful_flops;
use scout_train::prepare::prepare;
use scout_train::synth::{SynthRequest, SynthShape, write_folder};
use scout_train::{Seated, Trainer};
use serde_json::json;

const NUM_DOCUMENTS: usize = 8;
const DOCUMENT_LEN: usize = 256;
const ROUNDS: usize = 7;
const LORA_RANK: usize = 8;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let request = Request::read();
    if !request.wants("host_step") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let (trainer, config) = small_trainer(folder.path())?;
    let batch = batch(NUM_DOCUMENTS, DOCUMENT_LEN, config.attention_chunk_size)?;
    let num_tokens = batch.num_tokens();
    let products = Products::of_step(&trainer, &config, &batch)?;
    let (mut steps, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    step(&trainer, &batch)?; // the first one pays for pages and threads
    products.run()?;
    for _ in 0..ROUNDS {
        let of_step = step(&trainer, &batch)?.as_secs_f64();
        let of_products = products.run()?.as_secs_f64();
        ratios.push(of_products / of_step);
        steps.push(of_step);
        bare.push(of_products);
    }
    let spread = |values| Spread::of(values).ok_or("no rounds");
    let (step, bare, ratio) = (spread(steps)?, spread(bare)?, spread(ratios)?);
    let gflop = products.flops() / 1e9;
    println!(
        "host step, {} parameters, {num_tokens} tokens, LoRA rank {LORA_RANK} on all linears, f32",
        config.num_params()
    );
    println!("{:<44} {:>9} {:>9} {:>9}", "", "min", "median", "max");
    for (name, unit, values) in [
        ("step: forward, loss, backward", "s", step),
        ("the same matrix products alone", "s", bare),
        ("ratio", "", ratio),
    ] {
        println!("{name:<42} {unit:>1} {:>9.4} {:>9.4} {:>9.4}", values.min, values.median, values.max);
    }
    println!(
        "matrix products of a step: {gflop:.1} GFLOP; step {:.1} GFLOP/s, alone {:.1} GFLOP/s",
        gflop / step.median,
        gflop / bare.median
    );
    println!("share of the step in matrix products: {:.1} %", 100.0 * ratio.median);
    if let Some(path) = request.setting("json") {
        let of = |values: Spread| json!([values.min, values.median, values.max]);
        let useful_tflops = useful_flops(&config, num_tokens, batch.attended_pairs()) / step.median / 1e12;
        let result = json!({
            "benchmark": "host_step", "layers": config.num_layers, "gpus": 0, "batch": NUM_DOCUMENTS,
            "seq": DOCUMENT_LEN, "tok_s_gpu": num_tokens as f64 / step.median, "useful_tflops": useful_tflops,
            "step_s": step.median, "commit": commit(), "command": "cargo bench -p scout-benches -- host_step --json FILE",
            "parameters": config.num_params(), "rounds": ROUNDS, "threads": candle_core::utils::get_num_threads(),
            "product_gflop": gflop, "step_s_spread": of(step), "products_s_spread": of(bare), "ratio_spread": of(ratio),
        });
        std::fs::write(path, serde_json::to_string_pretty(&result)?)?;
    }
    Ok(())
}

fn small_trainer(folder: &std::path::Path) -> Result<(Seated, ModelConfig)> {
    write_folder(folder, &SynthRequest { shape: SynthShape::Small, num_layers: None, dtype: DType::F32, seed: 1 })?;
    let path = folder.display();
    let text = format!(
        "model_name_or_path: {path}\ndataset: toy_messages\ndataset_dir: {path}/data\ntemplate: llama4\n\
         output_dir: {path}/run\nlora_rank: {LORA_RANK}\nlora_target: all\n"
    );
    let loaded = RunConfig::from_text("bench.yaml", &text, &[], &[])?;
    let prepared = prepare(&loaded.config, 1)?;
    let config = prepared.plan.source.config.clone();
    Ok((build(&loaded.config, &prepared, &Job::alone(Duration::from_secs(600)))?, config))
}

fn step(trainer: &Trainer, batch: &Batch) -> Result<Duration> {
    let begun = Instant::now();
    let lora = trainer.adapter.weights()?;
    let mut gradients = trainer.gradients(1)?;
    let pass = trainer.pass(batch, &lora, Some(0));
    let loss = trainer.forward_backward(&pass, &mut gradients, &mut NoTrace)?;
    assert!(loss.weighted_sum()?.is_finite());
    Ok(begun.elapsed())
}

/// Every matrix product of one step, with operands of the same shapes and orientations.
struct Products {
    products: Vec<(Tensor, Tensor, usize)>,
}

impl Products {
    fn of_step(trainer: &Trainer, config: &ModelConfig, batch: &Batch) -> Result<Products> {
        let (hidden, width, layers) = (config.hidden_size, config.intermediate_size, config.num_layers);
        let q_width = config.num_heads * config.head_dim;
        let kv_width = config.num_kv_heads * config.head_dim;
        let tokens = batch.num_tokens();
        let mut products = Products { products: Vec::new() };
        // y = x·Wᵀ forward, dx = dy·W backward.
        for (input, output) in [
            (hidden, q_width),
            (hidden, kv_width),
            (hidden, kv_width),
            (q_width, hidden),
            (hidden, 2 * width),
            (width, hidden),
        ] {
            products.transposed(tokens, input, output, layers)?;
            products.plain(tokens, output, input, layers)?;
        }
        // The routed experts as the batch routes: stored [in, out], so forward is plain and backward transposed.
        for rows in rows_of_experts(trainer, config, batch)? {
            for (input, output) in [(hidden, 2 * width), (width, hidden)] {
                products.plain(rows, input, output, 1)?;
                products.transposed(rows, output, input, 1)?;
            }
        }
        let scored = batch.num_targets();
        products.transposed(scored, hidden, config.vocab_size, 1)?;
        products.plain(scored, config.vocab_size, hidden, 1)?;
        Ok(products)
    }

    /// `[rows, inner] · [columns, inner]ᵀ`
    fn transposed(&mut self, rows: usize, inner: usize, columns: usize, times: usize) -> Result<()> {
        self.products.push((random(rows, inner)?, random(columns, inner)?.t()?, times));
        Ok(())
    }

    /// `[rows, inner] · [inner, columns]`
    fn plain(&mut self, rows: usize, inner: usize, columns: usize, times: usize) -> Result<()> {
        self.products.push((random(rows, inner)?, random(inner, columns)?, times));
        Ok(())
    }

    fn run(&self) -> Result<Duration> {
        let begun = Instant::now();
        for (a, b, times) in &self.products {
            for _ in 0..*times {
                std::hint::black_box(a.matmul(b)?);
            }
        }
        Ok(begun.elapsed())
    }

    fn flops(&self) -> f64 {
        let of_one =
            |(a, b, times): &(Tensor, Tensor, usize)| 2.0 * (a.dims()[0] * a.dims()[1] * b.dims()[1] * times) as f64;
        self.products.iter().map(of_one).sum()
    }
}

/// Tokens of each expert of each layer, experts without any left out.
fn rows_of_experts(trainer: &Trainer, config: &ModelConfig, batch: &Batch) -> Result<Vec<usize>> {
    struct Experts(Vec<Vec<u32>>);
    impl scout_model::Trace for Experts {
        fn is_on(&self) -> bool {
            true
        }
        fn record(&mut self, name: &str, tensor: &scout_device::Tensor) {
            if name.ends_with("router_expert")
                && let Ok(experts) = tensor.u32s()
            {
                self.0.push(experts.to_vec());
            }
        }
    }
    let mut seen = Experts(Vec::new());
    let lora = trainer.adapter.weights()?;
    trainer.logits(&trainer.pass(batch, &lora, None), &mut seen)?;
    let counts = seen.0.iter().flat_map(|chosen| {
        (0..config.num_experts as u32).map(|expert| chosen.iter().filter(|&&e| e == expert).count())
    });
    Ok(counts.filter(|&rows| rows > 0).collect())
}

fn random(rows: usize, columns: usize) -> Result<Tensor> {
    Ok(Tensor::rand(-1f32, 1f32, (rows, columns), &Device::Cpu)?)
}
