//! The way that a run takes: of all that its configuration leaves, the first that fits; and where none does, what would help.

use scout_comm::gpu::RowsSize;
use scout_config::{self as written, RunConfig};
use scout_core::ByteCount;
use scout_device::cuda::Choice;
use scout_model::ModelConfig;

use crate::error::{Least, Result, TrainError};
use crate::machine::{Hardware, Kind};
use crate::memory::{LargestBatch, PassShape};
use crate::runs::{Largest, Rows};
use crate::ways::{Experts, LOOKAHEAD, MayBe, Resident, Run, WHOLE_LAYER, Way};
use crate::weight_set::WeightSet;

/// A remedy is looked for down to a sixteenth of the batch, or up to sixteen times the ranks.
const MOST_HALVINGS: u32 = 4;

/// What a configuration says of the layers that every rank keeps whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Residency {
    Free,
    Layers(usize),
    Everything,
}

/// The way to take, and all from which it was chosen: they come in the order in which they are to be preferred.
pub fn choose(config: &RunConfig, run: &Run) -> Result<(Way, Vec<Way>)> {
    let residency = residency(config, run.pass.config.num_layers)?;
    let ways = ways(run, residency);
    match ways.iter().find(|way| way.memory.fits()) {
        Some(way) => Ok((*way, ways)),
        None => Err(does_not_fit(config, run, residency)),
    }
}

/// Where tokens and experts may come together. By itself a run lets rows travel only where nothing else than speed changes.
pub fn experts(config: &RunConfig, hardware: &Hardware, (model, trained): (&ModelConfig, &WeightSet)) -> Result<MayBe> {
    let problem = match trained.is_empty() {
        false if hardware.world_size > 1 => Some("weights that are trained".to_string()),
        _ => cannot_stay(model, hardware.world_size, hardware.sees_peers),
    };
    match (config.device.weights, problem) {
        (written::Weights::ExpertResident, Some(problem)) => Err(refused(&problem)),
        (written::Weights::ExpertResident, None) if hardware.world_size > 1 => Ok(MayBe::Only(Experts::Stay)),
        (written::Weights::Auto, None) if is_free_to_choose(config, hardware) => Ok(MayBe::Either),
        _ => Ok(MayBe::Only(Experts::Come)),
    }
}

/// Why so many ranks cannot keep the experts of this model and let rows come, where they cannot. A rank alone has all of them.
pub fn cannot_stay(model: &ModelConfig, world_size: usize, sees_peers: bool) -> Option<String> {
    let num_experts = model.num_experts;
    if world_size == 1 {
        None
    } else if !num_experts.is_multiple_of(world_size) {
        Some(format!("{num_experts} experts, which {world_size} ranks cannot share equally"))
    } else if world_size * (num_experts + 1) > RowsSize::MOST_COUNTS {
        Some(format!(
            "more than {} counts of rows for {num_experts} experts on {world_size} ranks",
            RowsSize::MOST_COUNTS
        ))
    } else if !sees_peers {
        Some("GPUs that cannot be shown each other's memory".to_string())
    } else {
        None
    }
}

pub fn refused(problem: &str) -> TrainError {
    let problem = format!("is `expert-resident`, with {problem}; with `zero3` or `auto` experts are gathered");
    TrainError::Config { key: "weights", problem }
}

/// Where runs must agree bit by bit, memory that was found may not decide who computes what.
fn is_free_to_choose(config: &RunConfig, hardware: &Hardware) -> bool {
    let written::DeviceConfig { deterministic, gather, resident_layers, .. } = config.device;
    let is_on_gpus = hardware.kind == Kind::Gpu && hardware.world_size > 1;
    // Whoever writes how many layers are to be whole means their experts too.
    let is_free = gather != written::Gather::Nccl && resident_layers == written::ResidentLayers::Auto;
    is_on_gpus && !deterministic && is_free
}

