//! A comparison on its way: what it compares with, what computes, and what it has found so far. Which quantities a folder
//! holds is the business of those who use it.

use std::path::Path;

use scout_comm::Job;

use super::compare::Row;
use super::compute::Bench;
use super::promise::Manifest;
use super::together::agree;
use super::verdict::{Group, Verdict};
use crate::error::{Result, TrainError};

/// The comparison while it goes on, on one rank. Everything that may fail on one rank alone is agreed upon before the
/// next collective.
pub struct Checks<'a> {
    pub folder: &'a Path,
    pub manifest: &'a Manifest,
    pub job: &'a Job,
    pub bench: Bench,
    pub verdict: Verdict,
}

impl Checks<'_> {
    /// Adds the group that `compute` makes of what `prepare` returns, or the row that says why there is none. `prepare`
    /// reads files and waits for nobody; `compute` fails on all ranks at the same point, or ends the comparison.
    pub fn attempt<P>(
        &mut self,
        name: &str,
        prepare: impl FnOnce(&mut Bench) -> Result<P>,
        compute: impl FnOnce(&mut Bench, P) -> Result<Group>,
    ) -> Result<()> {
        let prepared = prepare(&mut self.bench);
        let failed = match agree(&*self.job.comm, prepared)? {
            Err(reason) => reason,
            Ok(prepared) => match compute(&mut self.bench, prepared) {
                Ok(group) => {
                    self.verdict.groups.push(group);
                    return Ok(());
                }
                // All ranks see the same sums. Other failures may be of one rank, which the others then wait for.
                Err(error @ TrainError::NotANumber { .. }) => error.with_causes(),
                Err(error) if self.job.mesh().size() == 1 => error.with_causes(),
                Err(error) => return Err(error),
            },
        };
        self.fail(name, "all", failed);
        Ok(())
    }

    pub fn fail(&mut self, group: &str, quantity: &str, detail: impl Into<String>) {
        self.verdict.rows.push(Row::fail(group, quantity, detail));
    }
}
