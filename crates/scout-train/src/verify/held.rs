//! What each rank of a comparison held in memory and read of the weight files, beside what its plan says. Sharded
//! numbers that were computed from whole weights would prove nothing about sharding.

use scout_comm::{Communicator, words};
use scout_core::{ByteCount, Rank};

use super::compare::Row;
use crate::error::Result;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Most bytes of kept weights at one time.
    pub shard: ByteCount,
    pub shard_planned: ByteCount,
    /// Most bytes of gathered units at one time.
    pub gathered: ByteCount,
    pub gathered_planned: ByteCount,
    /// Bytes of tensors read of the weight files.
    pub read: ByteCount,
    pub read_planned: ByteCount,
}

impl Held {
    /// What every rank says, in rank order, on all ranks.
    pub fn of_all(self, comm: &dyn Communicator) -> Result<Vec<Held>> {
        let of_bytes = |bytes: Vec<u8>| {
            let mut words = bytes.as_chunks::<8>().0.iter().map(|word| ByteCount(u64::from_le_bytes(*word)));
            let mut next = || words.next().expect("every rank gives six numbers");
            Held {
                shard: next(),
                shard_planned: next(),
                gathered: next(),
                gathered_planned: next(),
                read: next(),
                read_planned: next(),
            }
        };
        let numbers =
            [self.shard, self.shard_planned, self.gathered, self.gathered_planned, self.read, self.read_planned];
        let own = numbers.iter().flat_map(|number| number.0.to_le_bytes()).collect();
        Ok(words::of_any_length(comm, own)?.into_iter().map(of_bytes).collect())
    }

    /// A row for everything that is not as planned; a rank that keeps to its plan needs none.
    pub fn failures(&self, rank: Rank) -> Vec<Row> {
        let group = format!("rank {rank}");
        let checks = [
            ("weights kept", self.shard == self.shard_planned, self.shard, self.shard_planned),
            ("weights gathered", self.gathered <= self.gathered_planned, self.gathered, self.gathered_planned),
            ("weights read", self.read == self.read_planned, self.read, self.read_planned),
        ];
        let wrong = checks.into_iter().filter(|(_, is_right, ..)| !is_right);
        wrong.map(|(what, _, found, planned)| Row::fail(&group, what, format!("{found}, planned {planned}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_or_less_than_planned_is_a_failed_row() {
        let [one, two] = [1, 2].map(ByteCount);
        let planned =
            Held { shard: two, shard_planned: two, gathered: one, gathered_planned: two, read: two, read_planned: two };
        assert!(planned.failures(Rank(0)).is_empty());
        for wrong in [
            Held { shard: one, ..planned },
            Held { gathered: ByteCount(3), ..planned },
            Held { read: ByteCount(3), ..planned },
        ] {
            let rows = wrong.failures(Rank(3));
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].group, "rank 3");
        }
    }
}
