//! Where the time of steps goes: each kind of work with its share, how fast it is inside of the step, and how fast the
//! same work is alone, repeated without pause in the same run. Alone, products are cuBLASLt's one after the other, also
//! those that a step computes in one launch of our own kernel.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use scout_comm::Job;
use scout_core::{DType, Phase, Whereabouts};
use scout_device::cuda::{CudaDevice, Product, Reading, Share};
use scout_kernels::attention::Segments;
use scout_kernels::selftest::alone::{self, Alone};
use scout_kernels::selftest::meter::mean_reading;
use scout_train::TrainError;
use scout_train::step_bench::StepBench;
use serde_json::json;

use super::told::goes_on;
use crate::surroundings::print;

/// What an H200 copies in a second, read and written: the bound of kernels that move bytes.
const BYTES_PER_SECOND: f64 = 4.3e12;
/// Products of fewer operations a byte are bound by memory.
const OPERATIONS_PER_BYTE: f64 = 160.0;
/// What a profile calls the waits of arithmetic for weights.
const WAITING: &str = "waiting for units";
/// Events slow steps down; an epoch of many updates is known by those that fit into so long.
const PROFILED_AT_MOST: Duration = Duration::from_secs(20);
/// Work that takes less of a step than this is not run again.
const WORTH_REPEATING: f64 = 0.005;

/// Profiled steps, one after the other. Every update of an epoch is among them as often as the others, or, where that takes
/// long, some of them are.
pub struct Profile {
    num_steps: usize,
    num_updates: usize,
    time: Duration,
    /// Of it, while this rank's thread stood still for others, and its GPU had done all there was to do.
    waited: Duration,
    reading: Option<Reading>,
    parts: Vec<Part>,
}

/// What the parts of a step are held against.
pub struct Comparison {
    /// Of the one batch that all steps have.
    pub segments: Segments,
    /// Query heads, key and value heads, size.
    pub heads: [usize; 3],
    /// How long each part runs alone.
    pub at_least: Duration,
}

struct Part {
    share: Share,
    bound: Bound,
    /// The same work of all steps together, alone.
    alone: Option<Alone>,
}

/// What would have to be faster for a part to be faster.
enum Bound {
    /// So many operations.
    Arithmetic(f64),
    /// So many bytes.
    Memory(f64),
    Unknown,
}

/// Steps with an event around every piece of work: every update of an epoch once, as far as time allows, or, where all steps
/// have the same one, as many as take at least so long. All ranks call it.
pub fn profile(
    bench: &mut StepBench,
    gpu: &CudaDevice,
    (at_least, job): (Option<Duration>, &Job),
) -> Result<Profile, TrainError> {
    let gauge = gpu.gauge().ok();
    let (mut num_steps, mut time, mut waited, mut readings) = (0, Duration::ZERO, Duration::ZERO, Vec::new());
    let mut step = |bench: &mut StepBench| -> Result<Duration, TrainError> {
        let before = job.comm.waited();
        time += bench.step()?.time;
        waited += job.comm.waited() - before;
        num_steps += 1;
        readings.extend(gauge.as_ref().and_then(|gauge| gauge.read().ok()));
        Ok(time)
    };
    let (num_updates, mut shares) = (bench.updates().len(), Vec::new());
    match at_least {
        Some(limit) => {
            gpu.begin_profile();
            let mut so_far = None;
            while goes_on(job, so_far.is_none_or(|so_far| so_far < limit))? {
                so_far = Some(step(bench)?);
            }
            shares = gpu.end_profile()?;
        }
        // An update at a time: the events of a whole epoch may be a million.
        None => {
            let mut so_far = Duration::ZERO;
            for _ in 0..num_updates {
                if !goes_on(job, so_far < PROFILED_AT_MOST)? {
                    break;
                }
                gpu.begin_profile();
                so_far = step(bench)?;
                add(&mut shares, gpu.end_profile()?);
            }
        }
    }
    shares.sort_by_key(|share| Reverse(share.time));
    let part = |share: Share| Part { bound: bound(&share), share, alone: None };
    let (reading, parts) = (mean_reading(&readings), shares.into_iter().map(part).collect());
    Ok(Profile { num_steps, num_updates, time, waited, reading, parts })
}

/// Work of one name is one share, whichever step it was done in.
fn add(shares: &mut Vec<Share>, more: Vec<Share>) {
    for Share { name, calls, time, bytes, products, communicates } in more {
        match shares.iter_mut().find(|share| share.name == name) {
            Some(share) => {
                share.calls += calls;
                share.time += time;
                share.bytes += bytes;
                share.products.extend(products);
                share.communicates |= communicates;
            }
            None => shares.push(Share { name, calls, time, bytes, products, communicates }),
        }
    }
}

