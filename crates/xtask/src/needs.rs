//! What the tests need beside a Rust toolchain, and how to get it. It installs nothing that is there already, and
//! nothing that is not in the table.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{process, toolkit};

struct Need {
    /// A command that succeeds in the root of the workspace when the need is met.
    probe: &'static [&'static str],
    why: &'static str,
    source: Source,
}

#[derive(Clone, Copy)]
enum Source {
    DebianPackage(&'static str),
    RustComponent(&'static str),
    /// CUDA's compiler, in the folder of what is built.
    PythonPackages,
}

const NEEDS: [Need; 12] = [
    // This program was linked, but perhaps by another linker than the one that build scripts call.
    Need {
        probe: &["sh", "-c", "cc --version && g++ --version"],
        why: "dependencies with parts in C are compiled and linked, and CUDA's compiler calls that of C++",
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
    // Both kinds of MPI are called by their full names, so that neither hides the other.
    Need {
        probe: &["mpirun.openmpi", "--version"],
        why: "jobs are started by Open MPI",
        source: Source::DebianPackage("openmpi-bin"),
    },
    Need {
        probe: &["sh", "-c", "set -- $(mpicc.openmpi --showme:incdirs) && test -f \"$1/mpi.h\""],
        why: "the program is also built with MPI in it",
        source: Source::DebianPackage("libopenmpi-dev"),
    },
    Need {
        // The library alone comes with other packages too, without the headers that every binding needs.
        probe: &["sh", "-c", "ls /usr/lib/llvm-*/lib/libclang.so* && ls /usr/lib/llvm-*/lib/clang/*/include/stddef.h"],
        why: "the binding to MPI is made from its header",
        source: Source::DebianPackage("libclang-dev"),
    },
    Need {
        probe: &["mpirun.mpich", "--version"],
        why: "jobs are started by MPICH",
        source: Source::DebianPackage("mpich"),
    },
    Need {
        // Without a configuration srun does not even tell its version.
        probe: &["sh", "-c", "slurmctld -V && slurmd -V && command -v srun"],
        why: "jobs are started by Slurm",
        source: Source::DebianPackage("slurm-wlm"),
    },
    Need {
        probe: &["munged", "--version"],
        why: "the parts of Slurm know each other by it",
        source: Source::DebianPackage("munge"),
    },
    Need {
        probe: &["strace", "--version"],
        why: "one thread of a rank is held still, to be found",
        source: Source::DebianPackage("strace"),
    },
    Need {
        probe: &["python3", "-m", "pip", "--version"],
        why: "CUDA's compiler comes in Python packages",
        source: Source::DebianPackage("python3-pip"),
    },
    Need {
        probe: &["sh", "-c", toolkit::PROBE],
        why: "every kernel is compiled, also where there is no GPU to run it",
        source: Source::PythonPackages,
    },
];

/// A mirror that cannot be reached must not hang the gate.
const INSTALLATION_TIME: Duration = Duration::from_secs(600);

/// Daemons lie where the search path of a user who is not root does not lead.
const FOLDERS_OF_DAEMONS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Installs what is missing, and says so. Where that is not permitted, says which command the user must run.
pub fn provide(workspace: &Workspace) -> Result<bool> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !succeeds(&workspace.root, need.probe)).collect();
    for need in &missing {
        println!("`{}` does not run: {}", need.probe.join(" "), need.why);
    }
    let permission = Permission::of_this_process(&workspace.root);
    for words in commands(&missing, permission) {
        if !permission_to_run(&words, permission) {
            continue;
        }
        println!("installing: {}", words.join(" "));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&workspace.root);
        match process::run(&mut command, INSTALLATION_TIME, &mut |_| {}) {
            // Without the installer itself, what it should have installed is named below.
            Err(error) if error.is::<std::io::Error>() => println!("{error:#}"),
            outcome => _ = outcome?,
        }
    }
    let missing: Vec<&Need> = missing.into_iter().filter(|need| !succeeds(&workspace.root, need.probe)).collect();
    if missing.is_empty() {
        println!("all {} needs are met", NEEDS.len());
        return Ok(true);
    }
    for need in &missing {
        println!("`{}` still does not run: {}", need.probe.join(" "), need.why);
    }
    let lines: Vec<String> = commands(&missing, permission).iter().map(|words| words.join(" ")).collect();
    println!("run: {}", lines.join(" && "));
    Ok(false)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    Root,
    SudoWithoutPassword,
    None,
}

