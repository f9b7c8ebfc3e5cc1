//! Runs a command in a process group of its own, passes its lines on as they come, and ends the whole group when it
//! takes too long, when it leaves processes behind, or when the user interrupts.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// No single command takes this long on a small machine unless it hangs.
pub const KILL_TIME: Duration = Duration::from_secs(30 * 60);

/// After the command itself has ended, its last lines arrive within this time, or something still holds its pipes.
const LEFTOVER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Runs the command without stdin and gives `hear` every line it prints. Returns whether it succeeded; taking longer
/// than `limit` and leaving processes behind are failures, and said so.
pub fn run(command: &mut Command, limit: Duration, hear: &mut dyn FnMut(&str)) -> Result<bool> {
    follow_to_its_end(command, limit, &mut |stream, line| {
        hear(line);
        pass_on(stream, line);
    })
}

/// The same for a command whose lines are worth showing only sometimes: they are returned instead, in the order in which
/// they came.
pub fn run_quietly(command: &mut Command, limit: Duration) -> Result<(bool, String)> {
    let mut lines = String::new();
    let succeeded = follow_to_its_end(command, limit, &mut |_, line| lines.push_str(line))?;
    Ok((succeeded, lines))
}

fn follow_to_its_end(command: &mut Command, limit: Duration, hear: &mut dyn FnMut(Stream, &str)) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("could not start `{program}`"))?;
    let (sender, lines) = channel();
    follow(child.stdout.take().context("stdout is a pipe")?, Stream::Stdout, sender.clone());
    follow(child.stderr.take().context("stderr is a pipe")?, Stream::Stderr, sender);
    let ended = listen(&mut child, &lines, limit, hear);
    // Whatever the reason, nothing of this command outlives it.
    end_group(&child);
    let status = child.wait().with_context(|| format!("could not wait for `{program}`"))?;
    match ended? {
        Ended::Alone => Ok(status.success()),
        Ended::TooLate => {
            eprintln!("error: `{program}` was killed after {limit:?}");
            Ok(false)
        }
        Ended::LeftOthers => {
            eprintln!("error: `{program}` ended and left processes behind, which were killed");
            Ok(false)
        }
    }
}

/// From here on an interrupt or a request to end is noticed by `run`, which ends what it started first.
pub fn end_children_on_interrupt() -> Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted().clone()).context("could not listen for signals")?;
    }
    Ok(())
}

fn interrupted() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

enum Ended {
    Alone,
    TooLate,
    LeftOthers,
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

fn listen(
    child: &mut Child,
    lines: &Receiver<(Stream, String)>,
    limit: Duration,
    hear: &mut dyn FnMut(Stream, &str),
) -> Result<Ended> {
    let deadline = Instant::now() + limit;
    let mut gone_since = None;
    loop {
        match lines.recv_timeout(POLL) {
            Ok((stream, line)) => hear(stream, &line),
            Err(RecvTimeoutError::Timeout) => {}
            // Both pipes are closed; the command has nothing more to say and is about to end.
            Err(RecvTimeoutError::Disconnected) if gone_since.is_some() => return Ok(Ended::Alone),
            Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
        }
        if gone_since.is_none() && child.try_wait()?.is_some() {
            gone_since = Some(Instant::now());
        }
        if gone_since.is_some_and(|since| since.elapsed() > LEFTOVER) {
            return Ok(Ended::LeftOthers);
        }
        if Instant::now() > deadline {
            return Ok(Ended::TooLate);
        }
        if interrupted().load(Ordering::Relaxed) {
            bail!("interrupted");
        }
    }
}

fn follow(pipe: impl Read + Send + 'static, stream: Stream, lines: Sender<(Stream, String)>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            if lines.send((stream, String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
            line.clear();
        }
    });
}

fn pass_on(stream: Stream, line: &str) {
    // When nobody reads our own output any more, the exit code still tells how it went.
    let _ = match stream {
        Stream::Stdout => std::io::stdout().lock().write_all(line.as_bytes()),
        Stream::Stderr => std::io::stderr().lock().write_all(line.as_bytes()),
    };
}

fn end_group(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Usually the group is gone already.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (bool, Vec<String>, Duration) {
        let started = Instant::now();
        let mut heard = Vec::new();
        let mut command = Command::new("/bin/sh");
        let succeeded =
            run(command.args(["-c", script]), limit, &mut |line| heard.push(line.trim().to_string())).unwrap();
        (succeeded, heard, started.elapsed())
    }

    #[test]
    fn lines_of_both_streams_are_heard_and_the_exit_code_decides() {
        let (succeeded, mut heard, _) = shell("echo one; echo two >&2; printf three", Duration::from_secs(30));
        heard.sort();
        assert_eq!((succeeded, heard), (true, vec!["one".to_string(), "three".to_string(), "two".to_string()]));
        assert!(!shell("exit 3", Duration::from_secs(30)).0);
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let (succeeded, heard, took) = shell("sleep 100 & echo $!; wait", Duration::from_millis(500));
        assert!(!succeeded && took < Duration::from_secs(30), "{took:?}");
        wait_until_gone(&heard[0]);
    }

    #[test]
    fn processes_left_behind_are_killed_and_are_a_failure() {
        let (succeeded, heard, took) = shell("sleep 100 & echo $!", Duration::from_secs(60));
        assert!(!succeeded && took < Duration::from_secs(40), "{took:?}");
        wait_until_gone(&heard[0]);
    }

    fn wait_until_gone(pid: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let is_running = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'),
            Err(_) => false,
        };
        while is_running() {
            assert!(Instant::now() < deadline, "process {pid} still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }
}