fn bound(share: &Share) -> Bound {
    if share.products.is_empty() {
        return if share.bytes == 0 { Bound::Unknown } else { Bound::Memory(share.bytes as f64) };
    }
    let operations: f64 = share.products.iter().map(operations).sum();
    let bytes: f64 = share.products.iter().map(bytes).sum();
    if operations / bytes < OPERATIONS_PER_BYTE { Bound::Memory(bytes) } else { Bound::Arithmetic(operations) }
}

fn operations(Product { problem, .. }: &Product) -> f64 {
    2.0 * problem.m as f64 * problem.n as f64 * problem.k as f64
}

fn bytes(Product { problem, adds }: &Product) -> f64 {
    let size = |dtype: DType| dtype.size().0 as f64;
    let (m, n, k) = (problem.m as f64, problem.n as f64, problem.k as f64);
    let passes = if *adds { 2.0 } else { 1.0 };
    size(problem.factors) * (m * k + k * n) + passes * size(problem.result) * m * n
}

impl Profile {
    /// Runs products bound by arithmetic, and attention, again, with nothing beside them.
    ///
    /// Steps are over, and no part of them may last as long as this: each piece of work is a phase of its own, of those that
    /// may take long, so that nobody takes a rank for hung while its GPU repeats one thing.
    pub fn compare(
        &mut self,
        gpu: &Arc<CudaDevice>,
        with: &Comparison,
        whereabouts: &Whereabouts,
    ) -> Result<(), TrainError> {
        whereabouts.enter(Phase::Evaluate);
        let attention = alone::attention(gpu, &with.segments, with.heads, with.at_least)?;
        for Part { share, bound, alone } in &mut self.parts {
            let of_all = |one: Alone, times: f64| Alone { time: one.time.mul_f64(times), ..one };
            if share.name.starts_with("attention forward") {
                *alone = Some(of_all(attention[0], share.calls as f64));
            } else if share.name.starts_with("attention backward") {
                *alone = Some(of_all(attention[1], share.calls as f64));
            } else if matches!(bound, Bound::Arithmetic(_))
                && share.time.as_secs_f64() > WORTH_REPEATING * self.time.as_secs_f64()
            {
                whereabouts.enter(Phase::Evaluate);
                // All steps have the same batch, so one step's products are as good as all of them.
                let of_step = &share.products[..share.products.len().div_ceil(self.num_steps)];
                let times = share.products.len() as f64 / of_step.len() as f64;
                *alone = Some(of_all(alone::products(gpu, of_step, with.at_least)?, times));
            }
        }
        Ok(())
    }

    pub fn print(&self) -> std::io::Result<()> {
        let steps = match (self.num_steps, self.num_updates) {
            (1, _) => "a step".to_string(),
            (steps, 1) => format!("{steps} steps"),
            (steps, updates) if steps < updates => format!("the average of {steps} of {updates} updates"),
            (_, updates) => format!("the average of {updates} steps, one of each update,"),
        };
        let clock = self.reading.map_or(String::new(), |reading| format!(", {}", clock(&reading)));
        print(&format!("where the time goes: {steps} with events around every part{clock}"))?;
        print(&format!(
            "{:<48} {:>6} {:>9} {:>7} {:>14} {:>9}  {}",
            "part of a step", "calls", "ms", "share", "rate", "of bound", "the same alone"
        ))?;
        for part in &self.parts {
            print(&self.line(part))?;
        }
        let rest =
            [("the host waiting for others", self.waited), ("between them", self.between()), ("together", self.time)];
        for (name, time) in rest {
            print(&format!("{name:<48} {:>6} {:>9.2} {:>5.1} %", "", self.milliseconds(time), self.percent(time)))?;
        }
        Ok(())
    }

    fn line(&self, part: &Part) -> String {
        let Part { share, bound, alone } = part;
        let seconds = share.time.as_secs_f64();
        let (rate, of_bound) = match bound {
            Bound::Arithmetic(operations) => (format!("{:.0} TFLOP/s", operations / seconds / 1e12), String::new()),
            Bound::Memory(bytes) => {
                let rate = bytes / seconds;
                (format!("{:.0} GB/s", rate / 1e9), format!("{:.0} %", 100.0 * rate / BYTES_PER_SECOND))
            }
            Bound::Unknown => (String::new(), String::new()),
        };
        let alone = alone.as_ref().map_or(String::new(), |alone| {
            let clock = alone.reading.map_or(String::new(), |reading| format!(" at {}", clock(&reading)));
            let ratio = 100.0 * alone.time.as_secs_f64() / seconds;
            format!("{:.2} ms{clock}: {ratio:.1} %", self.milliseconds(alone.time))
        });
        format!(
            "{:<48} {:>6} {:>9.2} {:>5.1} % {rate:>14} {of_bound:>9}  {alone}",
            share.name,
            format!("{:.0}", self.calls(share)),
            self.milliseconds(share.time),
            self.percent(share.time),
        )
    }

