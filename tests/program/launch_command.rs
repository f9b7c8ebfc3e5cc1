//! `launch`, and what ties a rank to whoever started it. What ranks compute together is tested elsewhere.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use scout_tests::program;

use crate::folder::Folder;

/// More than a busy machine needs for anything that is waited for here.
const SOON: Duration = Duration::from_secs(60);
/// What ranks are promised to outlive their launcher by, at most.
const ORPHANED: Duration = Duration::from_secs(5);

#[test]
fn launch_explains_itself() {
    let folder = Folder::empty();
    assert!(folder.succeed(&["--help"]).stdout.contains("\n  launch "));
    let own = folder.succeed(&["launch", "--help"]).stdout;
    for part in ["Usage: scout-dist launch", "-n, --ranks <N>", "--tcp", "<COMMAND>"] {
        assert!(own.contains(part), "`{part}` is missing:\n{own}");
    }
}

#[test]
fn every_rank_gets_the_command_as_the_user_wrote_it() {
    let folder = Folder::with_toy();
    let plain = folder.succeed(&["plan", "run.yaml", "lora_rank=2", "--synthetic", "--json"]);
    for tcp in [&[][..], &["--tcp"]] {
        let words =
            [&["launch", "-n", "2"], tcp, &["plan", "run.yaml", "lora_rank=2", "--synthetic", "--json"]].concat();
        let launched = folder.succeed(&words);
        for rank in 0..2 {
            let prefix = format!("[rank {rank}] ");
            let lines: Vec<&str> = launched.stdout.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
            assert_eq!(lines, plain.stdout.lines().collect::<Vec<_>>(), "rank {rank}");
        }
    }
}

