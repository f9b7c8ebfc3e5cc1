//! Steps, timed: how long each took, what it computed, and what the device said meanwhile.

use std::time::{Duration, Instant};

use scout_comm::Job;
use scout_device::cuda::Reading;
use scout_device::{Device, Evenness};
use scout_kernels::selftest::meter::mean_reading;
use scout_telemetry::grouped;
use scout_train::StepReport;
use scout_train::machine::Machine;
use scout_train::step_bench::{StepBench, Timed};

use super::sampler::{Sampled, Sampler};
use super::spread::spread;
use super::told::goes_on;

/// When to stop. Every rank does as many steps as the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// About so long, and three steps at least.
    Time(Duration),
    Steps(usize),
    /// So many steps of a whole job, without pauses between them.
    WithoutPause(usize),
}

/// The steps of one rank.
pub struct Outcome {
    pub reports: Vec<StepReport>,
    /// Of each step; none of a job without pauses, in which the host queues a step while the GPU is still at the one before.
    pub step_seconds: Vec<f64>,
    /// See [`drift`].
    pub drift: Option<f64>,
    /// Shortest, median, longest, in seconds, where each step is known.
    pub spread: Option<[f64; 3]>,
    pub num_tokens: usize,
    pub flops: f64,
    /// All of them together.
    pub seconds: f64,
    /// Of it, while this rank stood still for others.
    pub waited: Duration,
    /// On average; none on the host and without NVML.
    pub reading: Option<Reading>,
    /// In percent of all of them; none where the GPU does not give it.
    pub busy_multiprocessors: Option<f64>,
    /// Whether asking the driver for memory would have been an error.
    pub is_steady: bool,
}

/// Every rank calls it. With `is_steady` all sizes were met before, so that steps find all memory they need in the arenas.
pub fn time(
    bench: &mut StepBench,
    machine: &Machine,
    (limit, is_steady): (Limit, bool),
    job: &Job,
) -> anyhow::Result<Outcome> {
    let gpu = match &machine.device {
        Device::Cpu => None,
        Device::Cuda(gpu) => Some(gpu),
    };
    let is_steady = is_steady && gpu.is_some();
    let _steady = gpu.filter(|_| is_steady).map(|gpu| gpu.steady_step());
    bench.finish()?;
    job.comm.barrier()?; // all begin together
    let sampler = gpu.map(Sampler::start).transpose()?;
    let (mut steps, mut timed, mut waited) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    let begun = Instant::now();
    let mut last_end = begun;
    loop {
        let wants = match limit {
            Limit::Time(limit) => goes_on(job, timed < limit || steps.len() < 3)?,
            Limit::Steps(count) | Limit::WithoutPause(count) => steps.len() < count,
        };
        if !wants {
            break;
        }
        let before = bench.waited()?;
        let report = step(bench, limit)?;
        waited += bench.waited()? - before;
        // The link goes on between steps, while ranks tell each other whether there will be another: no time is left out.
        let end = Instant::now();
        let time = end - std::mem::replace(&mut last_end, end);
        timed += time;
        steps.push(Timed { report, time });
    }
    if let Limit::WithoutPause(_) = limit {
        bench.finish()?;
        timed = begun.elapsed();
    }
    let Sampled { readings, busy_multiprocessors } = sampler.map(Sampler::finish).unwrap_or_default();
    let step_seconds: Vec<f64> = match limit {
        Limit::WithoutPause(_) => Vec::new(),
        Limit::Time(_) | Limit::Steps(_) => steps.iter().map(|step| step.time.as_secs_f64()).collect(),
    };
    Ok(Outcome {
        drift: drift(&step_seconds),
        spread: (!step_seconds.is_empty()).then(|| spread(step_seconds.iter().copied())),
        step_seconds,
        num_tokens: steps.iter().map(|step| step.report.num_tokens).sum(),
        flops: steps.iter().map(|step| bench.useful_flops(&step.report)).sum(),
        reports: steps.into_iter().map(|step| step.report).collect(),
        seconds: timed.as_secs_f64(),
        waited,
        reading: mean_reading(&readings),
        busy_multiprocessors,
        is_steady,
    })
}

