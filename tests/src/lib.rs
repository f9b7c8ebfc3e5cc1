//! What whole-program tests share: where the fixtures lie, and how the program under test is started, with a bounded
//! wait, so that no test can hang.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use scout_core::env::TEST_BINARY;

/// Folder of recorded reference numbers.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program under test. `cargo xtask test` builds it and says where it is; without that a test fails, it does not
/// pass by doing nothing.
pub fn program() -> PathBuf {
    match std::env::var_os(TEST_BINARY) {
        Some(path) => PathBuf::from(path),
        None => panic!("{TEST_BINARY} is not set: run the tests with `cargo xtask test`"),
    }
}

/// Runs the program in `folder` and fails the test if it takes longer than `limit`.
pub fn run_in(folder: &Path, arguments: &[&str], limit: Duration) -> Ended {
    let mut child = Command::new(program())
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program under test starts");
    // Pipes are drained by threads, or a talkative child would wait for us while we wait for it.
    let stdout = drain(child.stdout.take().expect("piped"));
    let stderr = drain(child.stderr.take().expect("piped"));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child can be asked") {
            break status;
        }
        if begun.elapsed() > limit {
            child.kill().expect("the child can be killed");
            panic!("`{}` did not end within {limit:?}", arguments.join(" "));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let output = Output {
        status,
        stdout: stdout.join().expect("the reader does not panic"),
        stderr: stderr.join().expect("the reader does not panic"),
    };
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn drain(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // An error here means that the child closed the pipe in the middle: what was read is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}
