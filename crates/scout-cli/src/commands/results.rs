//! What commands write down of their results.

use std::path::Path;

use scout_core::ExitCode;

use crate::failure::Mistake;

/// Writes results for other programs.
pub fn write_json(path: &Path, value: &serde_json::Value) -> anyhow::Result<()> {
    write_text(path, &format!("{value:#}\n"))
}

pub fn write_text(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).map_err(|cause| {
        let code = ExitCode::of_io(&cause, ExitCode::CannotCreate);
        Mistake { message: format!("`{}` cannot be written: {cause}", path.display()), code, hint: None }.into()
    })
}
