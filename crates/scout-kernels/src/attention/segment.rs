//! One segment as the loops over it see it: plain rows, borrowed from the whole run.

use super::heads::Heads;

/// The rows of one segment.
pub(super) struct Segment<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub heads: Heads,
}

/// What a segment's backward pass starts from, laid out like its queries.
pub(super) struct Saved<'a> {
    pub dcontext: &'a [f32],
    pub context: &'a [f32],
    pub log_sum_exp: &'a [f32],
}
