//! `bench`: how fast parts of the program are on this machine.

mod comm;
mod contest;
mod gather;
mod lengths;
mod load;
pub(super) mod meeting;
mod ranks;
mod sampler;
mod seconds;
mod shares;
mod spread;
mod step;
mod timing;
mod told;
mod trace;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scout_core::{ByteCount, ExitCode};
use scout_device::Device;
use scout_device::cuda::{CudaDevice, CudaOptions};
use scout_kernels::selftest::attention_rates::{self, PassRate};
use scout_kernels::selftest::experts;
use scout_kernels::selftest::rates::{self, Rate};
use scout_train::TrainError;
use serde_json::json;

use self::seconds::seconds;
use super::output::Output;
use super::results::results;
use super::selftest;
use crate::surroundings::{self, print};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Matrix products of Scout's shapes on one GPU
    Gemm(Gemm),
    /// Whole training steps of a model's shape over made-up tokens, with random weights
    Step(step::Step),
    /// Reading a model's weights to where they are kept, beside the disk's own rate
    Load(load::Load),
    /// Weights from all ranks to whole units on each of several GPUs, by every way that works, alone and under products
    Gather(gather::Gather),
    /// Collectives between GPUs, in the columns of nccl-tests
    Comm(comm::Comm),
    /// Kernels whose time is that of moving bytes, on one GPU
    Kernels(OnGpu),
    /// Attention on packed documents, beside cuDNN called directly, on one GPU
    Attention(OnGpu),
    /// Routed experts with few rows: all in one launch, beside a product for each, on one GPU
    Experts(OnGpu),
}