#[test]
fn a_launch_that_cannot_work_is_refused_once_before_any_rank_is_started() {
    let folder = Folder::empty();
    let under_open_mpi =
        [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_RANK", "1")];
    let cases: [(&[&str], &[&str]); 7] = [
        (&["launch", "train"], &["--ranks <N>"]),
        (&["launch", "-n", "0", "train"], &["'0'", "1.."]),
        (&["launch", "-n", "2"], &["<COMMAND>"]),
        (&["launch", "-n", "2", "trian", "run.yaml"], &["'trian'", "train"]),
        (&["launch", "-n", "2", "train", "--worlds", "3"], &["'--worlds'"]),
        (&["launch", "-n", "2", "launch", "-n", "2", "train"], &["`launch` cannot start `launch`"]),
        (&["launch", "-n", "2", "train"], &["rank 1 of 2", "Open MPI"]),
    ];
    for (index, (words, parts)) in cases.iter().enumerate() {
        // The last is right in itself, and started where it must not be.
        let variables = if index + 1 == cases.len() { &under_open_mpi[..] } else { &[] };
        let ended = folder.run_with(variables, words);
        assert_eq!(ended.code, Some(2), "{words:?}\n{}", ended.stderr);
        assert!(!ended.stderr.contains("[rank "), "{}", ended.stderr);
        for part in *parts {
            assert!(ended.stderr.contains(part), "{words:?} does not say `{part}`:\n{}", ended.stderr);
        }
    }
}

#[test]
fn the_code_of_the_ranks_is_that_of_the_launch() {
    let folder = Folder::empty();
    folder.write("bad.yaml", "learnin_rate: 1\n");
    for (config, expected, said) in [("absent.yaml", 66, "absent.yaml"), ("bad.yaml", 78, "bad.yaml:1:1: unknown key")]
    {
        let ended = folder.run(&["launch", "-n", "2", "train", config]);
        assert_eq!(ended.code, Some(expected), "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
}

#[test]
fn a_key_that_ranks_find_to_be_wrong_is_told_once_with_its_place() {
    let folder = Folder::with_toy();
    let ended = folder.run(&["launch", "-n", "2", "train", "run.yaml", "resident_layers=60"]);
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    let place = "override resident_layers=60: resident_layers: is 60, and the model has ";
    assert_eq!(ended.stderr.matches(place).count(), 1, "{}", ended.stderr);
}

#[test]
fn no_rank_outlives_a_launcher_that_is_killed() {
    let folder = with_a_long_run();
    let mut launcher =
        Running::start(&folder, Command::new(program()).args(["launch", "-n", "2", "train", "run.yaml"]));
    launcher.wait_for_descendants(2);
    let job_folder = launcher.job_folder();
    launcher.kill();
    launcher.expect_nobody_left();

    // Its folder is removed by the next launch of this user.
    assert!(job_folder.is_dir(), "{}", job_folder.display());
    folder.run(&["launch", "-n", "1", "train", "absent.yaml"]);
    assert!(!job_folder.exists(), "{} is left", job_folder.display());
}

#[test]
fn a_rank_whose_launcher_was_gone_before_it_could_ask_leaves_at_once() {
    let folder = with_a_long_run();
    let variables = [
        ("SCOUT_DIST_RANK", "0"),
        ("SCOUT_DIST_WORLD_SIZE", "1"),
        ("SCOUT_DIST_LOCAL_RANK", "0"),
        ("SCOUT_DIST_JOB_FOLDER", "."),
        ("SCOUT_DIST_LAUNCHER_PID", "1"),
    ];
    let ended = folder.run_with(&variables, &["train", "run.yaml"]);
    assert_eq!(ended.code, Some(76), "{}", ended.stderr);
    assert_eq!(ended.stderr, "error: the launcher of this rank (pid 1) is gone\n");
}

/// Variables as Open MPI sets them for the only rank of a job.
const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_LOCAL_RANK=0";

#[test]
fn no_rank_outlives_another_launcher_that_is_killed_even_with_a_script_between_them() {
    let folder = with_a_long_run();
    let program = program();
    // What follows keeps each shell from becoming what it starts.
    let rank = format!("{} train run.yaml; true", program.display());
    for (script, num_descendants) in
        [(format!("env {OPEN_MPI} {rank}"), 1), (format!("env {OPEN_MPI} sh -c 'sh -c \"{rank}\"; true'; true"), 3)]
    {
        let mut launcher = Running::start(&folder, Command::new("sh").args(["-c", &script]));
        let ranks = launcher.wait_for_descendants(num_descendants);
        // Only from here on it knows its launcher; `launch` has other means against an earlier death.
        wait_until("the rank watches its launcher", || ranks.iter().any(|rank| has_thread(*rank, "parent-watch")));
        launcher.kill();
        launcher.expect_nobody_left();
    }
}

#[test]
fn a_rank_does_not_die_with_the_thread_of_its_launcher_that_started_it() {
    let folder = Folder::with_toy();
    // Long enough to be seen at work, short enough to be waited for.
    folder.write("run.yaml", folder.text("run.yaml").replace("max_steps: 3", "max_steps: 100"));
    let starter = thread::scope(|scope| {
        let start = || {
            let variables = OPEN_MPI.split(' ').map(|word| word.split_once('=').unwrap());
            let mut command = Command::new(program());
            let running = Running::start(&folder, command.args(["train", "run.yaml"]).envs(variables));
            let pid = running.child.id();
            wait_until("the rank watches its launcher", || has_thread(pid, "parent-watch") || !is_rank(pid));
            running
        };
        scope.spawn(start).join()
    });
    let status = starter.unwrap().wait();
    assert!(status.success(), "{status}\n{}", folder.text("output"));
}

/// A job that goes on until somebody ends it, and says nothing meanwhile: a rank that writes to a pipe nobody reads any
/// more would end for that alone.
fn with_a_long_run() -> Folder {
    let folder = Folder::with_toy();
    let run = folder.text("run.yaml");
    let run = run.replace("max_steps: 3", "max_steps: 1000000").replace("logging_steps: 1", "logging_steps: 1000000");
    folder.write("run.yaml", run);
    folder
}

/// A process and those that it started; dropped, all of them are killed.
struct Running {
    child: Child,
    descendants: Vec<u32>,
}

impl Running {
    /// What it says goes to the file `output`.
    fn start(folder: &Folder, command: &mut Command) -> Running {
        let output = fs::File::create(folder.path("output")).unwrap();
        command.current_dir(folder.root()).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Running { child: command.spawn().unwrap(), descendants: Vec::new() }
    }

    fn wait_for_descendants(&mut self, count: usize) -> Vec<u32> {
        wait_until("the ranks are started", || {
            self.descendants = descendants(self.child.id());
            self.descendants.len() == count
        });
        self.descendants.clone()
    }

    /// The folder that the launcher made, as its first rank was told.
    fn job_folder(&self) -> PathBuf {
        let mut folder = None;
        wait_until("the rank has its variables", || {
            folder = variable_of(self.descendants[0], "SCOUT_DIST_JOB_FOLDER");
            folder.is_some()
        });
        PathBuf::from(folder.unwrap())
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn expect_nobody_left(&self) {
        let deadline = Instant::now() + ORPHANED;
        while self.descendants.iter().any(|pid| is_rank(*pid)) {
            assert!(Instant::now() < deadline, "{:?} outlived their launcher", self.descendants);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.descendants.iter().filter(|pid| is_rank(**pid)) {
            signal("KILL", *pid);
        }
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, pid: u32) {
    // The process may have ended by itself.
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
}

/// Children, their children, and so on.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            parents.extend(children.split_whitespace().map(|child| child.parse::<u32>().unwrap()));
        }
        found.push(parent);
    }
    found.retain(|descendant| *descendant != pid);
    found.sort();
    found
}

/// Whether the process lives and is the program under test: its number may belong to another by now.
fn is_rank(pid: u32) -> bool {
    let is_dead = fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_or(true, |stat| stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']));
    let file = fs::read_link(format!("/proc/{pid}/exe"));
    !is_dead && file.is_ok_and(|file| file == fs::canonicalize(program()).unwrap())
}

fn variable_of(pid: u32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let entries = environment.split(|byte| *byte == 0).map(|entry| String::from_utf8_lossy(entry).into_owned());
    entries.into_iter().find_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_string()))
}

fn has_thread(pid: u32, name: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.into_iter().any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
}