/// By how much the median of the last quarter is above that of the first, as a share. Unknown of few.
fn drift(seconds: &[f64]) -> Option<f64> {
    const FEW: usize = 16;
    let quarter = seconds.len() / 4;
    let median = |of: &[f64]| spread(of.iter().copied())[1];
    (seconds.len() >= FEW).then(|| median(&seconds[seconds.len() - quarter..]) / median(&seconds[..quarter]) - 1.0)
}

fn step(bench: &mut StepBench, limit: Limit) -> anyhow::Result<StepReport> {
    match limit {
        Limit::WithoutPause(_) => Ok(bench.queue()?),
        Limit::Time(_) | Limit::Steps(_) => Ok(bench.step()?.report),
    }
}

impl Outcome {
    pub fn num_steps(&self) -> usize {
        self.reports.len()
    }

    /// The median, or the average where only all steps together were timed.
    pub fn seconds_a_step(&self) -> f64 {
        self.spread.map_or(self.seconds / self.num_steps() as f64, |[_, median, _]| median)
    }

    pub fn tokens_per_second(&self, world_size: usize) -> f64 {
        self.num_tokens as f64 / self.seconds / world_size as f64
    }

    pub fn useful_tflops(&self, world_size: usize) -> f64 {
        self.flops / self.seconds / world_size as f64 / 1e12
    }

    /// The f32 of each loss: equal where two runs computed the same.
    pub fn loss_bits(&self) -> Vec<String> {
        self.reports.iter().map(|report| format!("{:08x}", (report.loss as f32).to_bits())).collect()
    }

    /// See [`scout_telemetry::StepRecord::busiest_experts`].
    pub fn busiest_experts(&self) -> Option<f64> {
        self.reports.iter().map(|report| report.evenness).sum::<Evenness>().busiest_share()
    }

    pub fn lines(&self, world_size: usize) -> Vec<String> {
        let milliseconds = 1e3 * self.seconds_a_step();
        let a_step = match self.spread.map(|spread| spread.map(|seconds| seconds * 1e3)) {
            Some([shortest, _, longest]) => {
                format!("a step takes {milliseconds:.2} ms, {shortest:.2} at least and {longest:.2} at most")
            }
            None => format!("a step takes {milliseconds:.2} ms on average; without pauses no step is timed by itself"),
        };
        let mut lines = vec![
            format!(
                "{} steps: {} tokens/s, {:.1} useful TFLOP/s{}",
                self.num_steps(),
                grouped(self.tokens_per_second(world_size) as u64),
                self.useful_tflops(world_size),
                if world_size == 1 { "" } else { " on each rank" },
            ),
            a_step,
        ];
        if let Some(busiest) = self.busiest_experts() {
            lines.push(format!("the busiest rank's experts had {busiest:.2} times an even share of each layer's rows"));
        }
        if let Some(drift) = self.drift {
            lines.push(format!("the last quarter of the steps took {:+.2} % against the first", 100.0 * drift));
        }
        if let Some(Reading { sm_clock_megahertz, power_watts, .. }) = self.reading {
            lines.push(format!("SM clock {sm_clock_megahertz} MHz, {power_watts:.0} W on average while they ran"));
        }
        if self.is_steady {
            lines.push("the driver was not asked for memory meanwhile".to_string());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_that_of_the_last_quarter_and_one_slow_step_is_none() {
        let mut seconds = vec![1.0; 20];
        seconds[0] = 9.0;
        assert_eq!(drift(&seconds), Some(0.0));
        seconds[15..].fill(1.25);
        assert_eq!(drift(&seconds), Some(0.25));
        assert_eq!(drift(&seconds[..15]), None);
    }
}
