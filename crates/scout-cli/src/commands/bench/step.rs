//! `bench step`: training steps of a model's shape, timed. Weights and tokens are made up, so neither checkpoint nor data
//! is needed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scout_comm::Job;
use scout_config::RunConfig;
use scout_core::ExitCode;
use scout_device::Device;
use scout_device::cuda::CudaDevice;
use scout_kernels::attention::Segments;
use scout_model::ModelConfig;
use scout_telemetry::grouped;
use scout_train::TrainError;
use scout_train::machine::Machine;
use scout_train::plan::{ModelSource, RunPlan};
use scout_train::step_bench::{Routing, Row, StepBench, Workload, with_layers};
use serde_json::{Value, json};

use super::ranks::Ranks;
use super::seconds::{quiet_seconds, seconds};
use super::shares::{self, Comparison, Profile};
use super::timing::{self, Limit, Outcome};
use super::{lengths, meeting, trace};
use crate::commands::configuration::{ConfigArguments, load, placing};
use crate::commands::machine::Found;
use crate::commands::output::Output;
use crate::commands::results::results;
use crate::failure::Mistake;
use crate::ranks::Seat;
use crate::surroundings::print;

/// How useful work is counted where adapters are trained; what is computed twice and what adapters cost is not.
const FORMULA: &str = "useful work of a step = 4 x active matrix parameters x tokens + 3.5 x attention forward";
/// The same where weights are.
const FORMULA_OF_WEIGHTS: &str = "useful work of a step = tokens x active matrix parameters x (2, and 2 more where walked \
    back, and 2 more where trained) + attention forward x (1, and 2.5 more where walked back)";
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
    /// Rows of a micro-batch, of which a step has `gradient_accumulation_steps` on each rank; the configuration's
    /// `per_device_train_batch_size` when left out
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
    /// Time exactly so many steps, in place of `--seconds`
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Time a whole job of so many epochs over the rows of `--lengths`, without pauses between its updates
    #[arg(long, requires = "lengths", conflicts_with_all = ["seconds", "steps"],
          value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Steps before time is taken; at least two, and one of each size, when left out
    #[arg(long)]
    warm_up: Option<u32>,
    /// Then run each kind of work of the step again, alone and for so many seconds, to compare (on a GPU)
    #[arg(long, value_parser = quiet_seconds)]
    compare: Option<Duration>,
    /// Write what every stream of every rank does in one more step to this file, for Perfetto or Chrome
    #[arg(long)]
    trace: Option<PathBuf>,
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
    /// One expert of each layer gets all: as uneven as a router can be
    One,
}

pub fn run(step: &Step) -> anyhow::Result<ExitCode> {
    let loaded = load(&step.config)?;
    let config = &loaded.config;
    let mut source = ModelSource::find(config, true)?;
    if let Some(num_layers) = step.layers {
        source = with_layers(source, usize::from(num_layers));
    }
    let (ranks, joined) = meeting::meet(config, &source, true)?;
    joined.work(|job| placing(&loaded, || measure(step, config, source, (&ranks.seat, job))))
}

/// Runs on every rank; the first one tells.
fn measure(
    step: &Step,
    config: &RunConfig,
    source: ModelSource,
    (seat, job): (&Seat, &Job),
) -> anyhow::Result<ExitCode> {
    let tell = |lines: Vec<String>| -> std::io::Result<()> {
        let is_first = job.mesh().is_first();
        lines.iter().filter(|_| is_first).try_for_each(|line| print(line))
    };
    let json = Output::of_first_rank(step.json.as_ref(), job)?;
    let trace = Output::of_first_rank(step.trace.as_ref(), job)?;
    let world_size = job.mesh().size();
    let num_rows = step.batch.map_or(config.train.per_device_train_batch_size, |rows| rows as usize);
    let rows_of_update = num_rows * config.train.gradient_accumulation_steps;
    let rows = rows(step, rows_of_update * world_size)?;
    let workload = Workload::new(config, &source.config, &rows, world_size, num_rows)?.routed(step.routing.into());
    let mut found = Found::by(config, seat)?;
    let plan = workload.plan(source, found.hardware(&*job.comm)?)?;
    let machine = found.machine(&plan)?;
    // Steps of a run that has gone on for long, or all of a job.
    if let (None, Device::Cuda(gpu)) = (step.epochs, &machine.device) {
        gpu.try_products_at_once();
    }
    if step.compare.is_some() {
        check_comparable(&machine, &plan, (&rows, rows_of_update, workload.num_updates()))?;
    }
    let num_updates = workload.num_updates();
    let mut bench = StepBench::new(workload, plan, (&machine, job))?;
    tell(about(&bench, &machine))?;
    tell(unpacked(config).into_iter().collect())?;
    let all_sizes = WARM_UP.max(num_updates);
    let warm_up = step.warm_up.map_or(all_sizes, |steps| steps as usize);
    for _ in 0..warm_up {
        bench.step()?;
    }
    let outcome = timing::time(&mut bench, &machine, (limit(step, num_updates), warm_up >= all_sizes), job)?;
    tell(outcome.lines(world_size))?;
    tell(whole_job(step, &outcome))?;
    let profile = match &machine.device {
        Device::Cpu => None,
        Device::Cuda(gpu) => {
            tell(vec![format!("\n{}\n", gpu.account().table())])?;
            let profile = profile(&mut bench, gpu, (step.compare, job))?;
            if job.mesh().is_first() {
                profile.print()?;
            }
            Some(profile)
        }
    };
    let ranks = Ranks::gather(&outcome, profile.as_ref(), (&machine, job))?;
    if world_size > 1 {
        tell(vec![String::new()])?;
        tell(ranks.table())?;
    }
    let picture = match step.trace.is_some() {
        true => trace::of_a_step(&mut bench, &machine.device, job)?,
        false => None,
    };
    let found = as_json((step, config, num_rows), &bench, (&outcome, profile.as_ref(), &ranks));
    // Whether or not anything can be written, others wait for this rank.
    bench.leave()?;
    machine.leave();
    if let Some(output) = json {
        output.write_json(&results("step", (&machine.device, world_size), found))?;
    }
    if let (Some(output), Some(picture)) = (trace, picture) {
        output.write(&picture.to_string())?;
    }
    Ok(ExitCode::Success)
}

