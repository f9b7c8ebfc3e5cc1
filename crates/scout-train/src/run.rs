//! A training run from start to end: load, step, log, evaluate, save. Each rank runs this; the first one speaks and
//! writes files.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scout_checkpoint::{LoadedAdapter, ModelFolder};
use scout_comm::gpu::Wish;
use scout_comm::{Job, RoutedRows};
use scout_config::{Gather, RunConfig};
use scout_core::{ByteCount, Phase, UnitSpec};
use scout_device::{Account, Device, Evenness};
use scout_model::{LoraLayout, Model};
use scout_shard::{ShardPlan, ShardStore};
use scout_telemetry::{EvalResults, Progress, StepRecord, TrainResults};

use crate::adapter::{AdapterState, initial_values};
use crate::attention_plans::Sizes;
use crate::error::{Result, TrainError};
use crate::gpu_store::GpuRoom;
use crate::load::Reading;
use crate::machine::Machine;
use crate::plan::{RunPlan, StepsPlan};
use crate::prepare::{Prepared, RunData, evaluation_interval};
use crate::readers::{Progressed, Readers, with_signs_of_life};
use crate::recorder::{Recorder, Summary};
use crate::trained_weights::TrainedWeights;
use crate::trainer::{Seated, StepReport, Trainer};
use crate::{attention_plans, gpu_weights, load, recorder, save, synth};

/// Operations in bf16 a second of an H100 or H200 on paper, of which `mfu` is the share that was useful.
const PEAK_FLOPS: f64 = 989.5e12;

/// What a finished run can tell.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Loss of every step.
    pub losses: Vec<f32>,
    pub summary: Summary,
    pub memory_peak: Option<ByteCount>,
    pub output_dir: PathBuf,
}

/// What a trainer is put together from, beside weights.
#[derive(Clone, Copy)]
struct Parts<'a> {
    config: &'a RunConfig,
    plan: &'a RunPlan,
    machine: &'a Machine,
    /// The adapter that training goes on from.
    start: Option<&'a LoadedAdapter>,
}

impl<'a> Parts<'a> {
    fn of(config: &'a RunConfig, prepared: &'a Prepared) -> Parts<'a> {
        let Prepared { plan, machine, start, .. } = prepared;
        Parts { config, plan, machine, start: start.as_ref() }
    }

    /// A GPU keeps an account of its own, in which weights, adapter and activations stand.
    fn account(&self) -> Account {
        match &self.machine.device {
            Device::Cpu => Account::new(self.config.device.device_memory),
            Device::Cuda(gpu) => gpu.account().clone(),
        }
    }
}

/// Trains as `prepared` says and leaves the run folder behind. `progress` is silent on all ranks but the first. What
/// ends one rank ends all of them, with the same reason.
pub fn run(config: &RunConfig, prepared: Prepared, job: &Job, progress: &mut Progress) -> Result<Outcome> {
    let rank = job.mesh().rank();
    run_on_this_rank(config, &prepared, job, progress)
        .inspect(|_| prepared.machine.leave())
        .inspect_err(|error| job.comm.abort(&format!("rank {rank}: {}", error.with_causes())))
}

fn run_on_this_rank(config: &RunConfig, prepared: &Prepared, job: &Job, progress: &mut Progress) -> Result<Outcome> {
    let recorder = match job.mesh().is_first() {
        true => Some(Recorder::create(config, progress)?),
        false => None,
    };
    job.whereabouts.enter(Phase::Load);
    let parts = Parts::of(config, prepared);
    let account = parts.account();
    let walked = read_and_prepare(parts, &prepared.data, job, &account, progress)?;
    let mut trainer = assemble(parts, job, account, walked)?;
    let outcome = train(config, prepared, &mut trainer, (recorder, progress));
    if let Err(TrainError::NotANumber { .. }) = &outcome {
        // All ranks come to this at the same step: what they have begun to gather ends first, as after a good end.
        let _ = trainer.leave();
    }
    outcome
}

