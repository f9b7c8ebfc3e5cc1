//! What the tests need beside a Rust toolchain, and how to get it. It installs nothing that is there already, and
//! nothing that is not in the table.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::process;
use crate::workspace::Workspace;

struct Need {
    /// A command that succeeds when the need is met.
    probe: &'static [&'static str],
    why: &'static str,
    source: Source,
}

#[derive(Clone, Copy)]
enum Source {
    DebianPackage(&'static str),
    RustComponent(&'static str),
}

const NEEDS: [Need; 3] = [
    // This program was linked, but perhaps by another linker than the one that build scripts call.
    Need {
        probe: &["cc", "--version"],
        why: "dependencies with parts in C are compiled and linked",
        source: Source::DebianPackage("build-essential"),
    },
    Need {
        probe: &["cargo", "fmt", "--version"],
        why: "the format is checked",
        source: Source::RustComponent("rustfmt"),
    },
    Need {
        probe: &["cargo", "clippy", "--version"],
        why: "the lints are checked",
        source: Source::RustComponent("clippy"),
    },
];

/// Installs what is missing, and says so. Where that is not permitted, says which command the user must run.
pub fn provide(workspace: &Workspace) -> Result<bool> {
    let mut is_complete = true;
    for need in &NEEDS {
        if succeeds(need.probe) {
            continue;
        }
        let permission = Permission::of_this_process();
        let commands = commands(need.source, permission);
        println!("`{}` does not run: {}", need.probe.join(" "), need.why);
        match permission_to_install(need.source, permission) {
            true => {
                for words in &commands {
                    println!("installing: {}", words.join(" "));
                    let mut command = Command::new(&words[0]);
                    command.args(&words[1..]).current_dir(&workspace.root).env("DEBIAN_FRONTEND", "noninteractive");
                    // A mirror that cannot be reached must not hang the gate.
                    process::run(&mut command, std::time::Duration::from_secs(600), &mut |_| {})?;
                }
            }
            false => println!("installing it is not permitted here"),
        }
        if !succeeds(need.probe) {
            is_complete = false;
            let lines: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
            println!("it is still missing; run: {}", lines.join(" && "));
        }
    }
    if is_complete {
        println!("all {} needs are met", NEEDS.len());
    }
    Ok(is_complete)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    Root,
    SudoWithoutPassword,
    None,
}

impl Permission {
    fn of_this_process() -> Permission {
        if rustix::process::geteuid().is_root() {
            Permission::Root
        } else if succeeds(&["sudo", "-n", "true"]) {
            Permission::SudoWithoutPassword
        } else {
            Permission::None
        }
    }
}

/// Components of the toolchain belong to the user; packages belong to the machine.
fn permission_to_install(source: Source, permission: Permission) -> bool {
    matches!(source, Source::RustComponent(_)) || permission != Permission::None
}

fn commands(source: Source, permission: Permission) -> Vec<Vec<String>> {
    let sudo: &[&str] = match permission {
        Permission::Root => &[],
        Permission::SudoWithoutPassword => &["sudo", "-n"],
        Permission::None => &["sudo"],
    };
    let owned = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    match source {
        Source::RustComponent(name) => vec![owned(&["rustup", "component", "add", name])],
        Source::DebianPackage(name) => vec![
            owned(&[sudo, &["apt-get", "update"]].concat()),
            owned(&[sudo, &["apt-get", "install", "-y", "--no-install-recommends", name]].concat()),
        ],
    }
}

fn succeeds(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_fits_what_this_user_may_do() {
        let package = Source::DebianPackage("build-essential");
        for (source, permission, may_install, last) in [
            (package, Permission::Root, true, "apt-get install -y --no-install-recommends build-essential"),
            (
                package,
                Permission::SudoWithoutPassword,
                true,
                "sudo -n apt-get install -y --no-install-recommends build-essential",
            ),
            (package, Permission::None, false, "sudo apt-get install -y --no-install-recommends build-essential"),
            (Source::RustComponent("clippy"), Permission::None, true, "rustup component add clippy"),
        ] {
            assert_eq!(permission_to_install(source, permission), may_install);
            assert_eq!(commands(source, permission).last().unwrap().join(" "), last);
        }
    }

    #[test]
    fn a_program_that_is_missing_or_fails_does_not_meet_a_need() {
        assert!(succeeds(&["true"]));
        assert!(!succeeds(&["false"]));
        assert!(!succeeds(&["no-such-program-anywhere"]));
    }
}
