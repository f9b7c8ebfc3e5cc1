//! A Slurm of one node, this machine: its own key, configuration, ports and daemons, all in a folder of its own, and all
//! ended when it is dropped. It touches no Slurm that is installed here.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use scout_core::env::TEST_MARK;
use tempfile::TempDir;

use crate::processes::marked;
use crate::started::new_mark;

const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// Daemons lie where the search path of a user who is not root does not lead.
const FOLDERS_OF_DAEMONS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

pub struct Slurm {
    folder: TempDir,
    mark: String,
    // In the order in which they were started; they end in the opposite order.
    daemons: Vec<Child>,
}

impl Slurm {
    /// Returns when the node takes jobs.
    pub fn start() -> Slurm {
        let mut slurm = Slurm { folder: tempfile::tempdir().unwrap(), mark: new_mark(), daemons: Vec::new() };
        let root = slurm.folder.path().to_path_buf();
        for name in ["state", "spool"] {
            fs::DirBuilder::new().mode(0o700).create(root.join(name)).unwrap();
        }
        fs::write(root.join("slurm.conf"), configuration(&root)).unwrap();
        fs::write(root.join("key"), random_bytes()).unwrap();
        fs::set_permissions(root.join("key"), Permissions::from_mode(0o400)).unwrap();

        let path = |name: &str| root.join(name).display().to_string();
        slurm.daemon(
            "munged",
            &[
                "--foreground",
                // The folder is closed to others, which is more than it asks for.
                "--force",
                "--num-threads=2",
                &format!("--key-file={}", path("key")),
                &format!("--socket={}", path("munge")),
                &format!("--pid-file={}", path("munged.pid")),
                &format!("--seed-file={}", path("seed")),
                &format!("--log-file={}", path("munged.log")),
            ],
        );
        slurm.wait_until("munged listens", |_| root.join("munge").exists());
        slurm.daemon("slurmctld", &["-D", "-f", &path("slurm.conf")]);
        slurm.daemon("slurmd", &["-D", "-f", &path("slurm.conf")]);
        slurm.wait_until("the node is idle", |slurm| slurm.says("sinfo", &["-h", "-o", "%T"]) == "idle");
        slurm
    }

    /// Points a command of Slurm's, or a program that calls one, at this Slurm.
    pub fn point(&self, mut command: Command) -> Command {
        command.env("SLURM_CONF", self.folder.path().join("slurm.conf"));
        command
    }

    /// What a command of Slurm's prints.
    pub fn says(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = self.point(Command::new(name));
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|error| missing(name, &error));
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }

    fn daemon(&mut self, name: &str, arguments: &[&str]) {
        let log = File::create(self.folder.path().join(format!("{name}.out"))).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = self.point(Command::new(name));
        command
            .args(arguments)
            .env("PATH", format!("{path}:{FOLDERS_OF_DAEMONS}"))
            .env(TEST_MARK, &self.mark)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap_or_else(|error| missing(name, &error));
        self.daemons.push(child);
    }

    fn wait_until(&mut self, what: &str, holds: impl Fn(&Slurm) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let has_ended = self.daemons.iter_mut().any(|daemon| !matches!(daemon.try_wait(), Ok(None)));
            if has_ended || begun.elapsed() > START {
                panic!("waited {:?} until {what}\n{}", begun.elapsed(), self.logs());
            }
            thread::sleep(LOOK);
        }
    }

    fn logs(&self) -> String {
        let names = ["munged.log", "munged.out", "slurmctld.out", "slurmd.out"];
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        names.map(|name| format!("-- {name}\n{}", read(name))).concat()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // Asked to end, they end their own children too; munged, the first, is needed until the others are gone.
        for daemon in self.daemons.iter_mut().rev() {
            if let Some(pid) = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let deadline = Instant::now() + Duration::from_secs(5);
            while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(LOOK);
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // The step of a job that has just ended stays a second longer, and is a child of nobody.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let living = marked(&self.mark);
            for process in &living {
                process.send(Signal::KILL);
            }
            if living.is_empty() || Instant::now() > deadline {
                return;
            }
            thread::sleep(LOOK);
        }
    }
}

fn configuration(root: &Path) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    // Slurm calls a node by the first part of its name.
    let host = host.trim().split('.').next().unwrap();
    let user = rustix::process::geteuid().as_raw();
    let cpus = thread::available_parallelism().unwrap().get();
    let [controller_port, node_port] = free_ports();
    let root = root.display();
    format!(
        "ClusterName=test\n\
         SlurmctldHost={host}(127.0.0.1)\n\
         SlurmctldPort={controller_port}\n\
         SlurmdPort={node_port}\n\
         SlurmUser={user}\n\
         SlurmdUser={user}\n\
         AuthType=auth/munge\n\
         AuthInfo=socket={root}/munge\n\
         CredType=cred/munge\n\
         StateSaveLocation={root}/state\n\
         SlurmdSpoolDir={root}/spool\n\
         SlurmctldPidFile={root}/slurmctld.pid\n\
         SlurmdPidFile={root}/slurmd.pid\n\
         ProctrackType=proctrack/linuxproc\n\
         TaskPlugin=task/none\n\
         JobAcctGatherType=jobacct_gather/none\n\
         AccountingStorageType=accounting_storage/none\n\
         JobCompType=jobcomp/none\n\
         SwitchType=switch/none\n\
         MpiDefault=none\n\
         ReturnToService=2\n\
         SelectType=select/cons_tres\n\
         SelectTypeParameters=CR_CPU\n\
         NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN\n\
         PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    )
}

/// Ports that nobody has right now. Slurm wants numbers, so somebody could still take one before it does.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn random_bytes() -> Vec<u8> {
    use std::io::Read;
    let mut bytes = vec![0; 128];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).unwrap();
    bytes
}

/// A tool that is not there is a failure: these tests are about it.
fn missing(name: &str, error: &std::io::Error) -> ! {
    panic!("`{name}` does not start ({error}); `cargo xtask test --all` installs what the tests need, as root")
}

#[test]
fn a_slurm_of_its_own_runs_four_tasks_on_any_number_of_cores_and_leaves_nothing_behind() {
    let _turn = crate::started::turn();
    let slurm = Slurm::start();
    let kinds = slurm.says("srun", &["--mpi=list"]);
    for kind in ["none", "pmix"] {
        assert!(kinds.lines().any(|line| line.trim() == kind), "no --mpi={kind} in\n{kinds}");
        let mpi = format!("--mpi={kind}");
        let said = slurm.says("srun", &["-N1", "--overcommit", "-n", "4", &mpi, "printenv", "SLURM_PROCID"]);
        let mut tasks: Vec<&str> = said.lines().collect();
        tasks.sort_unstable();
        assert_eq!(tasks, ["0", "1", "2", "3"], "{}", slurm.logs());
    }
    let mark = slurm.mark.clone();
    assert!(marked(&mark).len() >= 3);
    drop(slurm);
    assert!(marked(&mark).is_empty());
}
