//! Where the workspace lies and which crates depend on which, as cargo tells it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

#[derive(Debug)]
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    pub edges: Vec<Edge>,
    pub crates: Vec<String>,
}

/// One crate of the workspace names another in its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    pub from: String,
    pub to: String,
    pub kind: String,
}

impl Workspace {
    pub fn load() -> Result<Workspace> {
        let output = Command::new(cargo())
            .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
            .stdin(Stdio::null())
            .output()
            .context("could not start cargo")?;
        ensure!(output.status.success(), "cargo metadata failed\n{}", String::from_utf8_lossy(&output.stderr));
        let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
        Workspace::from_metadata(&metadata)
    }

    pub fn from_metadata(metadata: &Value) -> Result<Workspace> {
        let text = |value: &Value, key: &str| -> Result<String> {
            Ok(value[key].as_str().with_context(|| format!("cargo metadata has no `{key}`"))?.to_string())
        };
        let packages = metadata["packages"].as_array().context("cargo metadata has no `packages`")?;
        let crates = packages.iter().map(|package| text(package, "name")).collect::<Result<Vec<_>>>()?;
        let mut edges = Vec::new();
        for package in packages {
            for dependency in package["dependencies"].as_array().into_iter().flatten() {
                let edge = Edge {
                    from: text(package, "name")?,
                    to: text(dependency, "name")?,
                    // Cargo leaves out the kind of a normal dependency.
                    kind: dependency["kind"].as_str().unwrap_or("normal").to_string(),
                };
                if crates.contains(&edge.to) {
                    edges.push(edge);
                }
            }
        }
        Ok(Workspace {
            root: text(metadata, "workspace_root")?.into(),
            target: text(metadata, "target_directory")?.into(),
            edges,
            crates,
        })
    }

    /// A cargo command in the root of the workspace.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo());
        // Where several MPIs are installed, the one that the tests start.
        command.args(arguments).current_dir(&self.root).env("MPICC", "mpicc.openmpi");
        command
    }
}

/// The cargo that started this program, so that a chosen toolchain stays chosen.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
