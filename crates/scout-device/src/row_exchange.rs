//! How routed rows get to the rank that keeps their expert, and results back. The model asks through this border and the ranks
//! answer through it; neither knows the other.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Range};
use std::sync::Arc;

use crate::tensor::Tensor;
use crate::{DeviceError, Result};

/// All ranks call the same methods in the same order, whatever their data: rows set out once or twice and arrive in this order,
/// then results are sent back and come back. Out of this order they fail: rows look like rows, so nothing else would show it.
pub trait RowExchange: fmt::Debug + Send + Sync {
    /// Rows of this rank, sorted by expert, set out for the ranks that keep the experts. What is queued from now on until
    /// [`RowExchange::arrive`] computes while they travel.
    fn set_out(&self, sorted: &Tensor, counts: Counts) -> Result<Round>;

    /// The rows of all ranks for the experts of this one, sorted by expert and among those of one by rank, and how all rows were
    /// dealt. They lie where later rows will arrive: nobody may keep them beyond [`RowExchange::send_back`].
    fn arrive(&self, round: Round) -> Result<(Tensor, Arc<Dealt>)>;

    /// `results`, which have a row for each that arrived, set out for the ranks that had sent them. What is queued from now on
    /// until [`RowExchange::come_back`] computes while they travel.
    fn send_back(&self, results: &Tensor, dealt: &Arc<Dealt>) -> Result<()>;

    /// What came back has a row for each that this rank had sent, in the same order. It lies where later results will come.
    fn come_back(&self) -> Result<Tensor>;
}

/// Which of the rows that have set out, one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round(pub u32);

impl Round {
    /// As flags between GPUs, numbers begin again behind the largest.
    pub fn next(self) -> Round {
        Round(self.0.wrapping_add(1))
    }
}

/// How many rows each expert gets from this rank.
#[derive(Debug, Clone, Copy)]
pub enum Counts<'a> {
    /// As a routing found it, `[E + 1]` of u32, where the rows are: the others have to be told.
    New(&'a Tensor),
    /// As in an exchange before.
    Known(&'a Arc<Dealt>),
}

/// How the routed rows of all ranks are dealt to the ranks that keep their experts. Each keeps equally many experts, neighbours,
/// the first rank the first of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dealt {
    rank: usize,
    // Invariant: for each rank as many offsets as for the others, one more than experts; they rise from 0.
    offsets: Vec<Vec<u32>>,
    /// Of what arrives here, by own expert.
    arriving: Vec<u32>,
}

/// How evenly rows were dealt to ranks, over any number of exchanges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evenness {
    num_rows: u64,
    /// How many it would be if in each exchange all ranks had as many as the busiest.
    if_all_were_busiest: u64,
}

impl Evenness {
    pub fn of(dealt: &Dealt) -> Evenness {
        let of_ranks = || (0..dealt.num_ranks()).map(|rank| dealt.num_arriving_at(rank) as u64);
        let most = of_ranks().max().unwrap_or(0);
        Evenness { num_rows: of_ranks().sum(), if_all_were_busiest: most * dealt.num_ranks() as u64 }
    }

    /// How many times an even share the busiest rank had, for whom all others wait; `None` where no rows were dealt.
    pub fn busiest_share(&self) -> Option<f64> {
        (self.num_rows > 0).then(|| self.if_all_were_busiest as f64 / self.num_rows as f64)
    }
}

impl Add for Evenness {
    type Output = Evenness;

    fn add(self, other: Evenness) -> Evenness {
        Evenness {
            num_rows: self.num_rows + other.num_rows,
            if_all_were_busiest: self.if_all_were_busiest + other.if_all_were_busiest,
        }
    }
}

impl Sum for Evenness {
    fn sum<I: Iterator<Item = Evenness>>(all: I) -> Evenness {
        all.fold(Evenness::default(), Add::add)
    }
}

/// Neighbouring rows for one expert on their way from one rank to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Among the sender's rows, which are sorted by expert.
    pub sent: Range<usize>,
    /// Among those that arrive.
    pub arrives: Range<usize>,
}

impl Dealt {
    /// `offsets[rank]` are those of the rank's routing. `rank` is this one.
    pub fn new(rank: usize, offsets: Vec<Vec<u32>>) -> Result<Dealt> {
        let num_experts = offsets.first().map_or(0, |of_rank| of_rank.len().saturating_sub(1));
        let rises = |of_rank: &Vec<u32>| of_rank.first() == Some(&0) && of_rank.is_sorted();
        let is_alike = |of_rank: &Vec<u32>| of_rank.len() == num_experts + 1 && rises(of_rank);
        if rank >= offsets.len() || !num_experts.is_multiple_of(offsets.len()) || !offsets.iter().all(is_alike) {
            return Err(DeviceError::Value {
                what: "rows dealt to experts",
                problem: format!(
                    "found offsets {offsets:?}, expected those of all ranks, which keep equally many experts"
                ),
            });
        }
        let mut dealt = Dealt { rank, offsets, arriving: Vec::new() };
        let totals = dealt.experts_of(rank).map(|expert| dealt.total(expert) as u32);
        let mut end = 0;
        let ends = totals.map(|total| {
            end += total;
            end
        });
        dealt.arriving = std::iter::once(0).chain(ends).collect();
        Ok(dealt)
    }

    /// Arriving rows `offsets[e]..offsets[e + 1]` belong to the `e`-th expert of this rank.
    pub fn offsets(&self) -> &[u32] {
        &self.arriving
    }

    /// Of all, those that this rank keeps.
    pub fn own_experts(&self) -> Range<usize> {
        self.experts_of(self.rank)
    }

