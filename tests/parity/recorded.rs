//! The committed text fixture, verified once for all tests of this target: recorded and computed numbers side by side.
//!
//! Other shapes are not committed. `make_tiny_scout.py` beside the fixtures makes a folder of any shape (its first lines
//! say which Python packages it needs), and the program compares it:
//!
//! ```text
//! python tests/fixtures/make_tiny_scout.py --out other --seed 3 --hidden 56 --heads 7 --kv-heads 7 --head-dim 10 \
//!     --layers 3 --experts 3 --ffn 44 --nope-interval 2 --chunk 1000 --rope-high 4 --batch 1 --seq 77 --min-margin 1e-4
//! cargo run -- verify other
//! ```
//!
//! Where it reports a router margin below the limit, another seed helps: a token between two experts may take either. A
//! `--seq` much below 77 leaves no room for a conversation, and `--nf4` needs matrices of whole blocks of 64 values.

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