fn train(
    config: &RunConfig,
    prepared: &Prepared,
    trainer: &mut Seated,
    (mut recorder, progress): (Option<Recorder>, &mut Progress),
) -> Result<Outcome> {
    let steps = prepared.plan.steps.expect("a prepared run knows its steps");
    let mut session = Session::begin(config, prepared, steps, trainer)?;
    progress.begin(0, steps.total_steps as u64);
    for step in 0..steps.total_steps {
        session.step(trainer, step)?;
        if session.logs_after(step) {
            let record = session.take_record(step, trainer)?;
            if let Some(recorder) = &mut recorder {
                recorder.logged(&record, progress)?;
            }
        }
        if session.evaluates_after(step) {
            trainer.job.whereabouts.enter(Phase::Evaluate);
            let (record, results) = session.evaluate(step, trainer)?;
            if let Some(recorder) = &mut recorder {
                recorder.evaluated(&record, results, progress)?;
            }
        }
        progress.advance(step as u64 + 1);
    }
    progress.finish();
    let outcome = session.finish(recorder::folder_of(config)?.to_path_buf(), memory_peak(&trainer.device));
    trainer.job.whereabouts.enter(Phase::Save);
    save::save(config, prepared, trainer, &outcome.output_dir)?;
    if let Some(recorder) = recorder {
        recorder.finish(config, &outcome.summary)?;
    }
    trainer.job.comm.barrier()?; // nobody leaves before the result is on disk
    trainer.leave()?;
    Ok(outcome)
}

/// Reads this rank's weights while attention's plans are made: one waits for the disk, the other for a compiler.
fn read_and_prepare(
    parts: Parts,
    data: &RunData,
    job: &Job,
    account: &Account,
    progress: &mut Progress,
) -> Result<(ShardPlan, ShardStore)> {
    let Parts { config, plan, machine, .. } = parts;
    let (read, made) = std::thread::scope(|scope| {
        let sizes = || Sizes::of_run(config, plan, data, job.mesh().rank().0);
        let making = scope.spawn(move || attention_plans::prepare(machine, &plan.source.config, sizes));
        let tell = |progressed: Progressed| progress.reading(progressed.done, progressed.in_all);
        let tell = with_signs_of_life(&job.whereabouts, tell);
        let read = read_weights(parts, job, account, &mut Readers::default().telling(tell));
        (read, making.join().expect("a panic is on its way out already"))
    });
    progress.finish_reading();
    let Weights { walked, reading, said } = read?;
    if let Some(reading) = reading {
        progress.say(&reading.on_all_ranks(&*job.comm)?)?;
    }
    for line in said.into_iter().chain(made?) {
        progress.say(&line)?;
    }
    Ok(walked)
}

/// Reads this rank's weights and puts the trainer together.
pub fn build(config: &RunConfig, prepared: &Prepared, job: &Job) -> Result<Seated> {
    Ok(build_parts(Parts::of(config, prepared), job)?.0)
}

/// The same for a plan without data, with random weights: what a benchmark runs on. Beside it what there is to say to people.
pub fn build_random(config: &RunConfig, plan: &RunPlan, machine: &Machine, job: &Job) -> Result<(Seated, Vec<String>)> {
    let mut config = config.clone();
    config.model.random_weights = true;
    build_parts(Parts { config: &config, plan, machine, start: None }, job)
}

fn build_parts(parts: Parts, job: &Job) -> Result<(Seated, Vec<String>)> {
    let account = parts.account();
    let Weights { walked, said, .. } = read_weights(parts, job, &account, &mut Readers::default())?;
    Ok((assemble(parts, job, account, walked)?, said))
}

/// The most that was in use: of the GPU's memory, or of the host's where it computes.
fn memory_peak(device: &Device) -> Option<ByteCount> {
    match device {
        Device::Cpu => scout_device::host::peak_resident(),
        Device::Cuda(gpu) => Some(gpu.account().peak_total()),
    }
}

/// What this rank keeps, with the plan to walk it by; what was read for it, which is nothing where weights are random; and how
/// it will be gathered, for people.
struct Weights {
    walked: (ShardPlan, ShardStore),
    reading: Option<Reading>,
    said: Vec<String>,
}

fn read_weights(parts: Parts, job: &Job, account: &Account, readers: &mut Readers) -> Result<Weights> {
    let (Parts { config, plan, machine, .. }, rank) = (parts, job.mesh().rank());
    let files = match (&plan.source.folder, config.model.random_weights) {
        (Some(folder), false) => Some(ModelFolder::open(folder)?),
        _ => None,
    };
    let (mut begun, mut took, seed) = (Instant::now(), None, config.train.seed);
    let on_host = |store| ((plan.shards.clone(), store), Vec::new());
    let (walked, said) = match (&machine.device, &files) {
        (Device::Cpu, Some(files)) => on_host(load::weights_by(files, &plan.shards, rank, account, readers)?),
        (Device::Cpu, None) => on_host(random_weights(plan, seed, rank, account)?),
        (Device::Cuda(gpu), files) => {
            let walked = (&plan.shards, &plan.schedules);
            let exposed = plan.way.time.map_or(0.0, |time| time.exposed_share());
            let mut room = GpuRoom::new(walked, gpu, (wish(config), exposed), job)?;
            let said = std::mem::take(&mut room.said);
            begun = Instant::now(); // trials are over
            let kept = match files {
                Some(files) => gpu_weights::read(files, &plan.shards, rank, (gpu, room.arena()), readers)?,
                None => gpu_weights::random(&plan.shards, rank, seed, (gpu, room.arena()))?,
            };
            took = Some(begun.elapsed()); // mapping what others have read waits for them
            (room.store(kept)?, said)
        }
    };
    let took = took.unwrap_or(begun.elapsed());
    let reading = files.map(|files| Reading { bytes: files.bytes_read(), took });
    Ok(Weights { walked, reading, said })
}

