//! The processes of this machine, as `/proc` tells. It looks, and sends signals; it waits for nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use scout_core::env::TEST_MARK;

/// A living process. One that has ended and was not yet collected by its parent does not count.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    /// The first 15 letters of the program's name.
    pub name: String,
    pub variables: BTreeMap<String, String>,
}

/// Every living process that was started with this mark in its environment, whoever is its parent by now.
pub fn marked(mark: &str) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("a Linux machine has /proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read)
        .filter(|process| process.variables.get(TEST_MARK).is_some_and(|m| m == mark))
        .collect()
}

impl Process {
    /// Nothing for a process that is gone, is nobody's but the kernel's, or belongs to another user.
    fn read(pid: u32) -> Option<Process> {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let variables = environment.split(|byte| *byte == 0).filter_map(|line| {
            let line = String::from_utf8_lossy(line);
            line.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()))
        });
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_string();
        let process = Process { pid, name, variables: variables.collect() };
        // Its memory, and with it the environment, may be there a moment longer than the process.
        process.lives().then_some(process)
    }

    /// The number of a process that is a rank, in the words of whoever started it.
    pub fn rank(&self) -> Option<usize> {
        const NAMES: [&str; 5] = ["SCOUT_DIST_RANK", "RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];
        if self.name != "scout-dist" {
            return None;
        }
        NAMES.iter().find_map(|name| self.variables.get(*name))?.parse().ok()
    }

    pub fn job_folder(&self) -> Option<PathBuf> {
        self.variables.get(scout_core::env::JOB_FOLDER).map(PathBuf::from)
    }

    /// A process that is gone needs no signal.
    pub fn send(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// A process that has ended does not, even if nobody has collected it.
    pub fn lives(&self) -> bool {
        !matches!(state(self.pid), None | Some('Z' | 'X'))
    }

    pub fn is_stopped(&self) -> bool {
        state(self.pid) == Some('T')
    }

    pub fn parent(&self) -> Option<Process> {
        let pid = after_name(self.pid)?.split(' ').nth(1)?.parse().ok()?;
        Process::read(pid)
    }

    /// Memory in KiB, as the kernel counts it: `VmRSS` is what is there now, `VmHWM` the most there ever was.
    pub fn memory(&self, line: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let value = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'))?;
        value.trim().trim_end_matches(" kB").parse().ok()
    }
}

/// `R`unning, `S`leeping, s`T`opped, `Z`ombie; nothing when there is no such process.
fn state(pid: u32) -> Option<char> {
    after_name(pid)?.chars().next()
}

/// What follows the name, which may itself hold spaces and brackets.
fn after_name(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().to_string())
}

#[test]
fn a_process_is_found_by_its_mark_until_it_is_gone() {
    let mark = format!("processes-{}", std::process::id());
    let mut sleeper = std::process::Command::new("sleep").arg("100").env(TEST_MARK, &mark).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    // Between fork and exec it is a copy of this process.
    while marked(&mark).is_empty() {
        assert!(std::time::Instant::now() < deadline);
    }
    let found = marked(&mark).remove(0);
    assert_eq!((found.pid, found.name.as_str(), found.rank()), (sleeper.id(), "sleep", None));
    assert_eq!(found.parent().unwrap().pid, std::process::id());
    found.send(Signal::STOP);
    while !found.is_stopped() {
        assert!(std::time::Instant::now() < deadline);
    }
    found.send(Signal::KILL);
    // It stays as a zombie until it is waited for, and does not count as living.
    while !marked(&mark).is_empty() {
        assert!(std::time::Instant::now() < deadline);
    }
    sleeper.wait().unwrap();
}