    /// Of one step, while kernels of the model ran.
    pub fn computed(&self) -> Duration {
        self.sum(|share| !share.communicates)
    }

    /// Of one step, in collectives among the arithmetic. They run while all ranks wait for them, and for each other.
    pub fn in_collectives(&self) -> Duration {
        self.sum(|share| share.communicates && share.name != WAITING)
    }

    /// Of one step, while the GPU had nothing to do because the host had not queued it; not while the host itself could not
    /// go on without others.
    pub fn gaps(&self) -> Duration {
        self.between() / self.num_steps as u32
    }

    /// The same of all steps.
    fn between(&self) -> Duration {
        let known: Duration = self.parts.iter().map(|part| part.share.time).sum();
        self.time.saturating_sub(known + self.waited)
    }

    fn sum(&self, counts: impl Fn(&Share) -> bool) -> Duration {
        let shares = self.parts.iter().map(|part| &part.share);
        shares.filter(|share| counts(share)).map(|share| share.time).sum::<Duration>() / self.num_steps as u32
    }

    /// Of one step; updates that differ need not all have as many.
    fn calls(&self, share: &Share) -> f64 {
        share.calls as f64 / self.num_steps as f64
    }

    /// Of one step.
    fn milliseconds(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e3 / self.num_steps as f64
    }

    fn percent(&self, time: Duration) -> f64 {
        100.0 * time.as_secs_f64() / self.time.as_secs_f64()
    }

    pub fn as_json(&self) -> serde_json::Value {
        let part = |Part { share, bound, alone }: &Part| {
            let (operations, bytes) = match bound {
                Bound::Arithmetic(operations) => (Some(*operations), None),
                Bound::Memory(bytes) => (None, Some(*bytes)),
                Bound::Unknown => (None, None),
            };
            let a_step = |of_all: f64| of_all / self.num_steps as f64;
            json!({
                "name": share.name, "calls": self.calls(share), "ms": self.milliseconds(share.time),
                "operations": operations.map(a_step), "bytes": bytes.map(a_step),
                "ms_alone": alone.map(|alone| self.milliseconds(alone.time)),
                "sm_clock_megahertz_alone": alone.and_then(|alone| alone.reading).map(|r| r.sm_clock_megahertz),
                "power_watts_alone": alone.and_then(|alone| alone.reading).map(|r| r.power_watts),
            })
        };
        json!({
            "steps": self.num_steps, "updates": self.num_updates, "ms": self.milliseconds(self.time),
            "ms_host_waited": self.milliseconds(self.waited), "ms_between": self.milliseconds(self.between()),
            "sm_clock_megahertz": self.reading.map(|reading| reading.sm_clock_megahertz),
            "power_watts": self.reading.map(|reading| reading.power_watts),
            "bytes_per_second_bound": BYTES_PER_SECOND,
            "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }
}

fn clock(reading: &Reading) -> String {
    format!("{} MHz, {:.0} W", reading.sm_clock_megahertz, reading.power_watts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, milliseconds: u64, communicates: bool) -> Share {
        Share {
            name: name.to_string(),
            calls: 3,
            time: Duration::from_millis(milliseconds),
            communicates,
            ..Share::default()
        }
    }

    #[test]
    fn the_parts_of_a_step_together_are_the_step() {
        let shares = [share("a product", 1400, false), share("all-gather", 200, true), share(WAITING, 100, true)];
        let parts = shares.map(|share| Part { bound: Bound::Unknown, share, alone: None }).into();
        let (time, waited) = (Duration::from_millis(2000), Duration::from_millis(120));
        let profile = Profile { num_steps: 2, num_updates: 1, time, waited, reading: None, parts };
        assert_eq!(profile.gaps(), Duration::from_millis(90));
        // What ranks are told to have waited is their hosts' waits and those for units.
        let waits = (waited + Duration::from_millis(100)) / 2;
        let parts = [profile.computed(), profile.in_collectives(), waits, profile.gaps()];
        assert_eq!(parts.into_iter().sum::<Duration>(), time / 2);
    }

    #[test]
    fn steps_add_up_by_the_names_of_their_work() {
        let mut shares = vec![share("a product", 5, false)];
        add(&mut shares, vec![share("a sum", 1, true), share("a product", 7, false)]);
        let found: Vec<_> = shares.iter().map(|share| (&share.name[..], share.calls, share.time.as_millis())).collect();
        assert_eq!(found, [("a product", 6, 12), ("a sum", 3, 1)]);
    }
}
