//! `plan`: what a run would do and need, from shapes, data and the number of ranks. Reads no weights and needs no GPU: one
//! that is there is only asked for its memory.

use scout_config::RunConfig;
use scout_core::{ByteCount, DType, ExitCode};
use scout_data::Balance;
use scout_device::cuda::Choice;
use scout_device::cuda::dnn::{self, SumOrder};
use scout_shard::{Placement, Schedule, ShardPlan};
use scout_telemetry::grouped;
use scout_train::TrainError;
use scout_train::machine::{ComputeType, Hardware, Kind};
use scout_train::memory::Activations;
use scout_train::plan::{ModelSource, RunPlan};
use scout_train::prepare::plan_model;
use scout_train::reducer::most_in_flight;
use scout_train::trained_weights::TrainedWeights;
use scout_train::ways::{Experts, Resident, StepTime, Way};
use serde_json::json;

use super::configuration::{ConfigArguments, load, placing};
use super::machine::hardware;
use crate::surroundings::print;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Number of ranks to plan for
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    world: u16,
    /// Memory of one device, as 78GiB; overrides the key `device_memory`
    #[arg(long)]
    device_memory: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut config_arguments = ConfigArguments {
        config: arguments.config.config.clone(),
        overrides: arguments.config.overrides.clone(),
        synthetic: arguments.config.synthetic,
        device: arguments.config.device,
    };
    if let Some(memory) = &arguments.device_memory {
        config_arguments.overrides.push(format!("device_memory={memory}"));
    }
    let loaded = load(&config_arguments)?;
    // A model that is not there is told before a GPU is asked for anything.
    let source = ModelSource::find(&loaded.config, true)?;
    let (hardware, note) = hardware(&loaded.config, usize::from(arguments.world));
    let Resolved { plan, data } = placing(&loaded, || Ok(resolve(&loaded.config, source, hardware)?))?;
    let balance = data.as_ref().ok().copied();
    let notes: Vec<&String> = loaded.notes.iter().chain(&note).collect();
    if arguments.json {
        let mut json = as_json(&plan, balance);
        json["notes"] = json!(notes);
        print(&serde_json::to_string_pretty(&json)?)?;
        return Ok(ExitCode::Success);
    }
    for note in notes {
        print(&format!("note: {note}"))?;
    }
    let ranks = balance.filter(|_| plan.world_size() > 1).map(balance_words);
    for line in summary(&plan).into_iter().chain(ranks).chain(unit_table(&plan)).chain(gathering(&plan)) {
        print(&line)?;
    }
    if let Err(reason) = data {
        print(&format!("steps      unknown: {reason}"))?;
    }
    Ok(ExitCode::Success)
}

struct Resolved {
    plan: RunPlan,
    /// How evenly ranks are loaded by it, or why it is not known.
    data: Result<Balance, String>,
}

/// The plan, and what is known of its data: data that is not there is no obstacle to planning, data that is there and wrong
/// is.
fn resolve(config: &RunConfig, source: ModelSource, hardware: Hardware) -> Result<Resolved, TrainError> {
    let without_data = |source, reason: String| -> Result<Resolved, TrainError> {
        Ok(Resolved { plan: RunPlan::resolve(config, source, hardware, None, None)?, data: Err(reason) })
    };
    if config.data.dataset.is_empty() {
        return without_data(source, "no `dataset` is given".to_string());
    }
    if source.folder.is_none() {
        return without_data(source, "the model folder with its tokenizer is not here".to_string());
    }
    match plan_model(config, source.clone(), hardware) {
        Ok(planned) => Ok(Resolved { data: Ok(planned.balance()), plan: planned.plan }),
        Err(error @ TrainError::Data(_)) if error.exit_code() == ExitCode::MissingInput => {
            without_data(source, error.to_string())
        }
        Err(error) => Err(error),
    }
}

fn balance_words(balance: Balance) -> String {
    let excess = 100.0 * balance.excess();
    format!("balance    the busiest rank of an update has {excess:.1} % more work than the average one")
}

