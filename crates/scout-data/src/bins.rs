//! Things dealt into bins of nearly equal work: the longest first, each into the bin that has least, then exchanges out
//! of the fullest. Nothing is drawn, so every rank finds the same. Knows nothing of rows.

use std::cmp::Reverse;
use std::iter::Sum;

/// After the first pass exchanges take bins from some hundredths above the mean to about one; more of them gain nothing.
const MOST_EXCHANGES: usize = 32;
/// Bins within this part of the mean are even enough.
const EVEN: u64 = 1000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub work: u64,
    pub tokens: usize,
}

/// What holds for every bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Things in it, at least, as far as there are enough.
    pub least: usize,
    /// Tokens in it, at most.
    pub room: usize,
}

impl Load {
    fn exchanged(self, given: Load, got: Load) -> Load {
        Load { work: self.work - given.work + got.work, tokens: self.tokens - given.tokens + got.tokens }
    }
}

impl Sum for Load {
    fn sum<I: Iterator<Item = Load>>(loads: I) -> Load {
        loads.fold(Load::default(), |a, b| Load { work: a.work + b.work, tokens: a.tokens + b.tokens })
    }
}

#[derive(Clone, Default)]
struct Bin {
    load: Load,
    things: Vec<usize>,
}

/// The things of each bin in ascending order, or `None` if one was left for which no bin had room.
pub(crate) fn deal(loads: &[Load], num_bins: usize, limits: Limits) -> Option<Vec<Vec<usize>>> {
    let mut bins = vec![Bin::default(); num_bins];
    let mut longest_first: Vec<usize> = (0..loads.len()).collect();
    longest_first.sort_by_key(|&thing| Reverse(loads[thing].work));
    let mut missing = num_bins * limits.least;
    for (dealt, thing) in longest_first.into_iter().enumerate() {
        // As many are left as bins still need: none of them may go elsewhere.
        let only_where_missing = loads.len() - dealt == missing;
        let load = loads[thing];
        let may_take = |bin: &&mut Bin| {
            bin.load.tokens + load.tokens <= limits.room && (!only_where_missing || bin.things.len() < limits.least)
        };
        let bin = bins.iter_mut().filter(may_take).min_by_key(|bin| bin.load.work)?;
        missing -= usize::from(bin.things.len() < limits.least);
        bin.load = [bin.load, load].into_iter().sum();
        bin.things.push(thing);
    }
    exchange(&mut bins, loads, limits);
    let sorted = |mut bin: Bin| {
        bin.things.sort_unstable();
        bin.things
    };
    Some(bins.into_iter().map(sorted).collect())
}

/// Gives things of the fullest bin to others, or exchanges them for smaller ones, as long as that makes it less full.
fn exchange(bins: &mut [Bin], loads: &[Load], limits: Limits) {
    let total: u64 = loads.iter().map(|load| load.work).sum();
    let even = (total + total / EVEN) / bins.len().max(1) as u64;
    for _ in 0..MOST_EXCHANGES {
        let Some(fullest) = (0..bins.len()).min_by_key(|&bin| Reverse(bins[bin].load.work)) else { return };
        if bins[fullest].load.work <= even {
            return;
        }
        let Some(best) = best_exchange(bins, fullest, loads, limits) else { return };
        let given = bins[fullest].things.remove(best.given);
        let got = best.got.map(|got| bins[best.other].things.remove(got));
        bins[best.other].things.push(given);
        bins[fullest].things.extend(got);
        for bin in [fullest, best.other] {
            bins[bin].load = bins[bin].things.iter().map(|&thing| loads[thing]).sum();
        }
    }
}

/// Places of things in the fullest bin and in another.
struct Exchange {
    given: usize,
    other: usize,
    got: Option<usize>,
}

/// The exchange after which the fuller of its two bins is least full, if that is less than the fullest is now.
fn best_exchange(bins: &[Bin], fullest: usize, loads: &[Load], limits: Limits) -> Option<Exchange> {
    let from = &bins[fullest];
    let mut least = from.load.work;
    let mut best = None;
    for (other, to) in bins.iter().enumerate().filter(|(other, _)| *other != fullest) {
        let may_only_give = from.things.len() > limits.least;
        let for_nothing = may_only_give.then_some((None, Load::default()));
        let for_things = to.things.iter().enumerate().map(|(got, &thing)| (Some(got), loads[thing]));
        for (got, load) in for_nothing.into_iter().chain(for_things) {
            for (given, &thing) in from.things.iter().enumerate() {
                let (from, to) = (from.load.exchanged(loads[thing], load), to.load.exchanged(load, loads[thing]));
                let fits = from.tokens.max(to.tokens) <= limits.room;
                if fits && from.work.max(to.work) < least {
                    least = from.work.max(to.work);
                    best = Some(Exchange { given, other, got });
                }
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(works: &[u64]) -> Vec<Load> {
        works.iter().map(|&work| Load { work, tokens: work as usize }).collect()
    }

    fn fullest(bins: &[Vec<usize>], works: &[u64]) -> u64 {
        bins.iter().map(|bin| bin.iter().map(|&thing| works[thing]).sum()).max().unwrap()
    }

    #[test]
    fn the_longest_go_first_and_exchanges_mend_what_that_gets_wrong() {
        let free = Limits { least: 0, room: usize::MAX };
        for (works, num_bins, limits, expected) in [
            (&[1, 5, 2, 4][..], 2, free, Some(vec![vec![0, 1], vec![2, 3]])),
            // Longest first alone ends at 7 against 5.
            (&[3, 3, 2, 2, 2], 2, free, Some(vec![vec![2, 3, 4], vec![0, 1]])),
            (&[9, 1, 1, 1], 2, free, Some(vec![vec![0], vec![1, 2, 3]])),
            (&[9, 1, 1, 1], 2, Limits { least: 2, ..free }, Some(vec![vec![0, 3], vec![1, 2]])),
            (&[6, 4, 4], 2, Limits { least: 1, room: 8 }, Some(vec![vec![0], vec![1, 2]])),
            (&[6, 4, 4], 2, Limits { least: 1, room: 7 }, None),
            (&[1], 2, Limits { least: 1, room: 7 }, Some(vec![vec![0], vec![]])),
            (&[], 2, free, Some(vec![vec![], vec![]])),
        ] {
            assert_eq!(deal(&loads(works), num_bins, limits), expected, "{works:?}");
        }
    }

    proptest! {
        #[test]
        fn bins_hold_everything_once_within_their_limits(
            works in prop::collection::vec(1_u64..100, 1..60), num_bins in 1_usize..9, least in 0_usize..4, room in 50_usize..600,
        ) {
            let limits = Limits { least, room };
            if let Some(bins) = deal(&loads(&works), num_bins, limits) {
                let mut all = bins.concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..works.len()).collect::<Vec<_>>());
                for bin in &bins {
                    prop_assert!(bin.is_sorted());
                    prop_assert!(bin.len() >= least || works.len() < num_bins * least);
                    prop_assert!(bin.iter().map(|&thing| works[thing]).sum::<u64>() <= room as u64);
                }
            }
        }

        #[test]
        fn no_bin_is_a_whole_thing_above_the_mean(works in prop::collection::vec(1_u64..100, 1..60), num_bins in 1_usize..9) {
            let bins = deal(&loads(&works), num_bins, Limits { least: 0, room: usize::MAX }).unwrap();
            let mean = works.iter().sum::<u64>() / num_bins as u64;
            prop_assert!(fullest(&bins, &works) <= mean + works.iter().max().unwrap());
        }
    }
}
