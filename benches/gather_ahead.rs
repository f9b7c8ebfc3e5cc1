//! What gathering ahead hides: whole training steps of a sharded model with lookahead 0, 1 and 2, and with all weights
//! held whole, in turn on the same ranks. Ranks are threads of this process, around one board or with TCP streams between
//! them, and compute on as many threads each as `RAYON_NUM_THREADS` says, so that cores are left for transfers. Prints a
//! table and writes nothing unless `--json FILE` is given.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use scout_benches::{Request, Spread, batch, commit, processor};
use scout_comm::{
    Approach, Control, Ending, Introduction, Job, Limits, MeetingPlace, Seat, Through, local_group, meet,
};
use scout_config::RunConfig;
use scout_core::{DType, Mesh, Rank, Token, UnitId, Whereabouts};
use scout_model::Batch;
use scout_shard::{ShardPlan, all_resident, none_resident};
use scout_train::Trainer;
use scout_train::assemble::build;
use scout_train::prepare::{Prepared, prepare};
use scout_train::synth::{SynthRequest, SynthShape, write_folder};
use serde_json::{Value, json};

const NUM_LAYERS: usize = 2;
const NUM_DOCUMENTS: usize = 8;
const DOCUMENT_LEN: usize = 256;
const ROUNDS: usize = 7;
const LORA_RANK: usize = 8;
/// A rank that fails leaves the others waiting this long.
const LIMIT: Duration = Duration::from_secs(300);

/// How the weights come to a step.
const VARIANTS: [Variant; 4] = [Variant::Whole, Variant::Ahead(0), Variant::Ahead(1), Variant::Ahead(2)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// Every rank holds all of them: the floor, where nothing is gathered.
    Whole,
    /// Gathered this many units ahead.
    Ahead(usize),
}

#[derive(Debug, Clone, Copy)]
enum Backend {
    Local,
    Tcp,
}

/// How a rank comes to its place in the job; over streams, all of them at the same time.
type TakeSeat<'a> = Box<dyn FnOnce() -> Result<(Job, Option<Control>)> + Send + 'a>;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let request = Request::read();
    if !request.wants("gather_ahead") {
        return Ok(());
    }
    let world_size: usize = request.setting("ranks").unwrap_or("2").parse()?;
    let folder = tempfile::tempdir()?;
    let bench = Bench::new(folder.path(), world_size)?;
    bench.print_what_runs();
    let mut results = serde_json::Map::new();
    for (name, backend) in [("local", Backend::Local), ("tcp", Backend::Tcp)] {
        if request.setting("backend").is_some_and(|wanted| wanted != name) {
            continue;
        }
        let measured = bench.on_every_rank(backend)?;
        results.insert(name.to_string(), Summary::of(&measured)?.print(name));
        // What one backend took minutes to tell does not depend on the end of the next.
        if let Some(path) = request.setting("json") {
            std::fs::write(path, serde_json::to_string_pretty(&bench.with(&results)?)? + "\n")?;
        }
    }
    Ok(())
}

/// What all ranks and variants share.
struct Bench<'a> {
    folder: &'a Path,
    config: RunConfig,
    world_size: usize,
    num_threads: usize,
    sharded: Prepared,
    whole: Prepared,
}

/// One step as all ranks together saw it.
#[derive(Debug, Clone, Copy)]
struct Step {
    variant: Variant,
    seconds: f64,
    /// Time blocked for other ranks.
    waited: f64,
    /// Of loss and gradient norm.
    bits: [u64; 2],
}

