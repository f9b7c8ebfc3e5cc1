//! The rows that one rank computes in an update, as flat runs behind one another. By nature a run is a micro-batch; fewer
//! and larger ones gather the model less often, more and smaller ones need less memory. Which rows make up an update, and
//! what each weighs in its loss, is decided before.

use std::cmp::Reverse;

use crate::memory::LargestBatch;

/// Of all updates of a run, on any rank, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Largest {
    /// All rows of an update.
    pub update: LargestBatch,
    /// Those of one of its micro-batches.
    pub micro_batch: LargestBatch,
}

/// All that memory is planned by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Of an update, on each rank.
    pub num_micro_batches: usize,
    pub trained: Largest,
    /// As many held-out rows as an update has, which are only scored; nothing where none are.
    pub scored: Largest,
}

impl Rows {
    /// The largest of as many runs; a token is always thought to be in it.
    pub fn largest_run(&self, num_runs: usize) -> LargestBatch {
        let run = |largest: &Largest| match num_runs == self.num_micro_batches {
            true => largest.micro_batch,
            false => largest.update.dealt_into(num_runs),
        };
        let a_token = LargestBatch { num_tokens: 1, ..LargestBatch::default() };
        run(&self.trained).or(run(&self.scored)).or(a_token)
    }
}

impl Largest {
    /// Takes note of an update on one rank.
    pub fn meet<T>(&mut self, micro_batches: &[Vec<T>], length: impl Fn(&T) -> usize) {
        for rows in micro_batches {
            self.micro_batch = self.micro_batch.or(LargestBatch::of(rows.iter().map(&length)));
        }
        self.update = self.update.or(LargestBatch::of(micro_batches.iter().flatten().map(&length)));
    }

    /// Of updates of which nothing is known but that no micro-batch exceeds this one.
    pub fn of_alike(micro_batch: LargestBatch, num_micro_batches: usize) -> Largest {
        let LargestBatch { num_rows, num_tokens, longest_row } = micro_batch;
        let (num_rows, num_tokens) =
            (num_rows.saturating_mul(num_micro_batches), num_tokens.saturating_mul(num_micro_batches));
        Largest { update: LargestBatch { num_rows, num_tokens, longest_row }, micro_batch }
    }
}

impl LargestBatch {
    /// The largest run of rows that are [`dealt`]. None is longer than another by more than the longest row, so all others
    /// have at least what it has less that row.
    pub fn dealt_into(self, num_runs: usize) -> LargestBatch {
        let LargestBatch { num_rows, num_tokens, longest_row } = self;
        let num_rows = num_rows.div_ceil(num_runs);
        let uneven = num_tokens.saturating_add(longest_row.saturating_mul(num_runs - 1)) / num_runs;
        let num_tokens = num_tokens.min(uneven).min(num_rows.saturating_mul(longest_row));
        LargestBatch { num_rows, num_tokens, longest_row }
    }
}

/// The rows of each run, in their order: the micro-batches themselves where there are to be as many runs, else all of them
/// dealt out anew.
pub fn in_runs<T: Clone>(
    micro_batches: Vec<Vec<T>>,
    num_micro_batches: usize,
    num_runs: usize,
    length: impl Fn(&T) -> usize,
) -> Vec<Vec<T>> {
    match num_runs == num_micro_batches {
        true => micro_batches,
        false => dealt(&micro_batches.concat(), num_runs, length),
    }
}

