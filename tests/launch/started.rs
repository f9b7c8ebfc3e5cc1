//! One job while it runs: its processes, what they have said so far, and how they end. Dropping it leaves no process of
//! the job behind, however the test ended.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scout_core::env::TEST_MARK;

use crate::processes::{Process, marked};

/// Far more than any of these jobs takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(100);

/// Time between two looks at a state that is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// Jobs measure times; two at once would measure each other. A test that failed gives its turn back all the same.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Started {
    mark: String,
    children: Vec<Child>,
    output: Arc<Mutex<Said>>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default, Clone)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// Of each process that the test itself started.
    pub codes: Vec<Option<i32>>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The code of a job that one process started.
    pub fn code(&self) -> Option<i32> {
        self.codes[0]
    }

    pub fn expect_success(&self) {
        assert!(self.codes.iter().all(|code| *code == Some(0)), "{self}");
    }

    /// The lines of stderr that hold this.
    pub fn lines_with(&self, part: &str) -> Vec<&str> {
        self.stderr.lines().filter(|line| line.contains(part)).collect()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "codes {:?}\n-- stdout\n{}-- stderr\n{}", self.codes, self.stdout, self.stderr)
    }
}

/// A mark that no other job of this machine has.
pub fn new_mark() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Started {
    pub fn one(command: Command) -> Started {
        Started::several(vec![command])
    }

    /// A job whose ranks the test starts itself.
    pub fn several(commands: Vec<Command>) -> Started {
        let mut job = Started { mark: new_mark(), children: Vec::new(), output: Arc::default(), readers: Vec::new() };
        for mut command in commands {
            command.env(TEST_MARK, &job.mark).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command
                .spawn()
                .unwrap_or_else(|error| panic!("`{}` does not start: {error}", command.get_program().display()));
            let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            job.readers.push(follow(stdout, job.output.clone(), |said| &mut said.stdout));
            job.readers.push(follow(stderr, job.output.clone(), |said| &mut said.stderr));
            job.children.push(child);
        }
        job
    }

    /// What was said until now.
    pub fn said(&self) -> Said {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn processes(&self) -> Vec<Process> {
        marked(&self.mark)
    }

    /// The process that the test itself started.
    pub fn starter(&self) -> Process {
        let pid = self.children[0].id();
        self.processes().into_iter().find(|process| process.pid == pid).unwrap_or_else(|| self.fail("it has ended"))
    }

    /// Every rank that lives now.
    pub fn ranks(&self) -> BTreeMap<usize, Process> {
        self.processes().into_iter().filter_map(|process| Some((process.rank()?, process))).collect()
    }

    pub fn wait_for_ranks(&self, count: usize) -> BTreeMap<usize, Process> {
        self.wait_until(&format!("{count} ranks live"), LIMIT, || Some(self.ranks()).filter(|r| r.len() == count))
    }

    /// Returns what `look` finds; fails the test when it finds nothing for so long.
    pub fn wait_until<T>(&self, what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        for turn in 1.. {
            if let Some(found) = look() {
                return found;
            }
            if begun.elapsed() > limit {
                self.fail(&format!("waited {limit:?} until {what}"));
            }
            // A job that is over will not come to it any more.
            if turn % 100 == 0 && self.processes().is_empty() {
                return look().unwrap_or_else(|| self.fail(&format!("the job ended before {what}")));
            }
            thread::sleep(LOOK);
        }
        unreachable!("the loop counts for ever")
    }

    /// Waits until no process of the job lives, and returns how long that took.
    pub fn time_until_gone(&self, since: Instant, limit: Duration) -> Duration {
        self.wait_until("no process of the job lives", limit, || self.processes().is_empty().then(|| since.elapsed()))
    }

    fn fail(&self, why: &str) -> ! {
        let living: Vec<(u32, String)> = self.processes().into_iter().map(|p| (p.pid, p.name)).collect();
        let said = self.said();
        panic!("{why}\nliving: {living:?}\n-- stdout\n{}-- stderr\n{}", said.stdout, said.stderr)
    }

    /// Waits for the processes that the test started, and for their last words.
    pub fn end_within(mut self, limit: Duration) -> Ended {
        let begun = Instant::now();
        let mut codes = Vec::new();
        for index in 0..self.children.len() {
            let status = loop {
                if let Some(status) = self.children[index].try_wait().expect("a child can be asked") {
                    break status;
                }
                if begun.elapsed() > limit {
                    self.fail(&format!("the job did not end within {limit:?}"));
                }
                thread::sleep(LOOK);
            };
            codes.push(status.code());
        }
        // Whoever outlived the starter may hold its pipes, which is another test's business.
        let readers_end = Instant::now() + Duration::from_secs(5);
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < readers_end {
            thread::sleep(LOOK);
        }
        let Said { stdout, stderr } = self.said();
        Ended { codes, stdout, stderr }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let living = self.processes();
            for process in &living {
                process.send(Signal::KILL);
            }
            for child in &mut self.children {
                // Collected, or not ended yet; both are seen on the next turn.
                let _ = child.try_wait();
            }
            if living.is_empty() || Instant::now() > deadline {
                return;
            }
            thread::sleep(LOOK);
        }
    }
}

fn follow(
    mut pipe: impl Read + Send + 'static,
    said: Arc<Mutex<Said>>,
    of: fn(&mut Said) -> &mut String,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut bytes) {
            of(&mut said.lock().unwrap_or_else(PoisonError::into_inner))
                .push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    })
}