impl<'a> Bench<'a> {
    fn new(folder: &'a Path, world_size: usize) -> Result<Bench<'a>> {
        let shape = SynthShape::Small;
        write_folder(folder, &SynthRequest { shape, num_layers: Some(NUM_LAYERS), dtype: DType::F32, seed: 1 })?;
        let path = folder.display();
        let text = format!(
            "model_name_or_path: {path}\ndataset: toy_messages\ndataset_dir: {path}/data\ntemplate: llama4\n\
             output_dir: {path}/run\nlora_rank: {LORA_RANK}\nlora_target: all\n"
        );
        let config = RunConfig::from_text("bench.yaml", &text, &[], &[])?.config;
        let prepared = |is_resident: fn(UnitId) -> bool| -> Result<Prepared> {
            let mut prepared = prepare(&config, world_size)?;
            let plan = &mut prepared.plan;
            plan.shards = ShardPlan::new(plan.units.units(), world_size, &is_resident, 0);
            // A whole step that changes no weight: every one can be compared with every other.
            plan.settings.learning_rate.peak = 0.0;
            Ok(prepared)
        };
        let (sharded, whole) = (prepared(none_resident)?, prepared(all_resident)?);
        let num_threads = candle_core::utils::get_num_threads();
        Ok(Bench { folder, config, world_size, num_threads, sharded, whole })
    }

    fn num_params(&self) -> u64 {
        self.sharded.plan.source.config.num_params()
    }

    fn gathered_bytes(&self) -> u64 {
        let plan = &self.sharded.plan;
        let units = plan.schedules.train.order().iter();
        units.map(|unit| DType::F32.size().0 * plan.shards.gathered_len(*unit) as u64).sum()
    }

    /// Results together with what they are results of.
    fn with(&self, results: &serde_json::Map<String, Value>) -> Result<Value> {
        let (threads, ranks) = (self.num_threads, self.world_size);
        let command = "cargo bench -p scout-benches -- gather_ahead";
        Ok(json!({
            "benchmark": "gather_ahead", "host": processor(), "cores": thread::available_parallelism()?.get(),
            "gpus": 0, "ranks": ranks, "threads_per_rank": threads, "layers": NUM_LAYERS,
            "batch_per_rank": NUM_DOCUMENTS, "seq": DOCUMENT_LEN, "parameters": self.num_params(),
            "gathered_bytes_per_step": self.gathered_bytes(), "rounds": ROUNDS, "commit": commit(),
            "command": format!("RAYON_NUM_THREADS={threads} {command} --ranks {ranks} --json FILE"),
            "spread": ["min", "median", "max"], "results": results,
        }))
    }

    fn print_what_runs(&self) {
        println!(
            "gather ahead, {} parameters, {} tokens a rank, {} ranks with {} threads each, {:.0} MB gathered a step",
            self.num_params(),
            NUM_DOCUMENTS * DOCUMENT_LEN,
            self.world_size,
            self.num_threads,
            self.gathered_bytes() as f64 / 1e6
        );
    }

    /// The steps of all rounds, on ranks that are threads.
    fn on_every_rank(&self, backend: Backend) -> Result<Vec<Step>> {
        let place = &MeetingPlace::Loopback { publish: self.folder.join("address"), token: Token::generate()? };
        let seats: Vec<TakeSeat> = match backend {
            Backend::Local => {
                let jobs = local_group(self.world_size, LIMIT).into_iter().map(Job::over);
                jobs.map(|job| Box::new(move || Ok((job, None))) as TakeSeat).collect()
            }
            Backend::Tcp => {
                let meshes = (0..self.world_size).filter_map(|rank| Mesh::new(Rank(rank), self.world_size));
                meshes.map(|mesh| Box::new(move || seat(place, mesh)) as TakeSeat).collect()
            }
        };
        let of_ranks: Vec<Vec<Step>> = thread::scope(|scope| {
            let ranks: Vec<_> = seats.into_iter().map(|seat| scope.spawn(move || self.rank(seat))).collect();
            ranks.into_iter().map(|rank| rank.join().map_err(|_| "a rank panicked")?).collect::<Result<_>>()
        })?;
        Ok(together(&of_ranks))
    }

    fn rank(&self, take_seat: TakeSeat) -> Result<Vec<Step>> {
        let (job, control) = take_seat()?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.num_threads).build()?;
        let steps = pool.install(|| self.steps(&job))?;
        // Streams are written empty before the rank says goodbye.
        drop(job);
        control.into_iter().for_each(Control::leave);
        Ok(steps)
    }

    /// Every variant in every round, forth and back, so that what drifts with time touches all alike.
    fn steps(&self, job: &Job) -> Result<Vec<Step>> {
        let mut sharded = build(&self.config, &self.sharded, job)?;
        let mut whole = build(&self.config, &self.whole, job)?;
        let batch = batch(NUM_DOCUMENTS, DOCUMENT_LEN, self.sharded.plan.source.config.attention_chunk_size)?;
        let batches = [batch];
        let mut steps = Vec::new();
        for round in 0..=ROUNDS {
            let mut variants = VARIANTS;
            if round % 2 == 1 {
                variants.reverse();
            }
            for variant in variants {
                let trainer = match variant {
                    Variant::Whole => &mut whole,
                    Variant::Ahead(lookahead) => {
                        let units = self.sharded.plan.units.units();
                        sharded.plan = ShardPlan::new(units, self.world_size, &none_resident, lookahead);
                        &mut sharded
                    }
                };
                let step = step(trainer, &batches, variant)?;
                // The first round pays for pages and threads.
                if round > 0 {
                    steps.push(step);
                }
            }
        }
        Ok(steps)
    }
}