/// The longest rows first, each to the run that has the fewest tokens among those that may take one more: no run gets more
/// rows than their even share. Always as many runs, if need be empty ones, for ranks meet in each of them; the largest come
/// first, so that ranks do like work at the same time.
///
/// That no run ends more than the longest row above another, although one may be closed before: as long as both take rows,
/// the emptier one does, so they differ by a row at most. Look at the last moment when the closed one had no more rows than
/// the other. From then on it was ahead in rows, so the other's next row always came after its own next row and is no
/// longer; and the other got no more of them.
fn dealt<T: Clone>(rows: &[T], num_runs: usize, length: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let share = rows.len().div_ceil(num_runs);
    let mut longest_first: Vec<(usize, usize)> = rows.iter().map(length).zip(0..).collect();
    longest_first.sort_by_key(|(length, _)| Reverse(*length));
    let mut runs: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); num_runs];
    for (length, row) in longest_first {
        let open = runs.iter_mut().filter(|(_, rows)| rows.len() < share);
        let (tokens, rows) = open.min_by_key(|(tokens, _)| *tokens).expect("the shares of all runs hold all rows");
        *tokens += length;
        rows.push(row);
    }
    runs.sort_by_key(|(tokens, _)| Reverse(*tokens));
    let in_their_order = |(_, mut of_run): (usize, Vec<usize>)| {
        of_run.sort_unstable();
        of_run.into_iter().map(|row| rows[row].clone()).collect()
    };
    runs.into_iter().map(in_their_order).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(lengths: &[usize]) -> usize {
        lengths.iter().sum()
    }

    /// Rows that are named by their place, so that their order can be seen.
    fn dealt_lengths(lengths: &[usize], num_runs: usize) -> Vec<Vec<usize>> {
        let rows: Vec<usize> = (0..lengths.len()).collect();
        let runs = dealt(&rows, num_runs, |row| lengths[*row]);
        let mut all = runs.concat();
        all.sort_unstable();
        assert_eq!((runs.len(), all), (num_runs, rows), "every row once");
        assert!(runs.iter().all(|rows| rows.is_sorted()), "in their order: {runs:?}");
        runs.into_iter().map(|rows| rows.into_iter().map(|row| lengths[row]).collect()).collect()
    }

    #[test]
    fn runs_are_even_and_the_largest_comes_first() {
        for (lengths, expected) in [
            (&[5, 1, 4, 2][..], &[&[5, 1][..], &[4, 2]][..]),
            (&[1, 5, 2, 4], &[&[1, 5], &[2, 4]]),
            // A run is closed with its even share of rows, however short they are.
            (&[9, 1, 1, 1], &[&[9, 1], &[1, 1]]),
            (&[3, 7], &[&[7], &[3], &[]]),
            (&[3, 7, 5], &[&[3, 7, 5]]),
            (&[], &[&[], &[]]),
        ] {
            assert_eq!(dealt_lengths(lengths, expected.len()), expected);
        }
        let equal = LargestBatch { num_rows: 16, num_tokens: 16 * 2048, longest_row: 2048 };
        assert_eq!(equal.dealt_into(3).num_tokens, 6 * 2048);
        assert_eq!(equal.dealt_into(1), equal);
    }

    #[test]
    fn as_many_runs_as_micro_batches_are_these_untouched() {
        let batches = vec![vec![1, 9], vec![7, 2]];
        assert_eq!(in_runs(batches.clone(), 2, 2, |length| *length), batches);
        assert_eq!(in_runs(batches.clone(), 2, 1, |length| *length), [[1, 9, 7, 2]]);
        // A last group that has fewer micro-batches is dealt as all others are.
        assert_eq!(in_runs(vec![vec![1, 9]], 2, 1, |length| *length), [[1, 9]]);
    }

    /// Short rows among long ones, or all alike.
    fn lengths() -> impl Strategy<Value = Vec<usize>> {
        let row = prop_oneof![1_usize..4, 1_usize..40, 1000_usize..2049];
        prop_oneof![prop::collection::vec(row, 0..60), prop::collection::vec(500_usize..502, 0..60)]
    }

    proptest! {
        #[test]
        fn no_run_is_larger_than_planned(lengths in lengths(), num_runs in 1_usize..70) {
            let whole = LargestBatch::of(lengths.iter().copied());
            let runs = dealt_lengths(&lengths, num_runs);
            let planned = whole.dealt_into(num_runs);
            for run in &runs {
                prop_assert!(run.len() <= planned.num_rows && sum(run) <= planned.num_tokens, "{:?}: {:?}", planned, run);
                prop_assert!(sum(&runs[0]) - sum(run) <= whole.longest_row, "{:?}", runs);
            }
            prop_assert!(planned.num_tokens <= whole.num_tokens);
        }

        #[test]
        fn no_run_of_any_update_is_larger_than_planned_for_all(
            updates in prop::collection::vec(prop::collection::vec(lengths(), 3), 1..5), num_runs in 1_usize..20,
        ) {
            let mut trained = Largest::default();
            updates.iter().for_each(|update| trained.meet(update, |length| *length));
            let planned = Rows { num_micro_batches: 3, trained, scored: Largest::default() }.largest_run(num_runs);
            for update in updates {
                for run in in_runs(update, 3, num_runs, |length| *length) {
                    let found = LargestBatch::of(run.iter().copied());
                    prop_assert_eq!(found.or(planned), planned);
                }
            }
        }
    }
}
