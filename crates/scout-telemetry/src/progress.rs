//! What a person sees while a run goes on: one bar on a terminal, one plain line per logged step anywhere else, all of
//! it on stderr. It does not look at the environment; the command line says what the terminal can do.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use scout_core::ByteCount;
use scout_core::causes::with_causes;

use crate::error::TelemetryError;
use crate::run_files::RunningLog;
use crate::spelling::{clock, grouped};
use crate::step_log::StepRecord;

/// What stderr can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    pub is_tty: bool,
    pub color: bool,
    pub utf8: bool,
    /// Columns.
    pub width: usize,
}

impl Terminal {
    /// A file or a pipe, as under Slurm.
    pub const fn plain() -> Terminal {
        Terminal { is_tty: false, color: false, utf8: false, width: 120 }
    }
}

/// The voice of the first rank. Everything said through it also goes to the running log, once there is one.
pub struct Progress {
    terminal: Terminal,
    sink: Box<dyn Write + Send>,
    bar: Option<ProgressBar>,
    log: Tee,
}

/// Where the copy of what is said goes.
enum Tee {
    /// Into memory, as long as there is no run folder yet.
    Waiting(Vec<String>),
    Open(RunningLog),
    Nowhere,
}

impl Progress {
    /// Speaks on stderr.
    pub fn new(terminal: Terminal) -> Progress {
        Progress::to(terminal, Box::new(io::stderr()))
    }

    /// Says nothing: for every rank but the first.
    pub fn silent() -> Progress {
        Progress { log: Tee::Nowhere, ..Progress::to(Terminal::plain(), Box::new(io::sink())) }
    }

    fn to(terminal: Terminal, sink: Box<dyn Write + Send>) -> Progress {
        Progress { terminal, sink, bar: None, log: Tee::Waiting(Vec::new()) }
    }

    /// From here on everything is also written to `log`, what was said before training first.
    pub fn tee(&mut self, mut log: RunningLog) -> Result<(), TelemetryError> {
        if let Tee::Waiting(lines) = &self.log {
            for line in lines {
                log.line(line)?;
            }
        }
        self.log = Tee::Open(log);
        Ok(())
    }

    /// Says one line, above the bar where there is one. A terminal that went away is no reason to end a run, nor is a log on a
    /// disk that is full.
    pub fn say(&mut self, line: &str) {
        self.show(line);
        self.keep(line);
    }

    fn show(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| write_line(&mut self.sink, line)),
            None => write_line(&mut self.sink, line),
        }
    }

    /// How much of the weights is read: a bar of its own on a terminal, and nothing anywhere else.
    pub fn reading(&mut self, done: ByteCount, in_all: ByteCount) {
        if !self.terminal.is_tty {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(in_all.0), ProgressDrawTarget::stderr());
            bar.with_style(style(self.terminal, "{binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}"))
        });
        bar.set_position(done.0);
    }

    /// Weights are read: their bar is gone, and what follows is said in its place.
    pub fn finish_reading(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Training begins after `first_step` updates, which is not zero when a run is resumed.
    pub fn begin(&mut self, first_step: u64, total_steps: u64) {
        if matches!(self.log, Tee::Waiting(_)) {
            // A run without a running log must not collect its lines for ever.
            self.log = Tee::Nowhere;
        }
        if !self.terminal.is_tty {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr());
        bar.set_style(style(self.terminal, "{pos}/{len}  {wide_msg}"));
        bar.set_position(first_step);
        self.bar = Some(bar);
    }

    /// An update is done. Moves the bar; nobody waits for the device.
    pub fn advance(&self, current_steps: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(current_steps);
        }
    }

    /// A step whose numbers are known: beside the bar, or as a line of its own.
    pub fn logged(&mut self, record: &StepRecord) {
        let line = step_line(record);
        match &self.bar {
            Some(bar) => {
                bar.set_position(record.current_steps);
                bar.set_message(bar_message(record));
            }
            None => write_line(&mut self.sink, &line),
        }
        self.keep(&line);
    }

    /// Training is over: the bar stays where it is, and what follows is said below it.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
            // The bar leaves the cursor in its own line.
            write_line(&mut self.sink, "");
        }
    }

    fn keep(&mut self, line: &str) {
        let kept = match &mut self.log {
            Tee::Open(log) => log.line(line),
            Tee::Waiting(lines) => {
                lines.push(line.to_string());
                Ok(())
            }
            Tee::Nowhere => Ok(()),
        };
        if let Err(error) = kept {
            self.log = Tee::Nowhere;
            self.show(&format!("warning: {}; the run goes on without it", with_causes(&error)));
        }
    }
}

