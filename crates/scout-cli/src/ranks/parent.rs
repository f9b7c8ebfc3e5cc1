//! A rank ends with the process that started it: nobody else would end it, and its memory and its GPU would stay taken.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use scout_core::{ExitCode, env};

use super::seat::{Launcher, names};
use super::variables::{Variables, number, required};
use crate::failure::{Mistake, leave_at_once};

/// How long a rank may live on after its launcher died without a word.
const POLL: Duration = Duration::from_millis(500);

/// Does nothing where no launcher started this process. Must be called before anything else, and by the main thread:
/// until then a launcher that is killed leaves this process alone.
pub fn tie_to_parent(variables: Variables) -> Result<(), Mistake> {
    let Some(names) = names(variables) else { return Ok(()) };
    let is_ours = names.launcher == Launcher::Own;
    let lineage = Lineage::of_this_process(names.local_rank);
    let is_tied =
        (is_ours || is_started_by_main_thread(pid())) && set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
    if is_ours {
        // Asked after the tie: a launcher that died before it did not take this process along.
        let name = env::LAUNCHER_PID;
        let expected = number::<u32>(name, &required(variables, name, "`scout-dist launch` sets it")?)?;
        if pid() != expected {
            let message = format!("the launcher of this rank (pid {expected}) is gone");
            return Err(Mistake { message, code: ExitCode::PeerLost, hint: None });
        }
    }
    // Another launcher may have started a script that started this process, and is then not what it is tied to.
    if is_ours && is_tied { Ok(()) } else { watch(lineage) }
}

/// The process that started this one, or that has inherited it; 0 where it is outside of this container.
pub fn pid() -> u32 {
    getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
}

/// The kernel takes the thread that started a process for its parent. A launcher may use a thread that ends long before
/// the launcher does, and a rank tied to such a thread would be killed in the midst of its work.
fn is_started_by_main_thread(parent: u32) -> bool {
    let own = std::process::id().to_string();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    children.is_ok_and(|children| children.split_whitespace().any(|child| child == own))
}

/// This process, the scripts between it and its launcher, and the launcher: each the child of the next.
///
/// The launcher's own parent does not count. A user may log out while the job goes on.
struct Lineage(Vec<u32>);

impl Lineage {
    /// The launcher is the nearest ancestor that does not itself have the variable which it sets.
    fn of_this_process(variable: &str) -> Lineage {
        let mut lineage = vec![std::process::id()];
        loop {
            let parent = parent_of(lineage[lineage.len() - 1]);
            lineage.push(parent);
            if parent <= 1 || !has_variable(parent, variable) {
                return Lineage(lineage);
            }
        }
    }

    /// Whether one of them is gone.
    fn is_broken(&self) -> bool {
        self.0.windows(2).any(|pair| parent_of(pair[0]) != pair[1])
    }
}

fn parent_of(process: u32) -> u32 {
    if process == std::process::id() {
        return pid();
    }
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything, parentheses included; after it come the state and the parent.
    let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
    parent.unwrap_or(0)
}

/// No, where it may not be seen: daemons of other users are no scripts of ours.
fn has_variable(process: u32, name: &str) -> bool {
    let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"=")))
}

fn watch(lineage: Lineage) -> Result<(), Mistake> {
    let wait = move || {
        while !lineage.is_broken() {
            thread::sleep(POLL);
        }
        let launcher = lineage.0[lineage.0.len() - 1];
        let text = format!("error: the launcher of this rank (pid {launcher}) is gone\n");
        // Its end of our stderr may be gone as well.
        let _ = std::io::stderr().write_all(text.as_bytes());
        leave_at_once(ExitCode::PeerLost.code().into())
    };
    match thread::Builder::new().name("parent-watch".to_string()).spawn(wait) {
        Ok(_) => Ok(()),
        Err(error) => Err(Mistake {
            message: format!("could not start a thread that watches the launcher: {error}"),
            code: ExitCode::InputOutput,
            hint: None,
        }),
    }
}