impl Permission {
    fn of_this_process(folder: &Path) -> Permission {
        if rustix::process::geteuid().is_root() {
            Permission::Root
        } else if succeeds(folder, &["sudo", "-n", "true"]) {
            Permission::SudoWithoutPassword
        } else {
            Permission::None
        }
    }
}

/// Components of the toolchain and the folder of what is built belong to the user; Debian's packages belong to the machine.
fn permission_to_run(words: &[String], permission: Permission) -> bool {
    ["rustup", "python3"].contains(&words[0].as_str()) || permission != Permission::None
}

/// What installs all of `needs`: one command for the components, for Debian's packages one that asks which there are and
/// one that gets them, and then, because its installer may be among those, one for CUDA's compiler.
fn commands(needs: &[&Need], permission: Permission) -> Vec<Vec<String>> {
    let sudo: &[&str] = match permission {
        Permission::Root => &[],
        Permission::SudoWithoutPassword => &["sudo", "-n"],
        Permission::None => &["sudo"],
    };
    let owned = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let mut components = Vec::new();
    let mut packages = Vec::new();
    let mut has_python_packages = false;
    for need in needs {
        match need.source {
            Source::RustComponent(name) => components.push(name),
            Source::DebianPackage(name) => packages.push(name),
            Source::PythonPackages => has_python_packages = true,
        }
    }
    let mut commands = Vec::new();
    if !components.is_empty() {
        commands.push(owned(&[&["rustup", "component", "add"], &components[..]].concat()));
    }
    if !packages.is_empty() {
        // In runlevel 1 nothing is started: the tests start what they need themselves, and in a container without an
        // init system a package whose daemon cannot start would count as not installed. `sudo` passes on no variables,
        // so they are set behind it.
        let apt = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"];
        let install = ["install", "-y", "--no-install-recommends"];
        commands.push(owned(&[sudo, &apt, &["update"]].concat()));
        commands.push(owned(&[sudo, &apt, &install, &packages].concat()));
    }
    if has_python_packages {
        commands.push(owned(&toolkit::installation()));
    }
    commands
}

fn succeeds(folder: &Path, words: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("PATH", format!("{path}:{FOLDERS_OF_DAEMONS}"));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(source: Source) -> Need {
        Need { probe: &["false"], why: "a test says so", source }
    }

    #[test]
    fn everything_that_is_missing_comes_with_one_command_that_fits_what_this_user_may_do() {
        let needs = [
            need(Source::PythonPackages),
            need(Source::DebianPackage("munge")),
            need(Source::RustComponent("clippy")),
            need(Source::DebianPackage("mpich")),
        ];
        let needs: Vec<&Need> = needs.iter().collect();
        const APT: &str = "env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get";
        for (permission, may_install, sudo) in [
            (Permission::Root, true, ""),
            (Permission::SudoWithoutPassword, true, "sudo -n "),
            (Permission::None, false, "sudo "),
        ] {
            let commands = commands(&needs, permission);
            let lines: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
            let expected = [
                "rustup component add clippy".to_string(),
                format!("{sudo}{APT} update"),
                format!("{sudo}{APT} install -y --no-install-recommends munge mpich"),
                toolkit::installation().join(" "),
            ];
            assert_eq!(lines, expected);
            let permitted: Vec<bool> = commands.iter().map(|words| permission_to_run(words, permission)).collect();
            assert_eq!(permitted, [true, may_install, may_install, true]);
        }
        assert!(commands(&[], Permission::Root).is_empty());
    }

    #[test]
    fn a_program_that_is_missing_or_fails_does_not_meet_a_need() {
        let folder = Path::new("/");
        assert!(succeeds(folder, &["true"]));
        assert!(succeeds(folder, &["test", "-d", "dev"]));
        assert!(!succeeds(folder, &["false"]));
        assert!(!succeeds(folder, &["no-such-program-anywhere"]));
    }
}
