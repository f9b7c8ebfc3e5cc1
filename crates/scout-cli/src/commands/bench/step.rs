//! `bench step`: training steps of a model's shape, timed. Weights and tokens are made up, so neither checkpoint nor data
//! is needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use scout_core::ExitCode;
use scout_device::Device;
use scout_device::cuda::CudaDevice;
use scout_kernels::attention::Segments;
use scout_model::ModelConfig;
use scout_telemetry::grouped;
use scout_train::TrainError;
use scout_train::machine::Machine;
use scout_train::plan::ModelSource;
use scout_train::step_bench::{Routing, Row, StepBench, Timed, with_layers};
use serde_json::json;

use super::seconds;
use super::shares::{self, Comparison, Profile};
use crate::build_info::COMMIT;
use crate::commands::configuration::{ConfigArguments, load};
use crate::commands::machine::machine;
use crate::commands::results::write_json;
use crate::failure::Mistake;
use crate::surroundings::print;

/// How useful work is counted; what is computed twice and what adapters cost is not.
const FORMULA: &str = "useful work of a step = 4 x active matrix parameters x tokens + 3.5 x attention forward";
/// Before time counts: the first step loads kernels and tries algorithms, the second finds them.
const WARM_UP: usize = 2;
/// Steps are profiled for so long where they are compared: the clock follows the power limit in less.
const PROFILED: Duration = Duration::from_secs(4);

#[derive(clap::Args)]
pub struct Step {
    #[command(flatten)]
    config: ConfigArguments,
    /// Layers, in place of the model's own number
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    layers: Option<u16>,
    /// Rows of a step; the configuration's `per_device_train_batch_size` when left out
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Tokens of each row
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..))]
    seq: u32,
    /// JSON file whose `lengths` hold instruction, input and output of each row, in tokens; in place of `--seq`
    #[arg(long)]
    lengths: Option<PathBuf>,
    /// Who decides which expert takes a token
    #[arg(long, value_enum, default_value = "balanced")]
    routing: RoutingName,
    /// How long steps are timed
    #[arg(long, default_value = "10", value_parser = seconds)]
    seconds: Duration,
    /// Then run each kind of work of the step again, alone and for so many seconds, to compare (on a GPU)
    #[arg(long, value_parser = seconds)]
    compare: Option<Duration>,
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RoutingName {
    /// Every expert gets as many as the others
    Balanced,
    /// The router, whose weights are random too
    Natural,
}

/// Sums over the timed steps, and the spread of their times.
struct Outcome {
    num_steps: usize,
    num_tokens: usize,
    flops: f64,
    seconds: f64,
    /// Shortest, median, longest.
    spread: [f64; 3],
    clocks: Vec<u32>,
    watts: Vec<f64>,
}

pub fn run(step: &Step) -> anyhow::Result<ExitCode> {
    let config = load(&step.config)?.config;
    let mut source = ModelSource::find(&config, true)?;
    if let Some(num_layers) = step.layers {
        source = with_layers(source, usize::from(num_layers));
    }
    let machine = machine(&config, &source.config, 1)?;
    let num_rows = step.batch.map_or(config.train.per_device_train_batch_size, |rows| rows as usize);
    let steps = rows(step, num_rows)?;
    let comparison = step.compare.map(|at_least| comparison(&machine, &source.config, &steps, at_least)).transpose()?;
    let routing = match step.routing {
        RoutingName::Balanced => Routing::Balanced,
        RoutingName::Natural => Routing::Natural,
    };
    let mut bench = StepBench::new(&config, source, &machine, &steps, routing)?;
    for line in about(&bench, &machine) {
        print(&line)?;
    }
    for _ in 0..WARM_UP.max(bench.num_batches()) {
        bench.step()?;
    }
    let outcome = time(&mut bench, &machine, step.seconds)?;
    for line in results(&outcome) {
        print(&line)?;
    }
    let shares = match &machine.device {
        Device::Cpu => None,
        Device::Cuda(gpu) => {
            print(&format!("\n{}\n", gpu.account().table()))?;
            let shares = shares(&mut bench, gpu, comparison.as_ref())?;
            shares.print()?;
            Some(shares.as_json())
        }
    };
    if let Some(path) = &step.json {
        write_json(path, &as_json(step, num_rows, &bench, (&outcome, shares)))?;
    }
    Ok(ExitCode::Success)
}

