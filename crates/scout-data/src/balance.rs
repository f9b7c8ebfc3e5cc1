//! Deals the rows of an update anew, so that ranks, which wait for each other, have the same work. Which rows an update
//! holds and what each weighs in the loss is decided before; here the same sum only gets another order.

use std::cmp::Reverse;
use std::iter::Sum;

use crate::batch::{UpdatePlan, WeightedRow};
use crate::bins::{Limits, Load, deal};
use crate::examples::ExampleSet;

/// A micro-batch of each rank, of which there are several: `[rank][micro-batch][row]`.
type Ranks = Vec<Vec<Vec<WeightedRow>>>;

/// What a row costs, measured by what one token costs outside attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowCost {
    pub chunk_size: usize,
    /// Of a pair of positions, on all layers where a row sees itself whole.
    pub pair: f64,
    /// Of a pair inside a chunk, on all layers where a row sees chunks of itself.
    pub pair_in_chunk: f64,
}

impl RowCost {
    /// The cost of one token.
    const UNIT: f64 = 1024.0;

    /// A whole number, so that sums do not depend on their order and all ranks find the same.
    fn of(&self, num_tokens: usize) -> u64 {
        let pairs = |length: usize| length as f64 * (length as f64 + 1.0) / 2.0;
        let (chunks, rest) = (num_tokens / self.chunk_size, num_tokens % self.chunk_size);
        let in_chunks = chunks as f64 * pairs(self.chunk_size) + pairs(rest);
        let cost = num_tokens as f64 + self.pair * pairs(num_tokens) + self.pair_in_chunk * in_chunks;
        (RowCost::UNIT * cost).round() as u64
    }

    fn load(&self, examples: &ExampleSet, row: &WeightedRow) -> Load {
        let tokens = examples.length(row.row);
        Load { work: self.of(tokens), tokens }
    }
}

/// Work of the busiest rank, and of a rank on average, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Balance {
    pub most: f64,
    pub mean: f64,
}

impl Balance {
    /// How much longer than on average the busiest rank works: what the others wait, as a share of their own work.
    pub fn excess(&self) -> f64 {
        if self.mean == 0.0 { 0.0 } else { self.most / self.mean - 1.0 }
    }
}

/// Of several updates, each of which lasts as long as its busiest rank works.
impl Sum for Balance {
    fn sum<I: Iterator<Item = Balance>>(updates: I) -> Balance {
        updates.fold(Balance::default(), |a, b| Balance { most: a.most + b.most, mean: a.mean + b.mean })
    }
}

impl UpdatePlan {
    /// The same rows with the same weights, on as many ranks with as many micro-batches, dealt so that the busiest rank
    /// has as little work as can be found, and then the largest micro-batch.
    ///
    /// No micro-batch gets more tokens than the largest of the update had, so memory that was enough stays enough; where
    /// the plan has rows in every micro-batch, none becomes empty. What cannot be improved stays as it was dealt, above
    /// all an update of one micro-batch. Otherwise rows of a micro-batch keep their order, and a rank begins with its
    /// largest micro-batch: ranks that wait for each other at every layer then do like work at the same time.
    pub fn balanced(self, examples: &ExampleSet, cost: &RowCost) -> UpdatePlan {
        let load = |row: &WeightedRow| cost.load(examples, row);
        let of_batch = |rows: &Vec<WeightedRow>| rows.iter().map(load).sum::<Load>();
        let busiest_and_largest = |ranks: &Ranks| {
            let of_rank = |batches: &Vec<Vec<WeightedRow>>| batches.iter().map(of_batch).sum::<Load>().work;
            let largest = ranks.iter().flatten().map(|rows| of_batch(rows).work).max();
            (ranks.iter().map(of_rank).max(), largest)
        };
        let mut best = self.ranks;
        for found in [deal_rows(&best, load), deal_batches(&best, of_batch)].into_iter().flatten() {
            if busiest_and_largest(&found) < busiest_and_largest(&best) {
                best = found;
                best.iter_mut().for_each(|batches| batches.sort_by_key(|rows| Reverse(of_batch(rows).work)));
            }
        }
        UpdatePlan { ranks: best, counts: self.counts }
    }

    /// How evenly the work of the update lies on its ranks.
    pub fn balance(&self, examples: &ExampleSet, cost: &RowCost) -> Balance {
        let works = self.ranks.iter().map(|batches| {
            let loads = batches.iter().flatten().map(|row| cost.load(examples, row));
            loads.sum::<Load>().work as f64 / RowCost::UNIT
        });
        let works: Vec<f64> = works.collect();
        let mean = works.iter().sum::<f64>() / works.len().max(1) as f64;
        Balance { most: works.into_iter().fold(0.0, f64::max), mean }
    }
}

/// Row by row: first to the ranks, whose sums count most, then to the micro-batches of each.
fn deal_rows(ranks: &Ranks, load: impl Fn(&WeightedRow) -> Load) -> Option<Ranks> {
    let largest = ranks.iter().flatten().map(|rows| rows.iter().map(&load).sum::<Load>().tokens).max()?;
    let num_batches = ranks[0].len();
    let of_rank = Limits { least: num_batches, room: largest.saturating_mul(num_batches) };
    let of_batch = Limits { least: 1, room: largest };
    let rows: Vec<WeightedRow> = ranks.iter().flatten().flatten().copied().collect();
    let into_batches = |rows| deal_into(rows, &load, num_batches, of_batch);
    deal_into(rows, &load, ranks.len(), of_rank)?.into_iter().map(into_batches).collect()
}

/// Whole micro-batches: what is left where they are packed too full for their rows to be moved.
fn deal_batches(ranks: &Ranks, load: impl Fn(&Vec<WeightedRow>) -> Load) -> Option<Ranks> {
    let of_rank = Limits { least: ranks.first()?.len(), room: usize::MAX };
    deal_into(ranks.concat(), &load, ranks.len(), of_rank)
}

/// Bins of things in the order in which they came; `None` where they did not fit.
fn deal_into<T: Clone>(
    things: Vec<T>,
    load: &impl Fn(&T) -> Load,
    num_bins: usize,
    limits: Limits,
) -> Option<Vec<Vec<T>>> {
    let loads: Vec<Load> = things.iter().map(load).collect();
    let bins = deal(&loads, num_bins, limits)?.into_iter();
    Some(bins.map(|bin| bin.into_iter().map(|thing| things[thing].clone()).collect()).collect())
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