fn wish(config: &RunConfig) -> Wish {
    match config.device.gather {
        Gather::Auto => Wish::Auto,
        Gather::Copy => Wish::Copy,
        Gather::Nccl => Wish::Nccl,
    }
}

fn assemble(parts: Parts, job: &Job, account: Account, (shards, store): (ShardPlan, ShardStore)) -> Result<Seated> {
    let Parts { config, plan, machine, start } = parts;
    let mesh = job.mesh();
    let model_config = &plan.source.config;
    let adapter = match start {
        Some(start) => load::adapter_state(start, model_config, mesh, &account)?,
        None => {
            let layout = Arc::new(LoraLayout::new(model_config, &plan.lora));
            let values = initial_values(&layout, config.train.seed);
            AdapterState::new(layout, values, mesh, &account)?
        }
    };
    let weights = TrainedWeights::new(plan.weights.clone(), &shards, &account)?;
    let adapter = adapter.to_machine(machine)?;
    let device = machine.device.clone();
    let connect = || RoutedRows::connect(&device, job, plan.rows_size());
    let rows = shards.leaves_experts().then(connect).transpose()?;
    let model = Model::new(model_config, &plan.units)?.to_device(&device)?;
    let (schedules, job, settings) = (plan.schedules.clone(), job.clone(), plan.settings);
    let ahead = Mutex::default();
    let trainer = Trainer {
        model,
        plan: shards,
        store,
        rows,
        adapter,
        weights,
        job,
        device,
        account,
        schedules,
        settings,
        ahead,
    };
    Ok(trainer.into())
}

fn random_weights(plan: &RunPlan, seed: u64, rank: scout_core::Rank, account: &Account) -> Result<ShardStore> {
    ShardStore::load(&plan.shards, rank, account, &mut |unit: &UnitSpec, range, out: &mut [f32]| {
        load::each_param(unit, range, out, |param, range, out| {
            synth::fill(seed, param, range, out);
            Ok(())
        })
    })
}

/// The loop's memory: sums since the last line of the log.
struct Session<'a> {
    config: &'a RunConfig,
    prepared: &'a Prepared,
    steps: StepsPlan,
    evaluates_every: Option<usize>,
    evaluation: Vec<scout_model::Batch>,
    begun: Instant,
    line_begun: Instant,
    /// What this rank had waited for others when the line began.
    line_waited: Duration,
    losses: Vec<f32>,
    since_line: Vec<StepReport>,
    tokens_since_line: u64,
    flops_since_line: f64,
    total_tokens: u64,
    total_flops: f64,
    evaluated: Option<EvalResults>,
}