    pub fn num_ranks(&self) -> usize {
        self.offsets.len()
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Rows of all ranks for experts of this one.
    pub fn num_arriving(&self) -> usize {
        self.num_arriving_at(self.rank)
    }

    pub fn num_arriving_at(&self, rank: usize) -> usize {
        self.experts_of(rank).map(|expert| self.total(expert)).sum()
    }

    /// Rows that this rank had.
    pub fn num_sent(&self) -> usize {
        self.num_sent_by(self.rank)
    }

    pub fn num_sent_by(&self, rank: usize) -> usize {
        self.offsets[rank].last().map_or(0, |&end| end as usize)
    }

    /// What rank `from` sends to rank `to`, by expert.
    pub fn pieces(&self, from: usize, to: usize) -> impl Iterator<Item = Piece> {
        let mut before = 0;
        self.experts_of(to).filter_map(move |expert| {
            let of_ranks_before: usize = (0..from).map(|rank| self.sent(rank, expert).len()).sum();
            let (sent, start) = (self.sent(from, expert), before + of_ranks_before);
            before += self.total(expert);
            (!sent.is_empty()).then(|| Piece { arrives: start..start + sent.len(), sent })
        })
    }

    fn experts_of(&self, rank: usize) -> Range<usize> {
        let each = (self.offsets[0].len() - 1) / self.offsets.len();
        rank * each..(rank + 1) * each
    }

    fn sent(&self, from: usize, expert: usize) -> Range<usize> {
        let of_rank = &self.offsets[from];
        of_rank[expert] as usize..of_rank[expert + 1] as usize
    }

    fn total(&self, expert: usize) -> usize {
        (0..self.offsets.len()).map(|from| self.sent(from, expert).len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four experts; the second rank has no row for the second and the last.
    fn offsets() -> Vec<Vec<u32>> {
        vec![vec![0, 2, 3, 3, 7], vec![0, 4, 4, 5, 5]]
    }

    #[test]
    fn rows_arrive_by_expert_and_then_by_rank() {
        let [first, second] = [0, 1].map(|rank| Dealt::new(rank, offsets()).unwrap());
        assert_eq!((first.own_experts(), second.own_experts()), (0..2, 2..4));
        assert_eq!((first.offsets(), first.num_arriving(), first.num_sent()), (&[0, 6, 7][..], 7, 7));
        assert_eq!((second.offsets(), second.num_arriving(), second.num_sent()), (&[0, 1, 5][..], 5, 5));
        let piece = |sent: Range<usize>, arrives: Range<usize>| Piece { sent, arrives };
        let pieces = |from, to| first.pieces(from, to).collect::<Vec<_>>();
        assert_eq!(pieces(0, 0), [piece(0..2, 0..2), piece(2..3, 6..7)]);
        assert_eq!(pieces(1, 0), [piece(0..4, 2..6)]);
        assert_eq!(pieces(0, 1), [piece(3..7, 1..5)]);
        assert_eq!(pieces(1, 1), [piece(4..5, 0..1)]);
        assert_eq!(second.pieces(0, 1).collect::<Vec<_>>(), pieces(0, 1), "all ranks find the same");
    }

    #[test]
    fn every_row_is_sent_once_and_arrives_at_a_place_of_its_own() {
        // Twelve experts on 1, 2, 3, 4, 6 and 12 ranks, some of whom have nothing for some of them.
        for world_size in [1, 2, 3, 4, 6, 12] {
            let of_rank = |rank: usize| {
                let counts = (0..12).map(|expert| (7 * rank + 5 * expert) % 4);
                let ends = counts.scan(0, |end, count| {
                    *end += count as u32;
                    Some(*end)
                });
                std::iter::once(0).chain(ends).collect::<Vec<u32>>()
            };
            let offsets: Vec<Vec<u32>> = (0..world_size).map(of_rank).collect();
            for to in 0..world_size {
                let dealt = Dealt::new(to, offsets.clone()).unwrap();
                let mut arrived: Vec<usize> =
                    (0..world_size).flat_map(|from| dealt.pieces(from, to)).flat_map(|piece| piece.arrives).collect();
                arrived.sort_unstable();
                assert_eq!(arrived, (0..dealt.num_arriving()).collect::<Vec<_>>(), "{to} of {world_size}");
                let sent: Vec<usize> =
                    (0..world_size).flat_map(|other| dealt.pieces(to, other)).flat_map(|piece| piece.sent).collect();
                assert_eq!(sent, (0..dealt.num_sent()).collect::<Vec<_>>(), "{to} of {world_size}");
            }
        }
    }

    #[test]
    fn all_ranks_wait_for_the_busiest_of_each_exchange() {
        let dealt = |offsets| Dealt::new(0, offsets).unwrap();
        // Of twelve rows seven come to the first rank; of two all to the second.
        let (uneven, lopsided) = (dealt(offsets()), dealt(vec![vec![0, 0, 1], vec![0, 0, 1]]));
        let of = |all: &[&Dealt]| all.iter().map(|dealt| Evenness::of(dealt)).sum::<Evenness>().busiest_share();
        assert_eq!(of(&[&uneven]), Some(14.0 / 12.0));
        assert_eq!(of(&[&lopsided]), Some(2.0));
        assert_eq!(of(&[&uneven, &lopsided]), Some(18.0 / 14.0));
        assert_eq!((of(&[]), of(&[&dealt(vec![vec![0; 3]; 2])])), (None, None));
    }

    #[test]
    fn offsets_that_cannot_be_are_refused() {
        assert!(Dealt::new(2, offsets()).is_err());
        for wrong in [vec![], vec![vec![0, 2, 3, 3, 7], vec![0, 4]], vec![vec![0, 1, 2, 3]; 2], vec![vec![0, 3, 2]; 2]]
        {
            assert!(Dealt::new(0, wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