/// The rows of each step.
fn rows(step: &Step, num_rows: usize) -> anyhow::Result<Vec<Vec<Row>>> {
    let Some(path) = &step.lengths else {
        let row = Row { num_tokens: step.seq as usize, num_learned: step.seq as usize - 1 };
        return Ok(vec![vec![row; num_rows]]);
    };
    let rows = read_lengths(path)?;
    Ok(rows.chunks(num_rows).map(<[Row]>::to_vec).collect())
}

/// Each answer is learned together with the mark of its end.
fn read_lengths(path: &Path) -> anyhow::Result<Vec<Row>> {
    let wrong = |problem: String, code| -> anyhow::Error {
        Mistake { message: format!("`{}` {problem}", path.display()), code, hint: None }.into()
    };
    let text = std::fs::read_to_string(path)
        .map_err(|cause| wrong(format!("cannot be read: {cause}"), ExitCode::of_io(&cause, ExitCode::MissingInput)))?;
    let number = |value: &serde_json::Value| value.as_u64().map(|number| number as usize);
    let parse = || -> Option<Vec<Row>> {
        let all: serde_json::Value = serde_json::from_str(&text).ok()?;
        let overhead = number(&all["prompt_overhead"])?;
        let learned_overhead = number(&all["output_overhead"])?;
        let row = |lengths: &serde_json::Value| {
            let [instruction, input, output] = [0, 1, 2].map(|index| number(&lengths[index]));
            let num_learned = output? + learned_overhead;
            Some(Row { num_tokens: overhead + instruction? + input? + output?, num_learned })
        };
        all["lengths"].as_array()?.iter().map(row).collect()
    };
    let expected = "does not hold `lengths` of three numbers each, `prompt_overhead` and `output_overhead`";
    parse().filter(|rows| !rows.is_empty()).ok_or_else(|| wrong(expected.to_string(), ExitCode::BadData))
}

fn about(bench: &StepBench, machine: &Machine) -> Vec<String> {
    let config = &bench.plan.source.config;
    let mut lines = vec![
        format!(
            "{} layers of width {}, {} experts, {} parameters, {} trained, {:?}, {:?}",
            config.num_layers,
            config.hidden_size,
            config.num_experts,
            grouped(config.num_params()),
            grouped(bench.plan.num_trained() as u64),
            machine.compute,
            bench.plan.settings.keep,
        ),
        FORMULA.to_string(),
    ];
    if let Device::Cuda(gpu) = &machine.device {
        lines.insert(0, format!("{gpu:?}"));
    }
    lines
}