/// The plan in a few lines.
pub fn summary(plan: &RunPlan) -> Vec<String> {
    let config = &plan.source.config;
    let memory = &plan.memory;
    let mut lines = vec![
        format!(
            "model      {} parameters, {} layers of width {}, {} experts",
            grouped(config.num_params()),
            config.num_layers,
            config.hidden_size,
            config.num_experts
        ),
        format!("trained    {} parameters: {}", grouped(plan.num_trained() as u64), trained_words(plan)),
        format!("ranks      {}", plan.world_size()),
        format!("computing  {}", computing_words(plan)),
        format!("memory     {} a rank{}", memory.total(), budget(memory.budget)),
        format!("           {}", memory_words(plan)),
    ];
    if let (Some(written), Some(free)) = (plan.more_than_free, memory.budget) {
        lines.push(format!("           `device_memory` is {written}, but only {free} are free: planned for those"));
    }
    lines.extend(match differ_in_time(plan) {
        true => timed_table(plan),
        false => keeping_table(plan),
    });
    lines.extend(plan.way.time.map(step_words));
    lines.extend(plan.busiest_share.filter(|_| plan.way.time.is_some()).map(busiest_words));
    if !plan.weights.is_empty() {
        let parts = TrainedWeights::bytes(&plan.weights, &plan.shards);
        let in_flight = most_in_flight(&plan.weights, &plan.shards, &plan.schedules.send);
        lines.push(format!("           gradients made or under way {in_flight}, summed gradients and moments {parts}"));
    }
    if let Some(steps) = plan.steps {
        lines.push(format!(
            "steps      {} ({} rows, {} updates an epoch, {} of warm-up)",
            steps.total_steps, steps.num_rows, steps.updates_per_epoch, steps.warmup_steps
        ));
    }
    lines
}

fn trained_words(plan: &RunPlan) -> String {
    if plan.weights.is_empty() {
        let names: Vec<&str> = plan.lora.projections.iter().map(|projection| projection.leaf_name()).collect();
        return format!("LoRA rank {}, alpha {}, on {}", plan.lora.rank, plan.lora.alpha, names.join(", "));
    }
    let (num_units, of_units) = (plan.weights.units().count(), plan.units.units().len());
    match plan.num_trained() as u64 == plan.source.config.num_params() {
        true => "every weight of the text model".to_string(),
        false => format!("weights in {num_units} of {of_units} units, the rest is frozen"),
    }
}

/// On what, in which element type, and whether two runs compute the same bits.
fn computing_words(plan: &RunPlan) -> String {
    let Hardware { kind, compute, .. } = plan.hardware;
    let dtype = compute.dtype();
    match (kind, plan.choice, compute) {
        (Kind::Host, ..) => format!("on the CPU, in {dtype}, the same bits in every run"),
        (Kind::Gpu, Choice::Timed, _) => format!("on a GPU, in {dtype}, by what is fastest in trials"),
        (Kind::Gpu, Choice::First, ComputeType::F32) => {
            format!("on a GPU, in {dtype}, the same bits in every run: no trials")
        }
        (Kind::Gpu, Choice::First, ComputeType::Bf16) => format!(
            "on a GPU, in {dtype}, the same bits in every run: no trials, and attention's sums in a fixed order\n           \
             (by cuDNN where that takes at most {} of scratch memory, else by our own kernels)",
            dnn::most_scratch(SumOrder::Fixed)
        ),
    }
}

fn memory_words(plan: &RunPlan) -> String {
    let memory = &plan.memory;
    let trained = if plan.weights.is_empty() { "adapter and optimizer" } else { "gradients and optimizer" };
    let arriving = match memory.arriving {
        ByteCount(0) => String::new(),
        bytes => format!(", rows of others {bytes}"),
    };
    let libraries = match memory.libraries {
        ByteCount(0) => String::new(),
        bytes => format!(", NCCL and peers {bytes}"),
    };
    format!(
        "weights {}, gathered {}{arriving}, {trained} {}, scratch {}{libraries}",
        memory.shard, memory.gathered, memory.trained, memory.workspace
    )
}

/// Whether ways differ in more than what they keep.
fn differ_in_time(plan: &RunPlan) -> bool {
    let differ_in_runs = plan.ways.iter().any(|way| way.runs != plan.runs);
    plan.hardware.kind == Kind::Gpu && (plan.world_size() > 1 || differ_in_runs)
}

