//! `bench load`: how fast the weights of a model arrive where they are kept, beside the disk's own rate.

use std::path::PathBuf;

use scout_comm::Job;
use scout_config::RunConfig;
use scout_core::ExitCode;
use scout_telemetry::Progress;
use scout_train::load_bench::{self, LoadRates, Rate};
use scout_train::plan::{ModelSource, RunPlan};
use scout_train::readers::{MOST_READERS, Progressed, USUAL_READERS};
use serde_json::{Value, json};

use super::meeting;
use crate::commands::configuration::{ConfigArguments, load, placing};
use crate::commands::machine::Found;
use crate::commands::output::Output;
use crate::commands::results::results;
use crate::failure::Mistake;
use crate::ranks::Seat;
use crate::surroundings::{self, print};

#[derive(clap::Args)]
pub struct Load {
    #[command(flatten)]
    config: ConfigArguments,
    /// Threads of each rank that read at the same time
    #[arg(long, default_value_t = USUAL_READERS as u16,
          value_parser = clap::value_parser!(u16).range(1..=MOST_READERS as i64))]
    streams: u16,
    /// Write the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Load) -> anyhow::Result<ExitCode> {
    let loaded = load(&arguments.config)?;
    let config = &loaded.config;
    let source = ModelSource::find(config, false)?;
    let (ranks, joined) = meeting::meet(config, &source, false)?;
    let mut progress = match ranks.mesh().is_first() {
        true => Progress::new(surroundings::terminal()),
        false => Progress::silent(),
    };
    joined.work(|job| placing(&loaded, || measure(arguments, config, source, (&ranks.seat, job, &mut progress))))
}

/// Runs on every rank; the first one tells.
fn measure(
    arguments: &Load,
    config: &RunConfig,
    source: ModelSource,
    (seat, job, progress): (&Seat, &Job, &mut Progress),
) -> anyhow::Result<ExitCode> {
    let Some(folder) = source.folder.clone().filter(|_| !config.model.random_weights) else {
        let message = "there is nothing to read: `model_name_or_path` names no folder, or `random_weights` is set";
        return Err(Mistake { message: message.to_string(), code: ExitCode::MissingInput, hint: None }.into());
    };
    let json = Output::of_first_rank(arguments.json.as_ref(), job)?;
    let mut found = Found::by(config, seat)?;
    let plan = RunPlan::resolve(config, source, found.hardware(&*job.comm)?, None, None)?;
    let machine = found.machine(&plan)?;
    let streams = usize::from(arguments.streams);
    let tell = &mut |progressed: Progressed| progress.reading(progressed.done, progressed.in_all);
    let rates = load_bench::measure(&folder, &plan.shards, (&machine.device, streams), job, tell)?;
    progress.finish_reading();
    machine.leave();
    if !job.mesh().is_first() {
        return Ok(ExitCode::Success);
    }
    for line in lines(&rates, job.mesh().size()) {
        print(&line)?;
    }
    if let Some(output) = json {
        let found = as_json(&rates, (streams, plan.source.config.num_layers));
        output.write_json(&results("load", (&machine.device, job.mesh().size()), found))?;
    }
    Ok(ExitCode::Success)
}

fn lines(rates: &LoadRates, num_ranks: usize) -> Vec<String> {
    let in_words = |rate: Rate| {
        let (bytes, seconds) = (rate.bytes, rate.took.as_secs_f64());
        format!("{bytes} in {seconds:.2} s, {:.2} GB/s", rate.gigabytes_per_second())
    };
    let [before, after] = rates.disk.map(in_words);
    let past = if rates.is_direct { "past the page cache" } else { "through the page cache, emptied before" };
    let mut lines = vec![
        format!("disk before: {before}, {past}"),
        format!("weights:     {}, {num_ranks} ranks together", in_words(rates.load)),
    ];
    if rates.repeated.0 > 0 {
        let repeated = rates.repeated;
        lines.push(format!("             and {repeated} again, by ranks that keep the same: not counted as read"));
    }
    lines.push(format!("disk after:  {after}"));
    lines.push(format!("loading takes place at {:.0} % of the disk's rate", 100.0 * rates.ratio()));
    lines
}

fn as_json(rates: &LoadRates, (streams, num_layers): (usize, usize)) -> Value {
    json!({
        "bytes": rates.load.bytes.0, "bytes_repeated": rates.repeated.0, "seconds": rates.load.took.as_secs_f64(),
        "gb_s": rates.load.gigabytes_per_second(), "disk_gb_s": rates.disk_gigabytes_per_second(),
        "disk_gb_s_before_and_after": rates.disk.map(Rate::gigabytes_per_second), "disk_direct": rates.is_direct,
        "ratio": rates.ratio(), "streams": streams, "layers": num_layers,
    })
}