fn residency(config: &RunConfig, all: usize) -> Result<Residency> {
    match (config.device.resident_layers, config.device.weights) {
        (written::ResidentLayers::Count(count), _) if count > all => {
            let problem = format!("is {count}, and the model has {all} layers");
            Err(TrainError::Config { key: "resident_layers", problem })
        }
        (_, written::Weights::Resident) => Ok(Residency::Everything),
        (written::ResidentLayers::Count(count), _) => Ok(Residency::Layers(count)),
        (written::ResidentLayers::Auto, _) => Ok(Residency::Free),
    }
}

/// Several GPUs whose memory is known make a choice of what is resident; else that is as written. GPUs that hold everything may
/// merge micro-batches; not where runs must agree bit by bit, for how much memory was found would show in the result.
fn ways(run: &Run, residency: Residency) -> Vec<Way> {
    let is_whole = run.hardware.world_size == 1 || residency == Residency::Everything;
    let written = match residency {
        Residency::Layers(count) => Some(count),
        Residency::Free | Residency::Everything => None,
    };
    let resident = match is_whole {
        true => Resident::everything(run.pass.config.num_layers),
        false => Resident { num_layers: written.unwrap_or(0), ..Resident::NOTHING },
    };
    match run.hardware.kind {
        Kind::Gpu if !is_whole && run.budget.is_some() => run.ways_on_several_gpus(written),
        Kind::Gpu if !is_whole => run.ways_of_keeping(resident, WHOLE_LAYER),
        Kind::Gpu if run.budget.is_some() && run.rows.num_micro_batches > 1 && run.pass.choice == Choice::Timed => {
            run.ways_of_merging(resident, LOOKAHEAD)
        }
        Kind::Gpu | Kind::Host => run.ways_of_keeping(resident, LOOKAHEAD),
    }
}

fn smallest(run: &Run, residency: Residency) -> Way {
    let ways = ways(run, residency);
    ways.into_iter().min_by_key(|way| way.memory.total()).expect("there is a way to hold weights")
}

fn does_not_fit(config: &RunConfig, run: &Run, residency: Residency) -> TrainError {
    let way = smallest(run, residency);
    TrainError::DoesNotFit {
        needed: way.memory.total(),
        budget: way.memory.budget.unwrap_or_default(),
        least: Least {
            keep: way.keep.least,
            runs: way.runs,
            tokens: run.rows.largest_run(way.runs).num_tokens,
            resident_layers: way.resident.num_layers,
            num_layers: run.pass.config.num_layers,
            experts_stay: way.experts == Experts::Stay,
        },
        hint: remedy(config, run, residency),
    }
}

/// What to change so that the run fits: the key that forbids smaller ways, where that is enough; beside it, or without such a
/// key, whatever else is found to be enough.
fn remedy(config: &RunConfig, run: &Run, residency: Residency) -> String {
    let needed = |run: &Run, residency| smallest(run, residency).memory;
    let come = Run { experts: MayBe::Only(Experts::Come), ..*run };
    let (free, as_written) = (needed(run, Residency::Free), needed(run, residency));
    if run.experts == MayBe::Only(Experts::Stay) && needed(&come, residency).fits() {
        return "leave `weights: expert-resident` out: with it each rank needs room for the rows of all".to_string();
    }
    let forbids = match residency {
        Residency::Layers(_) if free.total() < as_written.total() => Some("lower `resident_layers`, or leave it out"),
        Residency::Everything if free.total() < as_written.total() => Some("leave `weights: resident` out"),
        _ => None,
    };
    match forbids {
        Some(key) if free.fits() => key.to_string(),
        Some(key) => format!("{key}; that is not enough: {}", others(config, run, Residency::Free)),
        None => others(config, run, residency),
    }
}