fn verdict(plan: &RunPlan, way: &Way) -> &'static str {
    match (*way == plan.way, way.memory.fits()) {
        (true, _) => "  chosen",
        (false, true) => "",
        (false, false) => "  does not fit",
    }
}

/// The ways of keeping, what each takes of memory, and which one was chosen: the first that fits.
fn keeping_table(plan: &RunPlan) -> Vec<String> {
    let mut lines =
        vec![format!("{:<38} {:>12} {:>12} {:>12}", "activations of a micro-batch", "kept", "at work", "in all")];
    lines.extend(plan.ways.iter().map(|way| {
        let Activations { kept, at_work } = way.memory.activations;
        let (kept, at_work, all) = (kept.to_string(), at_work.to_string(), way.memory.total().to_string());
        let verdict = verdict(plan, way);
        format!("           {:<27} {kept:>12} {at_work:>12} {all:>12}{verdict}", way.keep.to_string())
    }));
    lines
}

/// The fastest ways on GPUs, each with the residency and the reach of its gathers that suit it best.
fn timed_table(plan: &RunPlan) -> Vec<String> {
    let mut lines = vec![format!(
        "ways       {:<36} {:>4} {:>36} {:>5} {:>11} {:>9} {:>9} {:>8}",
        "of an update", "runs", "whole on every rank", "ahead", "memory", "step", "tok/s", "exposed"
    )];
    lines.extend(plan.ways.iter().map(|way| {
        let (step, speed, exposed) = way.time.map_or_else(Default::default, |time| {
            let speed = grouped(time.tokens_per_second() as u64);
            (seconds(time.seconds), speed, format!("{:.1} %", 100.0 * time.exposed_share()))
        });
        let (memory, verdict) = (way.memory.total().to_string(), verdict(plan, way));
        let (keeps, whole) = (way.keep.to_string(), resident_words(way));
        let (runs, lookahead) = (way.runs, way.lookahead);
        let held = format!("{keeps:<36} {runs:>4} {whole:>36} {lookahead:>5} {memory:>11}");
        format!("           {held} {step:>9} {speed:>9} {exposed:>8}{verdict}")
    }));
    lines
}

/// What every rank keeps whole, or that experts are not to be whole anywhere.
fn resident_words(way: &Way) -> String {
    let Resident { num_layers, num_downs, embedding, head } = way.resident;
    let experts = (way.experts == Experts::Stay).then(|| "experts stay".to_string());
    let layers = (num_layers > 0).then(|| format!("{num_layers}"));
    let downs = (num_downs > 0).then(|| format!("{num_downs} down"));
    let ends = [(embedding, "embedding"), (head, "head")];
    let ends = ends.into_iter().filter_map(|(is_whole, name)| is_whole.then_some(name.to_string()));
    let words: Vec<String> = experts.into_iter().chain(layers).chain(downs).chain(ends).collect();
    if words.is_empty() { "nothing".to_string() } else { words.join(" + ") }
}

fn step_words(time: StepTime) -> String {
    format!(
        "step       {} predicted for an update of {} tokens a rank, at the rates of an H200: {} tokens/s a rank",
        seconds(time.seconds),
        grouped(time.num_tokens as u64),
        grouped(time.tokens_per_second() as u64)
    )
}

fn busiest_words(share: f64) -> String {
    format!(
        "           where experts stay, with {share:.2} times an even share of each layer's rows for the busiest rank"
    )
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", 1e3 * seconds) } else { format!("{seconds:.2} s") }
}

fn budget(budget: Option<ByteCount>) -> String {
    budget.map(|budget| format!(" of {budget}")).unwrap_or_default()
}

