//! The end of a job in one sentence.

use scout_core::{ExitCode, Rank};

/// Why the job ends, the same on every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The rank at fault.
    pub rank: Rank,
    /// What every rank leaves with.
    pub code: ExitCode,
    pub sentence: String,
    /// The only rank that prints the sentence.
    pub speaker: Rank,
}