/// Each of them alone makes the run fit.
fn others(config: &RunConfig, run: &Run, residency: Residency) -> String {
    let fits = |run: &Run| smallest(run, residency).memory.fits();
    let (batch, cutoff) = (config.train.per_device_train_batch_size, config.data.cutoff_len);
    let longest = cutoff.min(run.pass.batch.longest_row.max(1));
    let mut remedies = Vec::new();
    if let Some(fewer) = halves(batch).find(|fewer| fits(&with_rows(run, (*fewer, batch), cutoff))) {
        remedies.push(format!("lower `per_device_train_batch_size` to {fewer}"));
    }
    if let Some(shorter) = halves(longest).find(|shorter| fits(&with_rows(run, (batch, batch), *shorter))) {
        remedies.push(format!("lower `cutoff_len` to {shorter}"));
    }
    let world_size = run.hardware.world_size;
    let stay = Run { experts: MayBe::Only(Experts::Stay), ..*run };
    let is_lora = !run.pass.lora.projections.is_empty();
    if run.experts == MayBe::Only(Experts::Come)
        && world_size > 1
        && is_lora
        && may_stay(run, world_size)
        && fits(&stay)
    {
        remedies.push("set `weights: expert-resident`".to_string());
    }
    let can_share = |ranks: &usize| run.experts != MayBe::Only(Experts::Stay) || may_stay(run, *ranks);
    if let Some(more) = doubles(world_size).filter(can_share).find(|more| fits(&with_ranks(run, *more))) {
        remedies.push(format!("use {more} ranks"));
    }
    let needed = smallest(run, residency).memory.total();
    let is_there = run.hardware.memory().is_none_or(|memory| memory >= needed);
    if config.device.device_memory.is_some() && is_there {
        remedies.push("raise `device_memory`".to_string());
    }
    match remedies.is_empty() {
        true => "use devices of more memory".to_string(),
        false => remedies.join(", or "),
    }
}

fn halves(number: usize) -> impl Iterator<Item = usize> {
    (1..=MOST_HALVINGS).map(move |times| number >> times).take_while(|half| *half > 0)
}

fn doubles(number: usize) -> impl Iterator<Item = usize> {
    (1..=MOST_HALVINGS).map(move |times| number << times)
}

/// The same with micro-batches of `fewer` rows in place of `batch`, none of them longer than `cutoff`. Packed or not, a
/// micro-batch then has at most that many tokens.
fn with_rows<'a>(run: &Run<'a>, (fewer, batch): (usize, usize), cutoff: usize) -> Run<'a> {
    let cut = |of: LargestBatch, micro_batches: usize| LargestBatch {
        num_rows: (of.num_rows * fewer).div_ceil(batch),
        num_tokens: of.num_tokens.min(micro_batches.saturating_mul(fewer).saturating_mul(cutoff)),
        longest_row: of.longest_row.min(cutoff),
    };
    let num_micro_batches = run.rows.num_micro_batches;
    let all = |of: Largest| Largest { update: cut(of.update, num_micro_batches), micro_batch: cut(of.micro_batch, 1) };
    let rows = Rows { num_micro_batches, trained: all(run.rows.trained), scored: all(run.rows.scored) };
    let pass = PassShape { batch: rows.largest_run(num_micro_batches), ..run.pass };
    Run { rows, pass, ..*run }
}

fn may_stay(run: &Run, world_size: usize) -> bool {
    cannot_stay(run.pass.config, world_size, run.hardware.sees_peers).is_none()
}

/// The same on more ranks, each of which trains no more than now.
fn with_ranks<'a>(run: &Run<'a>, world_size: usize) -> Run<'a> {
    let experts = match run.experts {
        MayBe::Either if !may_stay(run, world_size) => MayBe::Only(Experts::Come),
        experts => experts,
    };
    Run { hardware: Hardware { world_size, ..run.hardware }, experts, ..*run }
}

/// Memory to plan for: what is written, but no more than there is.
pub fn budget(written: Option<ByteCount>, found: Option<ByteCount>) -> Option<ByteCount> {
    match (written, found) {
        (Some(written), Some(found)) => Some(written.min(found)),
        (written, found) => written.or(found),
    }
}
