//! What a run remembers from step to step, and what it tells of them: a line of the log, an evaluation, the end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use scout_config::RunConfig;
use scout_core::ByteCount;
use scout_device::{Device, Evenness};
use scout_model::Batch;
use scout_telemetry::{EvalResults, StepRecord, TrainResults};

use crate::error::Result;
use crate::plan::StepsPlan;
use crate::prepare::{Prepared, evaluation_interval};
use crate::recorder::Summary;
use crate::trainer::{StepReport, Trainer};

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

/// Of the steps so far, and of those since the last line of the log.
pub struct Session<'a> {
    config: &'a RunConfig,
    prepared: &'a Prepared,
    steps: StepsPlan,
    evaluates_every: Option<usize>,
    evaluation: Vec<Batch>,
    begun: Instant,
    line_begun: Instant,
    /// What this rank had waited for others when the line began.
    line_waited: Duration,
    losses: Vec<f32>,
    since_line: Vec<StepReport>,
    total_tokens: u64,
    total_flops: f64,
    evaluated: Option<EvalResults>,
}

impl<'a> Session<'a> {
    pub fn begin(
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
            total_tokens: 0,
            total_flops: 0.0,
            evaluated: None,
        })
    }

    pub fn step(&mut self, trainer: &mut Trainer, step: usize) -> Result<()> {
        let model = &self.prepared.plan.source.config;
        let rank = trainer.job.mesh().rank().0;
        let (batches, _) = self.prepared.data.update(step, rank, model.attention_chunk_size)?;
        let report = trainer.step(&batches, step)?;
        self.losses.push(report.loss as f32);
        self.total_tokens += report.num_tokens as u64;
        self.total_flops += self.useful_flops(&report);
        self.since_line.push(report);
        Ok(())
    }

    pub fn logs_after(&self, step: usize) -> bool {
        (step + 1).is_multiple_of(self.config.train.logging_steps) || step + 1 == self.steps.total_steps
    }

    pub fn evaluates_after(&self, step: usize) -> bool {
        self.evaluates_every.is_some_and(|every| (step + 1).is_multiple_of(every) || step + 1 == self.steps.total_steps)
    }

    /// The line for the steps since the last one.
    pub fn take_record(&mut self, step: usize, trainer: &Trainer) -> Result<StepRecord> {
        let seconds = self.line_begun.elapsed().as_secs_f64();
        let num_steps = self.since_line.len() as f64;
        let mean_loss = self.since_line.iter().map(|report| report.loss).sum::<f64>() / num_steps;
        let tokens: u64 = self.since_line.iter().map(|report| report.num_tokens as u64).sum();
        let flops: f64 = self.since_line.iter().map(|report| self.useful_flops(report)).sum();
        let gpu_seconds = seconds * trainer.job.mesh().size() as f64;
        let last = self.since_line.last().copied();
        let waited = trainer.waited()?;
        let record = StepRecord {
            loss: Some(mean_loss as f32),
            grad_norm: last.map(|report| report.grad_norm as f32),
            lr: last.map(|report| report.learning_rate),
            tokens: Some(tokens),
            step_time: Some(seconds / num_steps),
            tok_s_gpu: Some(tokens as f64 / gpu_seconds),
            // Without a meaning on the host, whose best nobody knows.
            mfu: match &trainer.device {
                Device::Cpu => None,
                Device::Cuda(_) => Some(flops / gpu_seconds / PEAK_FLOPS),
            },
            exposed_comm: Some((waited - self.line_waited).as_secs_f64() / seconds),
            busiest_experts: self.since_line.iter().map(|report| report.evenness).sum::<Evenness>().busiest_share(),
            mem_peak: memory_peak(&trainer.device),
            ..self.record(step)
        };
        self.since_line.clear();
        self.line_begun = Instant::now();
        self.line_waited = waited;
        Ok(record)
    }

    pub fn evaluate(&mut self, step: usize, trainer: &Trainer) -> Result<(StepRecord, EvalResults)> {
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

    fn useful_flops(&self, report: &StepReport) -> f64 {
        self.prepared.plan.useful_flops(report.num_tokens, report.attended_pairs)
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

    pub fn finish(self, output_dir: PathBuf, trainer: &Trainer) -> Outcome {
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
            memory_peak: memory_peak(&trainer.device),
            output_dir,
        }
    }
}

/// The most that was in use: of the GPU's memory, or of the host's where it computes.
fn memory_peak(device: &Device) -> Option<ByteCount> {
    match device {
        Device::Cpu => scout_device::host::peak_resident(),
        Device::Cuda(gpu) => Some(gpu.account().peak_total()),
    }
}