fn step(trainer: &mut Trainer, batches: &[Batch], variant: Variant) -> Result<Step> {
    let job = trainer.job.clone();
    job.comm.barrier()?;
    let (begun, before) = (Instant::now(), job.comm.waited());
    let report = trainer.step(batches, 0)?;
    let (seconds, waited) = (begun.elapsed().as_secs_f64(), (job.comm.waited() - before).as_secs_f64());
    Ok(Step { variant, seconds, waited, bits: [report.loss.to_bits(), report.grad_norm.to_bits()] })
}

/// A step is over when its slowest rank is; what ranks waited is their mean.
fn together(of_ranks: &[Vec<Step>]) -> Vec<Step> {
    let merged = |index: usize| {
        let ranks = of_ranks.iter().map(|steps| steps[index]);
        Step {
            seconds: ranks.clone().map(|step| step.seconds).fold(0.0, f64::max),
            waited: ranks.clone().map(|step| step.waited).sum::<f64>() / of_ranks.len() as f64,
            ..of_ranks[0][index]
        }
    };
    let expected = of_ranks[0][0].bits;
    for step in of_ranks.iter().flatten() {
        assert_eq!(step.bits, expected, "{:?} changed the loss or the gradient", step.variant);
    }
    (0..of_ranks[0].len()).map(merged).collect()
}

/// Step times and waits of each variant, and of round by round the time of lookahead 2 over that of lookahead 0.
struct Summary {
    rows: Vec<(Variant, Spread, Spread)>,
    ratio: Spread,
    loss: f64,
}

impl Summary {
    fn of(steps: &[Step]) -> Result<Summary> {
        let of = |variant: Variant| steps.iter().filter(move |step| step.variant == variant);
        let spread = |values: Vec<f64>| Spread::of(values).ok_or("no rounds");
        let mut rows = Vec::new();
        for variant in VARIANTS {
            let seconds = spread(of(variant).map(|step| step.seconds).collect())?;
            let exposed = spread(of(variant).map(|step| step.waited / step.seconds).collect())?;
            rows.push((variant, seconds, exposed));
        }
        let pairs = of(Variant::Ahead(2)).zip(of(Variant::Ahead(0)));
        let ratio = spread(pairs.map(|(two, none)| two.seconds / none.seconds).collect())?;
        Ok(Summary { rows, ratio, loss: f64::from_bits(steps[0].bits[0]) })
    }

    fn print(&self, backend: &str) -> Value {
        let numbers = |values: Spread| json!([values.min, values.median, values.max]);
        println!(
            "\n{backend:<22} {:>9} {:>9} {:>9}   {:>7} {:>7} {:>7}",
            "step (s)", "median", "max", "exposed", "median", "max"
        );
        let mut result = serde_json::Map::new();
        for (variant, seconds, exposed) in &self.rows {
            let name = match variant {
                Variant::Whole => "nothing gathered".to_string(),
                Variant::Ahead(lookahead) => format!("lookahead {lookahead}"),
            };
            print!("{name:<22} {:>9.4} {:>9.4} {:>9.4}", seconds.min, seconds.median, seconds.max);
            let [min, median, max] = [exposed.min, exposed.median, exposed.max].map(|share| 100.0 * share);
            println!("   {min:>6.1}% {median:>6.1}% {max:>6.1}%");
            result.insert(name, json!({ "step_s": numbers(*seconds), "exposed_share": numbers(*exposed) }));
        }
        println!(
            "{:<22} {:>9.4} {:>9.4} {:>9.4}",
            "lookahead 2 against 0", self.ratio.min, self.ratio.median, self.ratio.max
        );
        println!("loss {} in all of them, on all ranks", self.loss);
        result.insert("lookahead_2_to_0".to_string(), numbers(self.ratio));
        result.insert("loss".to_string(), json!(self.loss));
        Value::Object(result)
    }
}

fn seat(place: &MeetingPlace, mesh: Mesh) -> Result<(Job, Option<Control>)> {
    let introduction = Introduction {
        version: env!("CARGO_PKG_VERSION").to_string(),
        config_digest: [0; 32],
        model_digest: [0; 32],
        host: "here".to_string(),
        pid: mesh.rank().0 as u32,
    };
    // Ranks are threads here, so nothing may end the process.
    let limits = Limits { init_timeout: LIMIT, hang_limit: Some(LIMIT), ending: Ending::calling(|_| {}, |_| {}) };
    let approach = Approach { place: place.clone(), mesh, introduction, limits, through: Through::Streams };
    let Seat { job, control, .. } = meet(&approach, Arc::new(Whereabouts::new(None)))?;
    Ok((job, Some(control)))
}