/// Bytes of each kind of unit. Layers that are held alike are alike, so the first of them stands for all.
fn unit_table(plan: &RunPlan) -> Vec<String> {
    let num_layers = plan.source.config.num_layers;
    let are_whole = |layer: &usize| {
        let layer = plan.units.layer(*layer);
        [layer.attention, layer.down].map(|id| plan.shards.unit(id).placement == Placement::Resident)
    };
    let mut ids = vec![(plan.units.embedding(), 1)];
    for held in [[true, true], [true, false], [false, true], [false, false]] {
        let alike: Vec<usize> = (0..num_layers).filter(|layer| are_whole(layer) == held).collect();
        let Some(&first) = alike.first() else { continue };
        let layer = plan.units.layer(first);
        ids.extend([layer.attention, layer.shared, layer.gate_up, layer.down].map(|id| (id, alike.len())));
    }
    ids.push((plan.units.head(), 1));
    let mut lines = vec![format!(
        "{:<20} {:>6} {:>16} {:>12} {:>12} {:>14}",
        "unit", "count", "parameters", "whole f32", "in bf16", "kept a rank"
    )];
    let dtype = plan.shards.dtype();
    for (id, count) in ids {
        let shard = plan.shards.unit(id);
        lines.push(format!(
            "{:<20} {count:>6} {:>16} {:>12} {:>12} {:>14}",
            shard.spec.name,
            grouped(shard.spec.num_elements() as u64),
            shard.spec.bytes(DType::F32),
            shard.spec.bytes(DType::BF16),
            dtype.size() * shard.shard_len as u64,
        ));
    }
    lines
}

/// The order in which units become whole during an update. Layers that use their units alike share a line.
fn gathering(plan: &RunPlan) -> Vec<String> {
    let exchanged = (plan.way.experts == Experts::Stay).then(|| {
        let most = grouped(plan.way.most_rows as u64);
        format!(
            "experts    stay with their ranks: of each layer at most {most} rows of a rank go to them and come back"
        )
    });
    if plan.memory.gathered == ByteCount(0) {
        let why = if exchanged.is_some() { "all else" } else { "all weights" };
        return exchanged.into_iter().chain([format!("gathered   nothing: every rank keeps {why}")]).collect();
    }
    let mut lines: Vec<String> = exchanged.into_iter().collect();
    lines.push(format!(
        "gathered   {} units ahead of the block in use, at most {} at one time, in this order{}:",
        plan.shards.lookahead(),
        plan.memory.gathered,
        if plan.way.resident == Resident::NOTHING { "" } else { ", where not whole already" }
    ));
    let runs = runs_of_layers(&plan.shards, &plan.schedules.train);
    lines.extend(runs.into_iter().map(|LayerRun { first, last, blocks }| match (first, last) {
        (None, _) | (_, None) => format!("           {blocks}"),
        (Some(first), Some(last)) if first == last => format!("           layer {first}: {blocks}"),
        (Some(first), Some(last)) => format!("           layers {first} to {last}, each: {blocks}"),
    }));
    lines
}

/// Neighbouring layers of a walk that use the same units in the same order.
struct LayerRun {
    /// `None` outside of the layers.
    first: Option<usize>,
    last: Option<usize>,
    /// Units of one layer, block by block.
    blocks: String,
}

fn runs_of_layers(shards: &ShardPlan, schedule: &Schedule) -> Vec<LayerRun> {
    let mut layers: Vec<(Option<usize>, String)> = Vec::new();
    for step in schedule.steps() {
        let units = schedule.order()[step].iter().map(|id| shards.unit(*id));
        let may_come = units.filter(|unit| unit.placement != Placement::OwnExperts);
        let names: Vec<&str> = may_come.map(|unit| unit.spec.name.as_str()).collect();
        let Some((layer, _)) = names.first().map(|name| split_name(name)) else { continue };
        let block = names.iter().map(|name| split_name(name).1).collect::<Vec<_>>().join(", ");
        match layers.last_mut() {
            Some((last, blocks)) if *last == layer => *blocks += &format!(" | {block}"),
            _ => layers.push((layer, block)),
        }
    }
    let mut runs: Vec<LayerRun> = Vec::new();
    for (layer, blocks) in layers {
        match runs.last_mut() {
            Some(run) if run.last.is_some() && layer.is_some() && run.blocks == blocks => run.last = layer,
            _ => runs.push(LayerRun { first: layer, last: layer, blocks }),
        }
    }
    runs
}

/// `layers.17.gate_up` is `gate_up` of layer 17.
fn split_name(name: &str) -> (Option<usize>, &str) {
    let of_layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match of_layer.map(|(index, part)| (index.parse().ok(), part)) {
        Some((Some(index), part)) => (Some(index), part),
        _ => (None, name),
    }
}