/// Those of `--lengths`, or `count` of one length.
fn rows(step: &Step, count: usize) -> anyhow::Result<Vec<Row>> {
    match &step.lengths {
        Some(path) => lengths::read(path),
        None => Ok(vec![Row { num_tokens: step.seq as usize, num_learned: step.seq as usize - 1 }; count]),
    }
}

fn limit(step: &Step, num_updates: usize) -> Limit {
    match (step.epochs, step.steps) {
        (Some(epochs), _) => Limit::WithoutPause(epochs as usize * num_updates),
        (None, Some(steps)) => Limit::Steps(steps as usize),
        (None, None) => Limit::Time(step.seconds),
    }
}

/// What `--epochs` asked for.
fn whole_job(step: &Step, outcome: &Outcome) -> Vec<String> {
    let line = |epochs: u32| {
        let (updates, seconds) = (outcome.num_steps(), outcome.seconds);
        let tokens = grouped(outcome.num_tokens as u64);
        format!("{updates} updates of {epochs} epochs: {tokens} tokens in {seconds:.3} s")
    };
    step.epochs.into_iter().map(line).collect()
}

impl From<RoutingName> for Routing {
    fn from(name: RoutingName) -> Routing {
        match name {
            RoutingName::Balanced => Routing::Balanced,
            RoutingName::Natural => Routing::Natural,
            RoutingName::One => Routing::One,
        }
    }
}

fn about(bench: &StepBench, machine: &Machine) -> Vec<String> {
    let config = &bench.plan.source.config;
    let mut lines = vec![
        format!(
            "{} layers of width {}, {} experts that {}, {} parameters, {} trained, {:?}, {}",
            config.num_layers,
            config.hidden_size,
            config.num_experts,
            bench.plan.way.experts.word(),
            grouped(config.num_params()),
            grouped(bench.plan.num_trained() as u64),
            machine.compute,
            bench.plan.settings.keep,
        ),
        formula(&bench.plan).to_string(),
    ];
    if let Device::Cuda(gpu) = &machine.device {
        lines.insert(0, format!("{gpu:?}"));
    }
    lines.extend(bench.said.iter().cloned());
    lines
}

fn formula(plan: &RunPlan) -> &'static str {
    if plan.weights.is_empty() { FORMULA } else { FORMULA_OF_WEIGHTS }
}

/// A run would fill its micro-batches otherwise.
fn unpacked(config: &RunConfig) -> Option<String> {
    let key = match (config.data.neat_packing, config.data.packing) {
        (true, _) => "neat_packing",
        (false, true) => "packing",
        (false, false) => return None,
    };
    Some(format!("`{key}` is left aside: a micro-batch has so many rows, however long they are"))
}

/// As many more steps as make a profile, compared where that is asked for.
fn profile(
    bench: &mut StepBench,
    gpu: &Arc<CudaDevice>,
    (compare, job): (Option<Duration>, &Job),
) -> Result<Profile, TrainError> {
    let Some(at_least) = compare else { return shares::profile(bench, gpu, (None, job)) };
    let mut profile = shares::profile(bench, gpu, (Some(PROFILED), job))?;
    let ModelConfig { num_heads, num_kv_heads, head_dim, .. } = bench.plan.source.config;
    // Of the one update that all steps have, whose runs are alike.
    let borders = bench.updates()[0][0].documents.borders().to_vec();
    let heads = [num_heads, num_kv_heads, head_dim];
    profile.compare(gpu, &Comparison { segments: Segments::new(borders)?, heads, at_least }, &job.whereabouts)?;
    Ok(profile)
}

