//! `selftest`: ops on a GPU against their host versions, and gathers between GPUs. Hidden: it is for whoever changes a kernel,
//! or a driver.

mod gather;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use scout_core::{ByteCount, ExitCode};
use scout_device::cuda::{CudaDevice, CudaOptions};
use scout_kernels::selftest::{self, Outcome};
use scout_train::TrainError;
use serde_json::json;

use super::output::Output;
use crate::surroundings::{self, print};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Compare every op on the GPU with its host version
    Ops(Ops),
    /// Gather units by every way between ranks, which may share GPUs, and look at every word
    Gather(gather::Gather),
}

#[derive(clap::Args)]
struct Ops {
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Write every comparison to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Compile the kernels now instead of using the machine code that was built in
    #[arg(long)]
    compile: bool,
    /// Seed of the inputs; the time when left out
    #[arg(long)]
    seed: Option<u64>,
    /// Working memory in GiB
    #[arg(long, default_value_t = 24)]
    memory: u64,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.what {
        What::Ops(ops) => run_ops(ops),
        What::Gather(gather) => gather::run(gather),
    }
}

fn run_ops(ops: &Ops) -> anyhow::Result<ExitCode> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let seed = ops.seed.unwrap_or(now);
    let options = CudaOptions {
        working_memory: ByteCount(ops.memory << 30),
        compile_kernels: ops.compile,
        ..surroundings::cuda()
    };
    let json = ops.json.as_deref().map(Output::open).transpose()?;
    let device = CudaDevice::open(&options).map_err(TrainError::from)?;
    for line in about(&device) {
        print(&line)?;
    }
    let outcomes = selftest::run(&device, &ops.filter, seed);
    print_table(&outcomes)?;
    if let Some(output) = json {
        let rows: Vec<_> = outcomes
            .iter()
            .map(|outcome| {
                let error = if outcome.error.is_finite() { json!(outcome.error) } else { json!(null) };
                json!({
                    "case": outcome.name, "detail": outcome.detail, "error": error, "tolerance": outcome.tolerance,
                    "ok": outcome.is_ok(),
                })
            })
            .collect();
        output.write_json(&json!({ "seed": seed, "device": device.properties().name, "outcomes": rows }))?;
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.is_ok()).count();
    print(&format!("{} ok, {failed} failed, seed {seed}", outcomes.len() - failed))?;
    // Nothing compared is nothing proved.
    Ok(if failed > 0 || outcomes.is_empty() { ExitCode::CheckFailed } else { ExitCode::Success })
}

/// The GPU and the libraries.
pub fn about(device: &CudaDevice) -> Vec<String> {
    let properties = device.properties();
    let mut lines = vec![format!(
        "{}, {}, {} multiprocessors, capability {}.{}",
        properties.name,
        properties.memory,
        properties.num_multiprocessors,
        properties.architecture / 10,
        properties.architecture % 10
    )];
    for found in device.libraries() {
        lines.push(format!("  {:<9} {:<18} {}", found.name, found.version, found.path.display()));
    }
    for missing in device.missing_libraries() {
        lines.push(format!("  {missing}"));
    }
    lines
}

/// Every failure, and one line for the passing comparisons of a case.
fn print_table(outcomes: &[Outcome]) -> std::io::Result<()> {
    print(&format!("{:<28} {:>6} {:>10} {:>10}  result", "case", "rows", "error", "tolerance"))?;
    let mut seen: Vec<&str> = Vec::new();
    for outcome in outcomes {
        let line = |rows: usize, error: f64, tolerance: f64, result: &str| {
            format!("{:<28} {rows:>6} {error:>10.1e} {tolerance:>10.1e}  {result}", outcome.name)
        };
        if !outcome.is_ok() {
            print(&line(1, outcome.error, outcome.tolerance, &format!("FAIL: {}", outcome.detail)))?;
            continue;
        }
        if seen.contains(&outcome.name.as_str()) {
            continue;
        }
        seen.push(&outcome.name);
        let alike = || outcomes.iter().filter(|other| other.name == outcome.name && other.is_ok());
        // The comparison that came nearest to its tolerance speaks for all.
        let share = |outcome: &Outcome| if outcome.tolerance > 0.0 { outcome.error / outcome.tolerance } else { 0.0 };
        let worst = alike().max_by(|a, b| share(a).total_cmp(&share(b))).unwrap_or(outcome);
        print(&line(alike().count(), worst.error, worst.tolerance, &format!("ok ({})", worst.detail)))?;
    }
    Ok(())
}