fn as_json(plan: &RunPlan, balance: Option<Balance>) -> serde_json::Value {
    let dtype = plan.shards.dtype();
    let unit = |id| {
        let shard = plan.shards.unit(id);
        let is_sharded = shard.placement == Placement::Sharded;
        json!({
            "name": shard.spec.name,
            "parameters": shard.spec.num_elements(),
            "bytes": shard.spec.bytes(dtype).0,
            "held": match shard.placement {
                Placement::Resident => "whole",
                Placement::Sharded => "in parts",
                Placement::OwnExperts => "own experts",
            },
            "kept_elements": shard.shard_len,
            "kept_bytes": dtype.size().0 * shard.shard_len as u64,
            "gathered_bytes": if is_sharded { dtype.size().0 * plan.shards.gathered_len(id) as u64 } else { 0 },
        })
    };
    let schedule = &plan.schedules.train;
    let names = |step: std::ops::Range<usize>| -> Vec<&str> {
        schedule.order()[step].iter().map(|id| plan.shards.unit(*id).spec.name.as_str()).collect()
    };
    let way = |way: &Way| {
        let Way { memory, resident, .. } = way;
        json!({
            "keeps": way.keep.to_string(), "experts": way.experts.word(), "runs": way.runs, "lookahead": way.lookahead,
            "resident": {
                "layers": resident.num_layers, "downs": resident.num_downs,
                "embedding": resident.embedding, "head": resident.head,
            },
            "kept": memory.activations.kept.0, "at_work": memory.activations.at_work.0,
            "total": memory.total().0, "fits": memory.fits(), "chosen": *way == plan.way,
            "step_seconds": way.time.map(|time| time.seconds),
            "tokens_per_second": way.time.map(|time| time.tokens_per_second()),
            "exposed_share": way.time.map(|time| time.exposed_share()),
        })
    };
    let memory = &plan.memory;
    json!({
        "world": plan.world_size(),
        "device": if plan.hardware.kind == Kind::Gpu { "cuda" } else { "cpu" },
        "dtype": dtype.to_string(),
        "deterministic": plan.hardware.kind == Kind::Host || plan.choice == Choice::First,
        "parameters": plan.source.config.num_params(),
        "trained_parameters": plan.num_trained(),
        "units": plan.units.units().iter().map(|spec| unit(spec.id)).collect::<Vec<_>>(),
        "lookahead": plan.shards.lookahead(),
        "order": schedule.steps().map(names).collect::<Vec<_>>(),
        "memory": {
            "shard": memory.shard.0, "gathered": memory.gathered.0, "arriving": memory.arriving.0, "trained": memory.trained.0,
            "activations": memory.activations.most().0, "workspace": memory.workspace.0,
            "libraries": memory.libraries.0, "total": memory.total().0,
            "budget": memory.budget.map(|budget| budget.0),
        },
        "ways": plan.ways.iter().map(way).collect::<Vec<_>>(),
        "keeps": plan.settings.keep.to_string(),
        "experts": plan.way.experts.word(),
        "expected_busiest_experts": plan.busiest_share,
        "runs": plan.runs,
        "steps": plan.steps.map(|steps| json!({
            "rows": steps.num_rows, "updates_per_epoch": steps.updates_per_epoch,
            "total": steps.total_steps, "warmup": steps.warmup_steps,
        })),
        "balance": balance.map(|balance| json!({"excess": balance.excess()})),
    })
}

#[cfg(test)]
mod tests {
    use scout_train::machine::Room;

    use super::*;

    #[test]
    fn a_plan_for_less_memory_than_was_written_says_so() {
        let line = |written: &str| {
            let overrides = [format!("device_memory={written}")];
            let config = RunConfig::from_text("run.yaml", "random_weights: true", &overrides, &[]).unwrap().config;
            let room = Room::ForAll(ByteCount(79 << 30));
            let hardware =
                Hardware { world_size: 8, kind: Kind::Gpu, compute: ComputeType::Bf16, room, sees_peers: true };
            let source = ModelSource::find(&config, true).unwrap();
            let summary = summary(&RunPlan::resolve(&config, source, hardware, None, None).unwrap());
            summary.into_iter().find(|line| line.contains("device_memory"))
        };
        let said = "`device_memory` is 80.00 GiB, but only 79.00 GiB are free: planned for those";
        assert_eq!(line("80GiB").unwrap().trim(), said);
        assert_eq!(line("79GiB"), None);
    }
}
