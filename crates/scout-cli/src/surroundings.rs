//! The process's surroundings: environment variables, the terminal, standard output. The environment is read here and
//! nowhere else.

use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use scout_device::cuda::nccl::{HOST as NCCL_HOST, MULTICAST_OFF};
use scout_device::cuda::{CudaOptions, MOST_QUEUES, QUEUES, Search};
use scout_telemetry::Terminal;

use crate::failure::Mistake;
use crate::ranks::{self, Process, Ranks};

/// All variables, for configuration keys set as `SCOUT_DIST__KEY`.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Where the CUDA libraries are looked for, and where compiled kernels are kept.
pub fn cuda() -> CudaOptions {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    CudaOptions {
        search: Search {
            cuda_libs: std::env::var_os(scout_core::env::CUDA_LIBS),
            library_path: std::env::var_os("LD_LIBRARY_PATH"),
            virtual_env: std::env::var_os("VIRTUAL_ENV"),
        },
        kernel_cache: cache.map(|cache| cache.join("scout-dist").join("kernels")),
        ..CudaOptions::default()
    }
}

/// One rank of several begins anew with what NCCL and the driver ask the environment for, where nobody has decided on it:
/// there is no other way to tell them. Nothing has been opened and no thread runs yet; the process stays the same.
pub fn begin_as_one_of_several() -> std::io::Result<()> {
    // A seat that makes no sense is told later, by whoever needs one.
    let Some(seat) = ranks::seat(&variable).ok().filter(|seat| seat.world_size > 1) else { return Ok(()) };
    let queues = (MOST_QUEUES / seat.ranks_of_a_gpu()).max(1);
    let mut wanted = vec![(MULTICAST_OFF.0, MULTICAST_OFF.1.to_string()), (QUEUES, queues.to_string())];
    // NCCL refuses two ranks on one GPU, unless it takes each for a host of its own.
    wanted.extend(seat.shared_gpus.map(|_| (NCCL_HOST, format!("rank {}", seat.rank))));
    let missing: Vec<_> = wanted.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let mut again = Command::new(std::env::current_exe()?);
    if let Some(own_name) = arguments.next() {
        again.arg0(own_name);
    }
    Err(again.args(arguments).envs(missing).exec())
}

/// The value of a variable that is set to something.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Which of how many ranks this process is, and where they meet.
pub fn ranks() -> Result<Ranks, Mistake> {
    ranks::find(&variable, &Process::this())
}

/// Takes this rank's share of the cores where `local_size` ranks share them. Whoever sets the number of threads knows
/// better, and so does a launcher that has bound this rank to some of the cores.
pub fn share_the_host(local_size: usize) -> std::io::Result<()> {
    // A quota of time is shared by all ranks of a container; only cores that are withheld are a binding.
    let allowed =
        read("/proc/self/status").lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:").map(num_listed));
    let is_bound = allowed.is_some_and(|allowed| allowed < num_listed(&read("/sys/devices/system/cpu/online")));
    if is_bound || variable("RAYON_NUM_THREADS").is_some() {
        return Ok(());
    }
    let share = (std::thread::available_parallelism()?.get() / local_size).max(1);
    rayon::ThreadPoolBuilder::new().num_threads(share).build_global().map_err(std::io::Error::other)
}

/// A file of the kernel's; where there is none, nothing is known and nothing is read.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Cores in a list such as `0-3,8`.
fn num_listed(list: &str) -> usize {
    let count = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()? - first.parse::<usize>().ok()? + 1)
    };
    list.trim().split(',').filter_map(count).sum()
}

/// What stderr can show.
pub fn terminal() -> Terminal {
    let is_tty = std::io::stderr().is_terminal() && variable("TERM").as_deref() != Some("dumb");
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable).unwrap_or_default().to_ascii_uppercase();
    let forced = variable("FORCE_COLOR").or(variable("CLICOLOR_FORCE")).is_some();
    Terminal {
        is_tty,
        color: (is_tty || forced) && variable("NO_COLOR").is_none(),
        utf8: locale.contains("UTF-8") || locale.contains("UTF8"),
        width: variable("COLUMNS").and_then(|columns| columns.parse().ok()).unwrap_or(100),
    }
}

/// Prints a line of results. Whoever reads them may stop reading, as `head` does: that is no error.
pub fn print(line: &str) -> std::io::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_cores_are_counted() {
        for (list, expected) in [("0-3,8\n", 5), ("\t0\n", 1), ("0-127", 128), ("", 0)] {
            assert_eq!(num_listed(list), expected, "{list:?}");
        }
    }
}