impl<'a> Session<'a> {
    fn begin(
        config: &'a RunConfig,
        prepared: &'a Prepared,
        steps: StepsPlan,
        trainer: &Trainer,
    ) -> Result<Session<'a>> {
        let evaluates_every = evaluation_interval(config, steps.updates_per_epoch);
        let mesh = trainer.job.mesh();
        let evaluation = match evaluates_every {
            None => Vec::new(),
            Some(_) => prepared.data.evaluation(
                config.train.per_device_train_batch_size,
                mesh.size(),
                mesh.rank().0,
                prepared.plan.source.config.attention_chunk_size,
            )?,
        };
        let now = Instant::now();
        Ok(Session {
            config,
            prepared,
            steps,
            evaluates_every,
            evaluation,
            begun: now,
            line_begun: now,
            line_waited: trainer.waited()?,
            losses: Vec::with_capacity(steps.total_steps),
            since_line: Vec::new(),
            tokens_since_line: 0,
            flops_since_line: 0.0,
            total_tokens: 0,
            total_flops: 0.0,
            evaluated: None,
        })
    }

    fn step(&mut self, trainer: &mut Trainer, step: usize) -> Result<()> {
        let model = &self.prepared.plan.source.config;
        let rank = trainer.job.mesh().rank().0;
        let (batches, _) = self.prepared.data.update(step, rank, model.attention_chunk_size)?;
        let report = trainer.step(&batches, step)?;
        self.losses.push(report.loss as f32);
        self.tokens_since_line += report.num_tokens as u64;
        self.total_tokens += report.num_tokens as u64;
        let flops = self.prepared.plan.useful_flops(report.num_tokens, report.attended_pairs);
        self.total_flops += flops;
        self.flops_since_line += flops;
        self.since_line.push(report);
        Ok(())
    }

    fn logs_after(&self, step: usize) -> bool {
        (step + 1).is_multiple_of(self.config.train.logging_steps) || step + 1 == self.steps.total_steps
    }

    fn evaluates_after(&self, step: usize) -> bool {
        self.evaluates_every.is_some_and(|every| (step + 1).is_multiple_of(every) || step + 1 == self.steps.total_steps)
    }

    /// The line for the steps since the last one.
    fn take_record(&mut self, step: usize, trainer: &Trainer) -> Result<StepRecord> {
        let seconds = self.line_begun.elapsed().as_secs_f64();
        let num_steps = self.since_line.len() as f64;
        let mean_loss = self.since_line.iter().map(|report| report.loss).sum::<f64>() / num_steps;
        let last = self.since_line.last().copied();
        let waited = trainer.waited()?;
        let record = StepRecord {
            loss: Some(mean_loss as f32),
            grad_norm: last.map(|report| report.grad_norm as f32),
            lr: last.map(|report| report.learning_rate),
            tokens: Some(self.tokens_since_line),
            step_time: Some(seconds / num_steps),
            tok_s_gpu: Some(self.tokens_since_line as f64 / seconds / trainer.job.mesh().size() as f64),
            // Without a meaning on the host, whose best nobody knows.
            mfu: match &trainer.device {
                Device::Cpu => None,
                Device::Cuda(_) => {
                    Some(self.flops_since_line / seconds / trainer.job.mesh().size() as f64 / PEAK_FLOPS)
                }
            },
            exposed_comm: Some((waited - self.line_waited).as_secs_f64() / seconds),
            busiest_experts: self.since_line.iter().map(|report| report.evenness).sum::<Evenness>().busiest_share(),
            mem_peak: memory_peak(&trainer.device),
            ..self.record(step)
        };
        self.since_line.clear();
        self.tokens_since_line = 0;
        self.flops_since_line = 0.0;
        self.line_begun = Instant::now();
        self.line_waited = waited;
        Ok(record)
    }

    fn evaluate(&mut self, step: usize, trainer: &Trainer) -> Result<(StepRecord, EvalResults)> {
        let (begun, waited) = (Instant::now(), trainer.waited()?);
        let loss = trainer.evaluate(&self.evaluation)?;
        let record = StepRecord { eval_loss: Some(loss as f32), ..self.record(step) };
        let seconds = begun.elapsed().as_secs_f64();
        let results = EvalResults {
            epoch: record.epoch.unwrap_or_default(),
            eval_loss: loss,
            eval_runtime: seconds,
            eval_samples_per_second: self.prepared.data.held_out.len() as f64 / seconds,
            eval_steps_per_second: self.evaluation.len() as f64 / seconds,
        };
        // Time spent on held-out rows is nobody's step time.
        self.line_begun += begun.elapsed();
        self.line_waited += trainer.waited()? - waited;
        self.evaluated = Some(results);
        Ok((record, results))
    }

    fn record(&self, step: usize) -> StepRecord {
        StepRecord {
            current_steps: step as u64 + 1,
            total_steps: self.steps.total_steps as u64,
            epoch: Some((step + 1) as f64 / self.steps.updates_per_epoch as f64),
            elapsed: self.begun.elapsed(),
            total_tokens: Some(self.total_tokens),
            ..StepRecord::default()
        }
    }

    fn finish(self, output_dir: PathBuf, memory_peak: Option<ByteCount>) -> Outcome {
        let seconds = self.begun.elapsed().as_secs_f64();
        let num_steps = self.steps.total_steps as f64;
        let epoch = num_steps / self.steps.updates_per_epoch as f64;
        let train = TrainResults {
            epoch,
            num_input_tokens_seen: self.total_tokens,
            total_flos: self.total_flops,
            train_loss: self.losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / num_steps,
            train_runtime: seconds,
            train_samples_per_second: self.prepared.data.examples.len() as f64 * epoch / seconds,
            train_steps_per_second: num_steps / seconds,
        };
        Outcome {
            losses: self.losses,
            summary: Summary { train, eval: self.evaluated, total_steps: self.steps.total_steps as u64 },
            memory_peak,
            output_dir,
        }
    }
}
