//! Who takes part: the number of a worker and how many there are.

use std::fmt;

/// The number of one worker, from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub usize);

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All workers of a job in one row, seen from one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    // Invariant: rank < size.
    rank: Rank,
    size: usize,
}

impl Mesh {
    /// `None` when `rank` is not below `size`.
    pub fn new(rank: Rank, size: usize) -> Option<Mesh> {
        (rank.0 < size).then_some(Mesh { rank, size })
    }

    /// One worker alone.
    pub const fn solo() -> Mesh {
        Mesh { rank: Rank(0), size: 1 }
    }

    pub fn rank(self) -> Rank {
        self.rank
    }

    pub fn size(self) -> usize {
        self.size
    }

    pub fn is_first(self) -> bool {
        self.rank.0 == 0
    }

    pub fn ranks(self) -> impl Iterator<Item = Rank> {
        (0..self.size).map(Rank)
    }
}
