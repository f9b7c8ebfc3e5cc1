//! Counts what passed and failed, also out of the lines that cargo's test runs print.

use std::fmt;
use std::ops::AddAssign;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Score {
    pub fn of(passed: bool) -> Score {
        Score { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }
}

impl AddAssign for Score {
    fn add_assign(&mut self, other: Score) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// `12 passed, 0 failed`, and `, 3 skipped` where there are any.
impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        match self.skipped {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}

/// Listens to `cargo test`.
#[derive(Debug, Default)]
pub struct TestTally {
    counted: Score,
    started: usize,
    reported: usize,
}

impl TestTally {
    pub fn hear(&mut self, line: &str) {
        let line = line.trim();
        let runs_tests = line.starts_with("Running ") && line.ends_with(')') || line.starts_with("Doc-tests ");
        self.started += usize::from(runs_tests);
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        self.reported += 1;
        for part in counts.split("; ") {
            let mut words = part.split(' ');
            let number = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => self.counted.passed += number,
                Some("failed") => self.counted.failed += number,
                Some("ignored") => self.counted.skipped += number,
                _ => {}
            }
        }
    }

    /// A binary that crashed printed no result and counts as one failure; so does a run that failed without a word.
    pub fn end(self, succeeded: bool) -> Score {
        let mut score = self.counted;
        score.failed += self.started.saturating_sub(self.reported);
        if !succeeded && score.failed == 0 {
            score.failed = 1;
        }
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.36s";
    const FAILED: &str =
        "test result: FAILED. 36 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
    const RUNNING: &str = "     Running unittests src/lib.rs (target/debug/deps/scout_core-1a)";
    const DOC: &str = "   Doc-tests scout_core";

    #[test]
    fn what_cargo_prints_is_counted() {
        for (lines, succeeded, expected) in [
            (vec![RUNNING, "test a ... ok", OK, DOC, OK], true, "10 passed, 0 failed, 4 skipped"),
            (vec![RUNNING, OK, RUNNING, FAILED], false, "41 passed, 3 failed, 2 skipped"),
            // A binary that was killed in the middle.
            (vec![RUNNING, "test a ... ok", RUNNING, OK], false, "5 passed, 1 failed, 2 skipped"),
            (vec!["error[E0425]: cannot find value `x`"], false, "0 passed, 1 failed"),
            (
                vec!["test says it is Running (fast) ... ok", "the test result: ok. 5 passed"],
                true,
                "0 passed, 0 failed",
            ),
        ] {
            let mut tally = TestTally::default();
            for line in &lines {
                tally.hear(line);
            }
            assert_eq!(tally.end(succeeded).to_string(), expected, "{lines:?}");
        }
    }
}
