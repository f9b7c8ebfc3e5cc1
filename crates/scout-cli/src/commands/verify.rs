//! `verify`: prints the verdict on a folder of recorded numbers. Every failing row is named; passing rows of a kind are
//! one line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode as ProcessExitCode;

use scout_comm::Job;
use scout_comm::gpu::Wish;
use scout_core::{ByteCount, ExitCode, env};
use scout_launch::{Launch, Lines};
use scout_model::ModelConfig;
use scout_telemetry::Progress;
use scout_train::TrainError;
use scout_train::machine::{ComputeType, Machine};
use scout_train::verify::{
    Held, Holding, Row, Status, Verdict, identity_of, verify_on_rank, verify_on_threads, weights_on_gpu,
};
use scout_train::ways::Experts;
use serde_json::json;

use super::launch;
use super::machine::open_gpu;
use crate::failure::Mistake;
use crate::joined::{ALONE_DEADLINE, INIT_TIMEOUT, Identity, Joined, Waits};
use crate::ranks::Ranks;
use crate::surroundings::{self, print};

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder with `manifest.json` and the recorded files
    folder: PathBuf,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// Element type of weights and activations on a GPU; bf16 has tolerances of its own and follows a routing recorded in f32
    #[arg(long, value_enum, default_value = "f32")]
    dtype: TypeName,
    /// Number of ranks that compute together, each with its shard of the weights
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    world: u16,
    /// What ranks are and how they reach each other
    #[arg(long, value_enum, default_value = "threads")]
    transport: Transport,
    /// How several GPUs gather units
    #[arg(long, value_enum, default_value = "auto")]
    gather: GatherName,
    /// How several ranks hold the weights
    #[arg(long, value_enum, default_value = "zero3")]
    weights: WeightsName,
    /// Print JSON, one object for each row
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TypeName {
    F32,
    Bf16,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum GatherName {
    /// The fastest way that works
    Auto,
    /// Copy engines
    Copy,
    Nccl,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum WeightsName {
    /// In parts that are gathered
    Zero3,
    /// The same, and experts stay with their ranks: rows go to them
    ExpertResident,
}

impl Arguments {
    fn holding(&self) -> Holding {
        let experts = match self.weights {
            WeightsName::Zero3 => Experts::Come,
            WeightsName::ExpertResident => Experts::Stay,
        };
        Holding { wish: self.gather.into(), experts }
    }
}

impl From<GatherName> for Wish {
    fn from(name: GatherName) -> Wish {
        match name {
            GatherName::Auto => Wish::Auto,
            GatherName::Copy => Wish::Copy,
            GatherName::Nccl => Wish::Nccl,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Transport {
    /// Threads of this process
    Threads,
    /// Processes of this host that meet over TCP
    Tcp,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ProcessExitCode> {
    if let (DeviceName::Cpu, TypeName::Bf16) = (arguments.device, arguments.dtype) {
        return Err(usage("`--dtype bf16` needs `--device cuda`: the host computes in f32"));
    }
    let ranks = surroundings::ranks()?;
    let folder = &arguments.folder;
    let code = match (arguments.device, arguments.transport, arguments.world) {
        _ if ranks.mesh().size() > 1 => as_rank(arguments, &ranks)?,
        (DeviceName::Cpu, Transport::Tcp, 2..) => return as_processes(arguments, &[(env::TRANSPORT, "tcp")]),
        // Memory of a GPU can be mapped by other processes, and by no other thread of its own.
        (DeviceName::Cuda, _, 2..) => return as_processes(arguments, &[]),
        (DeviceName::Cpu, _, world) => {
            report(&verify_on_threads(folder, usize::from(world), arguments.holding())?, arguments.json)?
        }
        (DeviceName::Cuda, _, _) => {
            let alone = Job::alone(ALONE_DEADLINE);
            let on = machine(arguments, &ranks, &alone)?;
            report(&verify_on_rank(folder, &alone, (&on, Holding::default()))?, arguments.json)?
        }
    };
    Ok(ProcessExitCode::from(code.code()))
}

/// What this rank computes on.
fn machine(arguments: &Arguments, ranks: &Ranks, job: &Job) -> Result<Machine, TrainError> {
    let compute = match (arguments.device, arguments.dtype) {
        (DeviceName::Cpu, _) => return Ok(ranks.mesh().size().into()),
        (DeviceName::Cuda, TypeName::F32) => ComputeType::F32,
        (DeviceName::Cuda, TypeName::Bf16) => ComputeType::Bf16,
    };
    // A folder without a readable model is a failed row, found later.
    let model = ModelConfig::read(&arguments.folder.join("config.json"));
    let weights = match &model {
        Ok(model) => weights_on_gpu(model, ranks.mesh().size(), compute)?,
        Err(_) => ByteCount(0),
    };
    let device = open_gpu(&ranks.seat, &*job.comm, weights)?;
    Machine::of_rank(device, compute, job)
}

fn usage(message: &str) -> anyhow::Error {
    Mistake { message: message.to_string(), code: ExitCode::Usage, hint: None }.into()
}

/// Starts this command once for each rank. Of all of them the first one alone prints.
fn as_processes(arguments: &Arguments, variables: &[(&'static str, &str)]) -> anyhow::Result<ProcessExitCode> {
    let started = Launch {
        program: std::env::current_exe()?,
        arguments: std::env::args_os().skip(1).collect::<Vec<OsString>>(),
        num_ranks: usize::from(arguments.world),
        variables: variables.iter().map(|&(name, value)| (name, value.to_string())).collect(),
        lines: Lines::Plain,
    };
    Ok(launch::exit_code(launch::wait_for(&started)?))
}

/// Computes as the rank that this process is. All ranks come to the same verdict and leave with the same code.
fn as_rank(arguments: &Arguments, ranks: &Ranks) -> anyhow::Result<ExitCode> {
    let (mesh, world) = (ranks.mesh(), usize::from(arguments.world));
    if world > 1 && world != mesh.size() {
        let message = format!("`--world` is {world}, and {} started {} ranks", ranks.seat.launcher, mesh.size());
        return Err(Mistake { message, code: ExitCode::Usage, hint: None }.into());
    }
    surroundings::share_the_host(ranks.seat.local_size.unwrap_or(1))?;
    let waits = Waits { init_timeout: INIT_TIMEOUT, hang_limit: None };
    let digest = identity_of(&arguments.folder);
    let joined =
        Joined::with_others(ranks, Identity { config: digest, model: digest }, waits, &mut Progress::silent())?;
    let verdict = joined.work(|job| {
        let machine = machine(arguments, ranks, job)?;
        Ok(verify_on_rank(&arguments.folder, job, (&machine, arguments.holding()))?)
    })?;
    match mesh.is_first() {
        true => report(&verdict, arguments.json),
        false => Ok(code_of(&verdict.all_rows())),
    }
}

fn code_of(rows: &[Row]) -> ExitCode {
    let failed = rows.iter().any(|row| row.status == Status::Fail);
    if failed { ExitCode::CheckFailed } else { ExitCode::Success }
}

/// Prints the verdict and says how to leave.
fn report(verdict: &Verdict, in_json: bool) -> anyhow::Result<ExitCode> {
    let rows = verdict.all_rows();
    if in_json {
        print(&serde_json::to_string_pretty(&rows.iter().map(as_json).collect::<Vec<_>>())?)?;
    } else {
        print_table(&rows, &verdict.ranks)?;
    }
    Ok(code_of(&rows))
}

fn print_table(rows: &[Row], ranks: &[Held]) -> std::io::Result<()> {
    print(&format!("{:<22} {:<34} {:>6} {:>10} {:>10}  result", "from", "quantity", "rows", "error", "tolerance"))?;
    for line in lines(rows) {
        print(&line)?;
    }
    if ranks.len() > 1 {
        print(&of_ranks(ranks))?;
    }
    let count = |status| rows.iter().filter(|row| row.status == status).count();
    print(&format!("{} ok, {} failed, {} later", count(Status::Ok), count(Status::Fail), count(Status::Later)))
}

/// How the weights were shared, where they were.
fn of_ranks(ranks: &[Held]) -> String {
    let most = |of: fn(&Held) -> ByteCount| ranks.iter().map(of).max().unwrap_or_default();
    format!(
        "{} ranks: {} of weights on each and at most {} gathered, {} read from files in all",
        ranks.len(),
        most(|rank| rank.shard),
        most(|rank| rank.gathered),
        ranks.iter().map(|rank| rank.read).sum::<ByteCount>(),
    )
}

/// Rows in order; those of one kind that do not fail share a line.
fn lines(rows: &[Row]) -> Vec<String> {
    let mut kinds: Vec<(&str, String, Status)> = Vec::new();
    let mut lines = Vec::new();
    for row in rows {
        if row.status == Status::Fail {
            lines.push(format!(
                "{:<22} {:<34} {:>6} {:>10.1e} {:>10.1e}  FAIL{}",
                row.group,
                row.quantity,
                1,
                row.error,
                row.tolerance,
                detail(row)
            ));
            continue;
        }
        let kind = (row.group.as_str(), kind(&row.quantity), row.status);
        if kinds.contains(&kind) {
            continue;
        }
        let alike: Vec<&Row> = rows
            .iter()
            .filter(|other| (other.group.as_str(), self::kind(&other.quantity), other.status) == kind)
            .collect();
        let worst = alike.iter().map(|row| row.error).fold(0.0, f64::max);
        let result = if row.status == Status::Ok { "ok" } else { "later" };
        lines.push(format!(
            "{:<22} {:<34} {:>6} {worst:>10.1e} {:>10.1e}  {result}{}",
            row.group,
            kind.1,
            alike.len(),
            row.tolerance,
            detail(row)
        ));
        kinds.push(kind);
    }
    lines
}

fn detail(row: &Row) -> String {
    if row.detail.is_empty() { String::new() } else { format!(": {}", row.detail) }
}

/// The quantity without its layer: `layer.3.attn_in` is of the kind `layer.*.attn_in`, a gradient of the kind `grad.*`.
fn kind(quantity: &str) -> String {
    for prefix in ["grad.", "trained.", "adapter_all.grad."] {
        if quantity.starts_with(prefix) {
            return format!("{prefix}*");
        }
    }
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    quantity.split('.').map(|part| if is_number(&part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

fn as_json(row: &Row) -> serde_json::Value {
    let status = match row.status {
        Status::Ok => "ok",
        Status::Fail => "FAIL",
        Status::Later => "later",
    };
    let error = if row.error.is_finite() { json!(row.error) } else { json!(null) };
    json!({
        "from": row.group, "quantity": row.quantity, "error": error, "tolerance": row.tolerance,
        "result": status, "detail": row.detail,
    })
}
