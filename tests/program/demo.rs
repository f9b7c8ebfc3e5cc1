//! The first thing anybody starts: it must work at once, in an empty folder, twice, and touch nothing of anybody's.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scout_tests::program;

use crate::folder::Folder;

const FIRST_LOSS: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(120);
/// How the first of the four ranks begins a line of its log.
const STEP: &str = "[rank 0] step ";

/// Kills what is left of a demo when a test ends early.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it ended on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_demo_learns_within_two_minutes_and_can_be_run_again() {
    let folder = Folder::empty();
    let begun = Instant::now();
    let mut demo = start(&folder);
    let (first, mut stderr) = first_step(&mut demo);
    assert!(begun.elapsed() < FIRST_LOSS, "first loss after {:?}", begun.elapsed());
    // Stdout is small enough for the pipe; stderr is read on so that it never fills.
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    let status = demo.0.wait().unwrap();
    assert!(status.success() && begun.elapsed() < WHOLE, "{status} after {:?}: {rest}", begun.elapsed());
    let mut stdout = String::new();
    demo.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();

    let loss_of = |line: &str| -> f64 {
        let (_, tail) = line.split_once("loss ").unwrap_or_else(|| panic!("{line}"));
        tail.split_whitespace().next().unwrap().parse().unwrap()
    };
    let last = rest.lines().rfind(|line| line.starts_with(STEP)).unwrap();
    let (done, of) = last[STEP.len()..].split_once(' ').unwrap().0.split_once('/').unwrap();
    assert_eq!(done, of, "the last step is logged");
    assert!(loss_of(last) < loss_of(&first) / 4.0, "{first}\n{last}");
    let summary = stdout.lines().find(|line| line.starts_with("loss ") && line.contains(" -> ")).unwrap();
    assert!(summary.contains(&format!("in {of} steps on 4 ranks")), "{summary}");
    let proof = stdout.lines().find(|line| line.starts_with("adapter read back from scout-demo/run")).unwrap();
    let (with, without) = proof.split_once(": loss ").unwrap().1.split_once(" with it, ").unwrap();
    let without = without.trim_end_matches(" without");
    assert!(with.parse::<f64>().unwrap() < without.parse::<f64>().unwrap() / 2.0, "{proof}");
    for name in ["adapter_model.safetensors", "adapter_config.json", "trainer_log.jsonl", "training_loss.png"] {
        assert!(folder.path("scout-demo/run").join(name).is_file(), "{name}");
    }
    again(&folder);
}

/// A second demo in the same place replaces the first.
fn again(folder: &Folder) {
    folder.write("scout-demo/left-over.txt", "of the first");
    let mut demo = start(folder);
    let (first, _stderr) = first_step(&mut demo);
    assert!(first.starts_with(&format!("{STEP}5/")), "{first}");
    assert!(!folder.path("scout-demo/left-over.txt").exists());
    assert!(!folder.path("scout-demo/run/adapter_model.safetensors").exists(), "the old adapter is still there");
}

#[test]
fn the_demo_leaves_a_folder_that_is_not_its_own_alone() {
    let folder = Folder::empty();
    std::fs::create_dir(folder.path("mine")).unwrap();
    folder.write("mine/thesis.txt", "three years of work");
    let ended = folder.run(&["demo", "--out", "mine"]);
    assert_eq!(ended.code, Some(73), "{}", ended.stderr);
    assert_eq!(folder.names("mine"), ["thesis.txt"]);
    assert_eq!(folder.text("mine/thesis.txt"), "three years of work");
}

fn start(folder: &Folder) -> Running {
    let child = Command::new(program())
        .arg("demo")
        .current_dir(folder.root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running(child)
}

/// Reads until the first logged step. A demo that never gets there ends, and so does its stderr.
fn first_step(demo: &mut Running) -> (String, BufReader<std::process::ChildStderr>) {
    let mut stderr = BufReader::new(demo.0.stderr.take().unwrap());
    let mut said = String::new();
    loop {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "ended before its first step:\n{said}");
        if line.starts_with(STEP) {
            return (line, stderr);
        }
        said += &line;
    }
}
