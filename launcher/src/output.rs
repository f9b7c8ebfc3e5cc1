//! Passes the lines of the ranks on, each with its rank in front and none torn apart by another's.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use scout_core::Rank;

type Sink = Arc<Mutex<dyn Write + Send>>;

/// Where the ranks' lines go.
#[derive(Clone)]
pub struct Output {
    pub stdout: Sink,
    pub stderr: Sink,
}

impl Output {
    pub fn of_this_process() -> Output {
        Output { stdout: Arc::new(Mutex::new(io::stdout())), stderr: Arc::new(Mutex::new(io::stderr())) }
    }

    /// One thread per pipe of the child; each ends when the last writer closes its pipe.
    pub fn follow(&self, rank: Rank, child: &mut Child) -> Vec<JoinHandle<()>> {
        let stdout = child.stdout.take().map(|pipe| copy(rank, pipe, self.stdout.clone()));
        let stderr = child.stderr.take().map(|pipe| copy(rank, pipe, self.stderr.clone()));
        stdout.into_iter().chain(stderr).collect()
    }

    /// One line of the launcher itself.
    pub fn say(&self, line: &str) {
        write(&self.stderr, format!("{line}\n").as_bytes());
    }
}

/// A line longer than this is passed on in pieces, so that a rank which never ends its line costs no memory.
const MAX_LINE_BYTES: u64 = 64 << 10;

fn copy(rank: Rank, pipe: impl Read + Send + 'static, sink: Sink) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = format!("[rank {rank}] ").into_bytes();
        let prefix_len = line.len();
        // A pipe that cannot be read any more is at its end for us.
        while matches!(reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line), Ok(1..)) {
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            write(&sink, &line);
            line.truncate(prefix_len);
        }
    })
}

fn write(sink: &Sink, line: &[u8]) {
    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    // When nobody reads any more the pipes must still be drained, or the ranks would stop at a full one.
    let _ = sink.write_all(line).and_then(|()| sink.flush());
}

/// Waits until the last lines have been passed on, at most two seconds.
pub fn finish(readers: Vec<JoinHandle<()>>) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}
