//! The case table: what is broken, how the program is started, how it must end. Every rule that holds for all cases
//! stands here once.

use std::panic::{AssertUnwindSafe, catch_unwind};

use scout_tests::{Ended, run_in};

use crate::place::{Good, LIMIT, Place};

pub struct Case {
    name: &'static str,
    command: &'static [&'static str],
    code: i32,
    /// Phrases of the sentence, or of the hint below it.
    says: &'static [&'static str],
    damage: Box<dyn Fn(&Place)>,
}

const TRAIN: &[&str] = &["train", "run.yaml"];

/// Damage that `train` must notice.
pub fn case(name: &'static str, code: i32, says: &'static [&'static str], damage: impl Fn(&Place) + 'static) -> Case {
    Case { name, command: TRAIN, code, says, damage: Box::new(damage) }
}

impl Case {
    /// The same for another command.
    pub fn on(self, command: &'static [&'static str]) -> Case {
        Case { command, ..self }
    }
}

/// Runs every case in a copy of its own and fails with all that was wrong, not with the first.
pub fn check(cases: &[Case]) {
    let good = Good::make();
    let wrong: Vec<String> = cases.iter().filter_map(|case| verdict(case, &good)).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

fn verdict(case: &Case, good: &Good) -> Option<String> {
    let place = good.copy();
    (case.damage)(&place);
    // A run over the limit is killed and panics here; the other cases still have something to say.
    let ended = catch_unwind(AssertUnwindSafe(|| run_in(place.folder(), case.command, LIMIT)));
    let Ok(ended) = ended else { return Some(format!("{}: did not end within {LIMIT:?}", case.name)) };
    let problems = problems(case, &ended, &place);
    let said = ended.stderr.trim_end();
    (!problems.is_empty()).then(|| format!("{}: {}\n{said}", case.name, problems.join("; ")))
}

fn problems(case: &Case, ended: &Ended, place: &Place) -> Vec<String> {
    let mut problems = Vec::new();
    if ended.code != Some(case.code) {
        problems.push(format!("exit code {:?}, expected {}", ended.code, case.code));
    }
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let complaints: Vec<usize> = (0..lines.len()).filter(|&index| is_complaint(lines[index])).collect();
    let [at] = complaints[..] else {
        problems.push(format!("{} error lines, expected 1", complaints.len()));
        return problems;
    };
    // A wrong command line is clap's to explain, in its own form.
    let is_usage = case.code == 2;
    if let Some(line) = lines[..at].iter().find(|line| !is_opening(line)) {
        problems.push(format!("unexpected line before the error: {line}"));
    }
    if let Some(line) = lines[at + 1..].iter().find(|line| !is_usage && !line.starts_with("hint: ")) {
        problems.push(format!("unexpected line after the error: {line}"));
    }
    problems.extend(in_sentence(case, lines[at], &lines[at + 1..]));
    if !is_usage && has_hole(lines[at]) {
        problems.push("has a hole where a name should be".to_string());
    }
    // What a panic, a backtrace or a `{:?}` of an error looks like.
    for trace in ["panicked", "RUST_BACKTRACE", "Err(", "Some(", "Error(", "Error {", "Os {", ".rs:"] {
        if ended.stderr.contains(trace) || ended.stdout.contains(trace) {
            problems.push(format!("says `{trace}`"));
        }
    }
    if !ended.stdout.is_empty() {
        problems.push(format!("printed a result: {}", ended.stdout));
    }
    for file in ["adapter_model.safetensors", "adapter_config.json", "train_results.json"] {
        if place.path("run").join(file).exists() {
            problems.push(format!("left `run/{file}` behind"));
        }
    }
    problems
}

fn in_sentence(case: &Case, sentence: &str, below: &[&str]) -> Vec<String> {
    const LONGEST: usize = 400;
    let mut problems = Vec::new();
    let length = sentence.chars().count();
    if length >= LONGEST {
        problems.push(format!("{length} characters, expected fewer than {LONGEST}"));
    }
    if sentence.chars().chain(below.iter().flat_map(|line| line.chars())).any(char::is_control) {
        problems.push("has control characters that a terminal would obey".to_string());
    }
    for phrase in case.says {
        if !sentence.contains(phrase) && !below.iter().any(|line| line.contains(phrase)) {
            problems.push(format!("does not say `{phrase}`"));
        }
    }
    problems
}

/// `error: …`, or the place of a mistake in the configuration: `PATH:LINE:COL: …`, an override or a variable.
fn is_complaint(line: &str) -> bool {
    line.starts_with("error: ")
        || line.starts_with("override ")
        || line.starts_with("environment ")
        || begins_with_place(line)
}

fn begins_with_place(line: &str) -> bool {
    let mut parts = line.splitn(4, ':');
    let path = parts.next().unwrap_or_default();
    let mut number = || parts.next().is_some_and(|part| part.parse::<u64>().is_ok_and(|number| number > 0));
    !path.is_empty() && !path.contains(' ') && number() && number()
}

fn has_hole(sentence: &str) -> bool {
    sentence.contains("``") || sentence.contains(": :") || sentence.ends_with(':')
}

/// What a run says before anything went wrong: notes and the plan.
fn is_opening(line: &str) -> bool {
    [
        "scout-dist ",
        "note: ",
        "model  ",
        "trained  ",
        "ranks  ",
        "computing  ",
        "memory  ",
        "activations of ",
        "     ",
        "steps  ",
        "read ",
    ]
    .iter()
    .any(|w| line.starts_with(w))
}

#[test]
fn the_rules_tell_an_error_line_from_the_lines_around_it() {
    for (line, expected) in [
        ("error: `x` is not there", true),
        ("run.yaml:3:1: unknown key learnin_rate", true),
        ("override a=1: unknown key a", true),
        ("run.yaml:0:1: no such line", false),
        ("note: `stage` has no effect", false),
        ("hint: choose another", false),
        ("step 1/2  loss 3:4:5", false),
        ("", false),
    ] {
        assert_eq!(is_complaint(line), expected, "{line}");
    }
}
