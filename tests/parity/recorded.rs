//! The committed text fixture, verified once for all tests of this target: recorded and computed numbers side by side.

use std::path::PathBuf;
use std::sync::LazyLock;

use scout_tests::fixtures;
use scout_train::verify::{Group, Row, Status, Verdict, verify};

pub fn tiny_scout() -> PathBuf {
    fixtures().join("tiny-scout")
}

static VERDICT: LazyLock<Verdict> = LazyLock::new(|| verify(&tiny_scout()).expect("the fixture can be compared"));

pub fn verdict() -> &'static Verdict {
    &VERDICT
}

pub fn group(name: &str) -> &'static Group {
    verdict().groups.iter().find(|group| group.name == name).expect("the fixture has this group")
}

/// Quantities of failing rows, in order.
pub fn failing(rows: &[Row]) -> Vec<&str> {
    rows.iter().filter(|row| row.status == Status::Fail).map(|row| row.quantity.as_str()).collect()
}
