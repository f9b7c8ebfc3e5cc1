//! `verify`: prints the verdict on a folder of recorded numbers. Every failing row is named; passing rows of a kind are
//! one line.

use std::path::PathBuf;

use scout_core::ExitCode;
use scout_device::device::DeviceWish;
use scout_train::verify::{Row, Status, verify};
use serde_json::json;

use super::compute_on_host;
use crate::surroundings::print;

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder with `manifest.json` and the recorded files
    folder: PathBuf,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// Print JSON, one object for each row
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let wish = match arguments.device {
        DeviceName::Cpu => DeviceWish::Cpu,
        DeviceName::Cuda => DeviceWish::Cuda,
    };
    compute_on_host(wish)?;
    let rows = verify(&arguments.folder)?.all_rows();
    if arguments.json {
        print(&serde_json::to_string_pretty(&rows.iter().map(as_json).collect::<Vec<_>>())?)?;
    } else {
        print_table(&rows)?;
    }
    let failed = rows.iter().any(|row| row.status == Status::Fail);
    Ok(if failed { ExitCode::CheckFailed } else { ExitCode::Success })
}

fn print_table(rows: &[Row]) -> std::io::Result<()> {
    print(&format!("{:<22} {:<34} {:>6} {:>10} {:>10}  result", "from", "quantity", "rows", "error", "tolerance"))?;
    for line in lines(rows) {
        print(&line)?;
    }
    let count = |status| rows.iter().filter(|row| row.status == status).count();
    print(&format!("{} ok, {} failed, {} later", count(Status::Ok), count(Status::Fail), count(Status::Later)))
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