/// One write and one flush per line, so that lines of several processes do not mix and a follower sees them at once.
fn write_line(sink: &mut dyn Write, line: &str) {
    // Nobody is left to be told when stderr itself is gone.
    let _ = sink.write_all(format!("{line}\n").as_bytes()).and_then(|()| sink.flush());
}

/// A bar with `beside` it.
fn style(terminal: Terminal, beside: &str) -> ProgressStyle {
    // What the counter and the message leave of an ordinary terminal.
    let width = terminal.width.saturating_sub(68).clamp(8, 30);
    let color = if terminal.color { ".cyan/blue" } else { "" };
    let template = format!("{{bar:{width}{color}}} {beside}");
    let style = ProgressStyle::with_template(&template).expect("the template holds only keys that indicatif knows");
    style.progress_chars(if terminal.utf8 { "━╸─" } else { "=>-" })
}

/// The most wanted number first: a narrow terminal cuts off the end.
fn bar_message(record: &StepRecord) -> String {
    let parts = [
        record.loss.map(|loss| format!("loss {loss:.4}")),
        record.eval_loss.map(|loss| format!("eval loss {loss:.4}")),
        record.remaining().map(|left| format!("ETA {}", clock(left))),
        record.tok_s_gpu.map(|speed| format!("{} tok/s/GPU", grouped(speed.round() as u64))),
        record.lr.map(|lr| format!("lr {lr:.2e}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

/// A logged step in at most 120 columns.
fn step_line(record: &StepRecord) -> String {
    let parts = [
        Some(format!("step {}/{}", record.current_steps, record.total_steps)),
        record.loss.map(|loss| format!("loss {loss:.4}")),
        record.eval_loss.map(|loss| format!("eval loss {loss:.4}")),
        record.grad_norm.map(|norm| format!("grad {norm:.3}")),
        record.lr.map(|lr| format!("lr {lr:.2e}")),
        record.tok_s_gpu.map(|speed| format!("{} tok/s/GPU", grouped(speed.round() as u64))),
        Some(match record.remaining() {
            Some(left) => format!("{}, {} left", clock(record.elapsed), clock(left)),
            None => clock(record.elapsed),
        }),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    /// What was written, and how often it was flushed.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<(String, usize)>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().0.push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.lock().unwrap().1 += 1;
            Ok(())
        }
    }

    fn record(current_steps: u64) -> StepRecord {
        StepRecord {
            current_steps,
            total_steps: 20,
            loss: Some(5.25),
            grad_norm: Some(1.5),
            lr: Some(4.5e-5),
            tok_s_gpu: Some(12_345.6),
            elapsed: Duration::from_secs(10),
            ..StepRecord::default()
        }
    }

    #[test]
    fn without_a_terminal_every_logged_step_is_one_plain_flushed_line() {
        let heard = Heard::default();
        let mut progress = Progress::to(Terminal::plain(), Box::new(heard.clone()));
        progress.say("4 ranks");
        progress.begin(0, 20);
        progress.advance(9);
        progress.logged(&record(10));
        progress.finish();
        let (text, flushes) = heard.0.lock().unwrap().clone();
        assert_eq!(
            text,
            "4 ranks\nstep 10/20  loss 5.2500  grad 1.500  lr 4.50e-5  12,346 tok/s/GPU  0:00:10, 0:00:10 left\n"
        );
        assert_eq!(flushes, 2);
    }

    #[test]
    fn no_plain_line_is_wider_than_120_columns() {
        let wide = StepRecord {
            current_steps: 999_999,
            total_steps: 1_000_000,
            loss: Some(12_345.678),
            grad_norm: Some(12_345.678),
            elapsed: Duration::from_secs(1_000_000),
            ..record(0)
        };
        assert!(step_line(&wide).len() <= 120, "{}", step_line(&wide));
    }

    #[test]
    fn the_running_log_begins_with_what_was_said_before_it_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("running_log.txt");
        let mut progress = Progress::to(Terminal::plain(), Box::new(io::sink()));
        progress.say("plan");
        progress.tee(RunningLog::create(&path).unwrap()).unwrap();
        progress.logged(&record(1));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0] == "plan" && lines[1].starts_with("step 1/20  loss 5.2500"), "{lines:?}");
    }

    #[test]
    fn a_log_on_a_full_disk_is_given_up_once_and_the_run_goes_on() {
        let heard = Heard::default();
        let mut progress = Progress::to(Terminal::plain(), Box::new(heard.clone()));
        progress.tee(RunningLog::create(std::path::Path::new("/dev/full")).unwrap()).unwrap();
        progress.say("one");
        progress.logged(&record(2));
        let heard = &heard.0.lock().unwrap().0;
        let lines: Vec<&str> = heard.lines().collect();
        assert_eq!(lines.len(), 3, "{heard}");
        assert!(
            lines[1].starts_with("warning: could not write") && lines[1].ends_with("goes on without it"),
            "{heard}"
        );
    }

    #[test]
    fn on_a_terminal_steps_move_the_bar_and_write_no_lines() {
        let heard = Heard::default();
        for (color, utf8, width) in [(true, true, 80), (false, false, 20), (false, true, 0)] {
            let mut progress = Progress::to(Terminal { is_tty: true, color, utf8, width }, Box::new(heard.clone()));
            progress.begin(3, 20);
            progress.advance(4);
            progress.logged(&record(5));
            let bar = progress.bar.as_ref().unwrap();
            assert_eq!((bar.position(), bar.length()), (5, Some(20)));
            assert_eq!(bar.message(), "loss 5.2500  ETA 0:00:30  12,346 tok/s/GPU  lr 4.50e-5");
            progress.finish();
        }
        assert_eq!(heard.0.lock().unwrap().0, "\n\n\n", "only the line break after each bar");
    }

    #[test]
    fn the_bar_of_reading_is_gone_before_training_begins() {
        let heard = Heard::default();
        let mut progress = Progress::to(Terminal { is_tty: true, ..Terminal::plain() }, Box::new(heard.clone()));
        progress.reading(ByteCount(0), ByteCount(10));
        progress.reading(ByteCount(4), ByteCount(10));
        let bar = progress.bar.clone().unwrap();
        assert_eq!((bar.position(), bar.length()), (4, Some(10)));
        progress.finish_reading();
        assert!(bar.is_finished() && progress.bar.is_none());
        let mut plain = Progress::to(Terminal::plain(), Box::new(heard.clone()));
        plain.reading(ByteCount(4), ByteCount(10));
        plain.finish_reading();
        assert!(plain.bar.is_none() && heard.0.lock().unwrap().0.is_empty());
    }

    #[test]
    fn a_terminal_that_went_away_does_not_end_the_run() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut progress = Progress::to(Terminal::plain(), Box::new(Gone));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("running_log.txt");
        progress.tee(RunningLog::create(&path).unwrap()).unwrap();
        progress.say("hello");
        progress.logged(&record(1));
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 2);
    }
}
