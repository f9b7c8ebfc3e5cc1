//! Names the commit that the program is built from, where git and its folder are there, and marks it `-dirty` where sources
//! differ from it. Runs again when the branch moves and when a source changes.

use std::path::Path;
use std::process::Command;

/// What the program is built from.
const SOURCES: [&str; 4] = ["crates", "launcher", "Cargo.toml", "Cargo.lock"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A copy of the sources inside of somebody else's repository has no commit.
    let is_ours = git(&["ls-files", "--error-unmatch", "Cargo.toml"]).is_some();
    let commit = is_ours.then(|| git(&["rev-parse", "--short=12", "HEAD"])).flatten();
    if commit.is_some() {
        let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
        // The log of HEAD grows with every commit, also where the branch has no file of its own.
        for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
            let path = git(&["rev-parse", "--git-path", name]);
            // Cargo would build again and again for a file that is not there.
            if let Some(path) = path.filter(|path| Path::new(path).exists()) {
                println!("cargo::rerun-if-changed={path}");
            }
        }
        for source in SOURCES {
            println!("cargo::rerun-if-changed=../../{source}");
        }
    }
    let dirty = if commit.is_some() && differs() { "-dirty" } else { "" };
    println!("cargo::rustc-env=SCOUT_DIST_COMMIT={}{dirty}", commit.as_deref().unwrap_or("unknown"));
}

/// Whether sources that git knows differ from the commit. A new file counts once one of them names it.
fn differs() -> bool {
    let paths = SOURCES.map(|source| format!(":/{source}"));
    // Others may be working with this repository: a build must not hold its index.
    let diff = ["--no-optional-locks", "diff", "--quiet", "HEAD", "--"];
    Command::new("git").args(diff).args(paths).status().is_ok_and(|status| status.code() == Some(1))
}

/// What git answers in this folder; nothing where it is missing or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let answer = Command::new("git").args(arguments).output().ok().filter(|answer| answer.status.success())?;
    let text = String::from_utf8(answer.stdout).ok()?;
    Some(text.trim().to_string()).filter(|text| !text.is_empty())
}