/// Nothing else can be asked for: the host has other ways to compute.
#[derive(clap::Args)]
struct OnGpu {
    /// What computes
    #[arg(long, value_enum, default_value = "cuda")]
    device: GpuName,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum GpuName {
    Cuda,
}

#[derive(clap::Args)]
struct Gemm {
    #[command(flatten)]
    on: OnGpu,
    /// Write the rates to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long one of the products runs without pause at the end
    #[arg(long, default_value = "10", value_parser = seconds)]
    seconds: Duration,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.what {
        What::Step(arguments) => step::run(arguments),
        What::Load(arguments) => load::run(arguments),
        What::Gather(arguments) => gather::run(arguments),
        What::Comm(arguments) => comm::run(arguments),
        What::Gemm(arguments) => {
            let json = arguments.json.as_deref().map(Output::open).transpose()?;
            gemm(&open(&arguments.on)?, arguments.seconds, json)
        }
        What::Kernels(on) => kernels(&open(on)?),
        What::Attention(on) => attention(&open(on)?),
        What::Experts(on) => experts(&open(on)?),
    }
}

fn open(OnGpu { device: GpuName::Cuda }: &OnGpu) -> anyhow::Result<Arc<CudaDevice>> {
    let options = CudaOptions { working_memory: ByteCount(24 << 30), ..surroundings::cuda() };
    let device = CudaDevice::open(&options).map_err(TrainError::from)?;
    for line in selftest::about(&device) {
        print(&line)?;
    }
    Ok(device)
}

fn kernels(device: &Arc<CudaDevice>) -> anyhow::Result<ExitCode> {
    print(&format!("{:<24} {:>10} {:>12} {:>8}", "kernel", "MB", "time", "GB/s"))?;
    for rate in rates::kernels(device).map_err(TrainError::from)? {
        let (megabytes, microseconds) = (rate.bytes as f64 / 1e6, rate.time.as_secs_f64() * 1e6);
        print(&format!(
            "{:<24} {megabytes:>10.0} {microseconds:>9.1} µs {:>8.0}",
            rate.name, rate.gigabytes_per_second
        ))?;
    }
    for (name, cost) in rates::host_costs(device).map_err(TrainError::from)? {
        print(&format!("a {name} costs the host {:.1} µs", cost.as_secs_f64() * 1e6))?;
    }
    Ok(ExitCode::Success)
}

fn attention(device: &Arc<CudaDevice>) -> anyhow::Result<ExitCode> {
    print(&format!(
        "{:<18} {:>7} {:<9} {:>10} {:>8} {:>11} {:>11} {:>8} {:>14} {:>11}",
        "documents",
        "tokens",
        "pass",
        "time",
        "TFLOP/s",
        "host a call",
        "own kernels",
        "TFLOP/s",
        "cuDNN directly",
        "op to cuDNN"
    ))?;
    for rate in attention_rates::attention(device).map_err(TrainError::from)? {
        let line = |pass: &str, of: PassRate| {
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            let (alone, share) = match of.cudnn {
                Some(alone) => {
                    let share = 100.0 * alone.as_secs_f64() / of.time.as_secs_f64();
                    (format!("{:.3} ms", milliseconds(alone)), format!("{share:.1} %"))
                }
                None => ("–".to_string(), "–".to_string()),
            };
            format!(
                "{:<18} {:>7} {pass:<9} {:>7.3} ms {:>8.0} {:>8.1} µs {:>8.3} ms {:>8.0} {alone:>14} {share:>11}",
                rate.name,
                rate.num_tokens,
                milliseconds(of.time),
                of.tflops,
                of.host.as_secs_f64() * 1e6,
                milliseconds(of.own),
                of.own_tflops
            )
        };
        print(&line("forward", rate.forward))?;
        print(&line("backward", rate.backward))?;
    }
    Ok(ExitCode::Success)
}

fn experts(device: &Arc<CudaDevice>) -> anyhow::Result<ExitCode> {
    print(&format!(
        "{:<30} {:>5} {:>23} {:>23}  {}",
        "16 experts", "rows", "in one launch: TFLOP/s", "one by one: TFLOP/s", "taken"
    ))?;
    for rate in experts::rates(device).map_err(TrainError::from)? {
        let way = |time: Duration| {
            let seconds = time.as_secs_f64();
            format!("{:>10.3} ms {:>9.0}", seconds * 1e3, rate.operations / seconds / 1e12)
        };
        print(&format!(
            "{:<30} {:>5} {:>23} {:>23}  {}",
            rate.name,
            rate.num_rows,
            way(rate.in_one_launch),
            way(rate.one_by_one),
            if rate.is_taken { "in one launch" } else { "one by one" }
        ))?;
    }
    Ok(ExitCode::Success)
}

fn gemm(device: &Arc<CudaDevice>, steady: Duration, json: Option<Output>) -> anyhow::Result<ExitCode> {
    print(&format!(
        "{:<42} {:>6} {:>7} {:>6} {:>3} {:>17} {:>17} {:>9} {:>7}",
        "product", "m", "n", "k", "of", "rested: TFLOP/s", "steady: TFLOP/s", "SM clock", "power"
    ))?;
    let mut told = Ok(());
    let rates = rates::products(device, steady, |rate| {
        told = std::mem::replace(&mut told, Ok(())).and_then(|()| print(&line(rate)));
    });
    let rates = rates.map_err(TrainError::from)?;
    told?;
    print("\nalgorithms chosen by timing: product, candidates, place of the best, time of the first, of the best")?;
    for trial in device.trials() {
        let class = trial.class;
        print(&format!(
            "  {}x{}x{} {:>2} {:>2} {:>10.1} {:>10.1} µs",
            class.m,
            class.n,
            class.k,
            trial.num_candidates,
            trial.chosen,
            trial.first.as_secs_f64() * 1e6,
            trial.best.as_secs_f64() * 1e6
        ))?;
    }
    if let Some(output) = json {
        let rows: Vec<_> = rates.iter().map(as_json).collect();
        output.write_json(&results("gemm", (&Device::Cuda(device.clone()), 1), json!({ "products": rows })))?;
    }
    Ok(ExitCode::Success)
}

fn line(rate: &Rate) -> String {
    let (clock, power) = match rate.reading {
        Some(reading) => (format!("{} MHz", reading.sm_clock_megahertz), format!("{:.0} W", reading.power_watts)),
        None => ("–".to_string(), "–".to_string()),
    };
    format!(
        "{:<42} {:>6} {:>7} {:>6} {:>3} {:>7.3} ms {:>6.0} {:>7.3} ms {:>6.0} {clock:>9} {power:>7}",
        rate.name,
        rate.m,
        rate.n,
        rate.k,
        rate.count,
        rate.rested.as_secs_f64() * 1e3,
        rate.rested_tflops,
        rate.steady.as_secs_f64() * 1e3,
        rate.steady_tflops
    )
}

fn as_json(rate: &Rate) -> serde_json::Value {
    json!({
        "name": rate.name, "m": rate.m, "n": rate.n, "k": rate.k, "count": rate.count,
        "rested_seconds": rate.rested.as_secs_f64(), "rested_tflops": rate.rested_tflops,
        "steady_seconds": rate.steady.as_secs_f64(), "steady_tflops": rate.steady_tflops,
        "sm_clock_megahertz": rate.reading.map(|reading| reading.sm_clock_megahertz),
        "power_watts": rate.reading.map(|reading| reading.power_watts),
    })
}