/// Steps for at least `limit`, three at least.
fn time(bench: &mut StepBench, machine: &Machine, limit: Duration) -> anyhow::Result<Outcome> {
    let gpu = match &machine.device {
        Device::Cpu => None,
        Device::Cuda(gpu) => Some(gpu),
    };
    let gauge = gpu.and_then(|gpu| gpu.gauge().ok());
    // From here on, asking the driver for memory is an error: steps of known sizes find all they need in the arenas.
    let _steady = gpu.map(|gpu| gpu.steady_step());
    let mut steps: Vec<Timed> = Vec::new();
    let (mut clocks, mut watts, mut timed) = (Vec::new(), Vec::new(), Duration::ZERO);
    while timed < limit || steps.len() < 3 {
        let step = bench.step()?;
        timed += step.time;
        steps.push(step);
        if let Some(reading) = gauge.as_ref().and_then(|gauge| gauge.read().ok()) {
            clocks.push(reading.sm_clock_megahertz);
            watts.push(reading.power_watts);
        }
    }
    let mut times: Vec<f64> = steps.iter().map(|step| step.time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    Ok(Outcome {
        num_steps: steps.len(),
        num_tokens: steps.iter().map(|step| step.report.num_tokens).sum(),
        flops: steps.iter().map(|step| bench.useful_flops(&step.report)).sum(),
        seconds: timed.as_secs_f64(),
        spread: [times[0], times[times.len() / 2], times[times.len() - 1]],
        clocks,
        watts,
    })
}

fn results(outcome: &Outcome) -> Vec<String> {
    let [shortest, median, longest] = outcome.spread.map(|seconds| seconds * 1e3);
    let mut lines = vec![
        format!(
            "{} steps: {} tokens/s, {:.1} useful TFLOP/s",
            outcome.num_steps,
            grouped((outcome.num_tokens as f64 / outcome.seconds) as u64),
            outcome.flops / outcome.seconds / 1e12
        ),
        format!("a step takes {median:.2} ms, {shortest:.2} at least and {longest:.2} at most"),
    ];
    if let (Some(clock), Some(watts)) =
        (mean(outcome.clocks.iter().map(|&c| f64::from(c))), mean(outcome.watts.iter().copied()))
    {
        lines.push(format!("SM clock {clock:.0} MHz, {watts:.0} W between steps on average"));
        lines.push("the driver was not asked for memory meanwhile".to_string());
    }
    lines
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let count = values.clone().count();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

/// As many more steps as make a profile, compared where that is asked for.
fn shares(bench: &mut StepBench, gpu: &Arc<CudaDevice>, with: Option<&Comparison>) -> Result<Profile, TrainError> {
    let Some(with) = with else { return shares::profile(bench, gpu, Duration::ZERO) };
    let mut profile = shares::profile(bench, gpu, PROFILED)?;
    profile.compare(gpu, with)?;
    Ok(profile)
}

/// What `--compare` needs, looked for before anything runs.
fn comparison(
    machine: &Machine,
    model: &ModelConfig,
    steps: &[Vec<Row>],
    at_least: Duration,
) -> anyhow::Result<Comparison> {
    let refuse = |problem: String| -> anyhow::Error {
        Mistake { message: format!("`--compare` {problem}"), code: ExitCode::Usage, hint: None }.into()
    };
    if let Device::Cpu = machine.device {
        return Err(refuse("works on a GPU only: `--device cuda`".to_string()));
    }
    let [rows] = steps else {
        return Err(refuse(format!("found {} batches, expected one that all steps have: `--seq`", steps.len())));
    };
    if let Some(row) = rows.iter().find(|row| row.num_tokens > model.attention_chunk_size) {
        let expected = "expected rows that fit into one chunk of attention";
        return Err(refuse(format!("found a row of {} tokens, {expected}", row.num_tokens)));
    }
    let mut borders = vec![0];
    for row in rows {
        borders.push(borders[borders.len() - 1] + row.num_tokens as u32);
    }
    let segments = Segments::new(borders).map_err(TrainError::from)?;
    Ok(Comparison { segments, heads: [model.num_heads, model.num_kv_heads, model.head_dim], at_least })
}

fn as_json(
    step: &Step,
    num_rows: usize,
    bench: &StepBench,
    (outcome, shares): (&Outcome, Option<serde_json::Value>),
) -> serde_json::Value {
    json!({
        "benchmark": "step", "layers": bench.plan.source.config.num_layers, "gpus": 1, "batch": num_rows,
        "seq": if step.lengths.is_some() { json!(null) } else { json!(step.seq) },
        "lengths": step.lengths, "routing": format!("{:?}", step.routing).to_lowercase(),
        "tok_s_gpu": outcome.num_tokens as f64 / outcome.seconds,
        "useful_tflops": outcome.flops / outcome.seconds / 1e12,
        "step_s": outcome.spread[1], "step_s_spread": outcome.spread, "steps": outcome.num_steps,
        "sm_clock_megahertz": mean(outcome.clocks.iter().map(|&clock| f64::from(clock))),
        "power_watts": mean(outcome.watts.iter().copied()),
        "shares": shares, "formula": FORMULA, "version": env!("CARGO_PKG_VERSION"), "commit": COMMIT,
        "command": std::env::args().collect::<Vec<_>>().join(" "),
    })
}