/// What `--compare` needs, looked for before anything runs.
fn check_comparable(
    machine: &Machine,
    plan: &RunPlan,
    (rows, num_rows, num_updates): (&[Row], usize, usize),
) -> Result<(), Mistake> {
    let refuse =
        |problem: String| Err(Mistake { message: format!("`--compare` {problem}"), code: ExitCode::Usage, hint: None });
    if let Device::Cpu = machine.device {
        return refuse("works on a GPU only: `--device cuda`".to_string());
    }
    if num_updates > 1 {
        return refuse(format!("found {num_updates} batches, expected one that all steps have: `--seq`"));
    }
    if !are_alike(rows, (num_rows, plan.runs)) {
        let expected = "expected runs that are alike: `--seq`, and a `--batch` that they share evenly";
        return refuse(format!("found an update of {} runs whose rows differ, {expected}", plan.runs));
    }
    let model = &plan.source.config;
    if let Some(row) = rows.iter().find(|row| row.num_tokens > model.attention_chunk_size) {
        let expected = "expected rows that fit into one chunk of attention";
        return refuse(format!("found a row of {} tokens, {expected}", row.num_tokens));
    }
    Ok(())
}

/// Whether each of the `runs` of `num_rows` rows is like the first: attention alone is that of one run, as often as there are
/// runs.
fn are_alike(rows: &[Row], (num_rows, runs): (usize, usize)) -> bool {
    runs == 1 || (num_rows.is_multiple_of(runs) && rows.iter().all(|row| row.num_tokens == rows[0].num_tokens))
}

fn as_json(
    (step, config, num_rows): (&Step, &RunConfig, usize),
    bench: &StepBench,
    (outcome, profile, ranks): (&Outcome, Option<&Profile>, &Ranks),
) -> Value {
    let plan = &bench.plan;
    let world_size = plan.world_size();
    let mut all = json!({
        "layers": plan.source.config.num_layers, "batch": num_rows,
        "gradient_accumulation_steps": config.train.gradient_accumulation_steps,
        "gather": bench.way().map(|way| way.to_string()),
        "seq": if step.lengths.is_some() { json!(null) } else { json!(step.seq) },
        "lengths": step.lengths, "epochs": step.epochs, "routing": format!("{:?}", step.routing).to_lowercase(),
        "tok_s_gpu": outcome.tokens_per_second(world_size), "useful_tflops": outcome.useful_tflops(world_size),
        "step_s": outcome.seconds_a_step(), "step_s_spread": outcome.spread, "steps": outcome.num_steps(),
        "step_s_all": (!outcome.step_seconds.is_empty()).then_some(&outcome.step_seconds), "drift": outcome.drift,
        "busiest_experts": outcome.busiest_experts(),
        "seconds": outcome.seconds, "tokens": outcome.num_tokens, "loss_bits": outcome.loss_bits(),
        "formula": formula(plan),
    });
    let of_ranks = json!({
        "ranks": ranks.as_json(), "exposed_comm": ranks.exposed_share(),
        "nvml_utilization": ranks.mean("nvml_utilization"), "sm_active": ranks.mean("sm_active"),
        "sm_clock_megahertz": ranks.mean("sm_clock_megahertz"), "power_watts": ranks.mean("power_watts"),
        "shares": profile.map(Profile::as_json), "plan": of_plan(bench),
    });
    if let (Value::Object(all), Value::Object(of_ranks)) = (&mut all, of_ranks) {
        all.extend(of_ranks);
    }
    all
}

/// How weights were held, and what was predicted of it.
fn of_plan(bench: &StepBench) -> Value {
    let plan = &bench.plan;
    let resident = plan.way.resident;
    json!({
        "resident_layers": resident.num_layers, "resident_downs": resident.num_downs,
        "embedding_resident": resident.embedding, "head_resident": resident.head,
        "keep": plan.settings.keep.to_string(), "experts": plan.way.experts.word(), "runs": plan.runs,
        "lookahead": bench.lookahead(), "ring_bytes": plan.memory.gathered.0,
        "arriving_bytes": plan.memory.arriving.0,
        "predicted_peak_bytes": plan.memory.total().0,
        "predicted_step_s": plan.way.time.map(|time| time.seconds),
        "expected_busiest_experts": plan.busiest_share,
        "predicted_exposed_comm": plan.way.time.map(|time| time.exposed_share()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_alike_where_they_have_as_many_rows_of_one_length() {
        let rows = |lengths: &[usize]| -> Vec<Row> {
            lengths.iter().map(|&num_tokens| Row { num_tokens, num_learned: 1 }).collect()
        };
        let cases: [(&[usize], usize, bool); 5] = [
            (&[9, 5, 7], 1, true),
            (&[9, 9, 9, 9], 2, true),
            (&[9, 9, 9, 9], 3, false),
            (&[9, 5, 9, 5], 2, false),
            (&[9, 9, 9, 5], 4, false),
        ];
        for (lengths, runs, expected) in cases {
            assert_eq!(are_alike(&rows(lengths), (lengths.len(), runs)), expected, "{lengths:?} in {runs}");
        }
    }
}
