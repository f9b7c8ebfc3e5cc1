//! All examples of a run in four flat arrays, and the tokenising that fills them. Decides no order and no batches.

use rayon::prelude::*;

use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::row_problem::RowProblem;
use crate::template::{Encoding, Example, IGNORED, Template};

/// Stands for [`IGNORED`] where labels are kept in 32 bits. No vocabulary has this id.
const NOT_LEARNED: u32 = u32::MAX;

/// Rows tokenised at once; bounds the memory that exists twice.
const BLOCK: usize = 4096;

/// Tokenised rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleSet {
    // Invariant: `starts` has one entry more than there are rows and ends with the length of `ids` and `labels`.
    ids: Vec<u32>,
    labels: Vec<u32>,
    starts: Vec<usize>,
    /// Predicted tokens of each row.
    targets: Vec<u32>,
    sample_ids: Vec<u64>,
    statistics: TokenStatistics,
}

/// What tokenising found, and what the cut to `cutoff_len` took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenStatistics {
    pub rows: usize,
    pub tokens: usize,
    pub targets: usize,
    pub rows_cut: usize,
    pub tokens_cut: usize,
    pub targets_cut: usize,
    pub longest: usize,
}

impl TokenStatistics {
    /// Share of rows that lost tokens to the cut.
    pub fn share_of_rows_cut(&self) -> f64 {
        share(self.rows_cut, self.rows)
    }

    /// Share of the learned tokens that the cut took away.
    pub fn share_of_targets_cut(&self) -> f64 {
        share(self.targets_cut, self.targets + self.targets_cut)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Tokenises a data set on all cores; the result does not depend on how many there are.
///
/// A row in which nothing would be learned is an error: its loss would be the mean over no tokens.
pub fn tokenise(dataset: &Dataset, template: &Template, encoding: &Encoding) -> Result<ExampleSet> {
    let mut set = ExampleSet::default();
    for (block_index, block) in dataset.conversations().chunks(BLOCK).enumerate() {
        let examples: Vec<Result<Example>> =
            block.par_iter().map(|conversation| template.encode(conversation, encoding)).collect();
        for (offset, example) in examples.into_iter().enumerate() {
            let index = block_index * BLOCK + offset;
            let at_row = |problem| DataError::Row { place: Box::new(dataset.place(index)), problem };
            let example = example.map_err(|error| match error {
                DataError::Conversation(problem) => at_row(problem),
                other => other,
            })?;
            set.push(&example, index as u64);
            if set.targets(index) == 0 {
                let tokens = example.ids.len() + example.tokens_cut;
                return Err(at_row(RowProblem::NothingToLearn { tokens, cutoff_len: encoding.cutoff_len }));
            }
        }
    }
    Ok(set)
}

impl Default for ExampleSet {
    fn default() -> ExampleSet {
        ExampleSet {
            ids: Vec::new(),
            labels: Vec::new(),
            starts: vec![0],
            targets: Vec::new(),
            sample_ids: Vec::new(),
            statistics: TokenStatistics::default(),
        }
    }
}

impl ExampleSet {
    /// Adds a row. `sample_id` stays with the row wherever it is computed, and keys its dropout.
    pub fn push(&mut self, example: &Example, sample_id: u64) {
        let learned = |&label: &i64| u32::try_from(label).unwrap_or(NOT_LEARNED);
        self.ids.extend_from_slice(&example.ids);
        self.labels.extend(example.labels.iter().map(learned));
        self.starts.push(self.ids.len());
        // The first token of a row is predicted by nothing, whatever its label.
        let targets = example.labels.iter().skip(1).filter(|&&label| label != IGNORED).count();
        self.targets.push(targets as u32);
        self.sample_ids.push(sample_id);
        let cut = Cut { tokens: example.tokens_cut, targets: example.targets_cut };
        self.statistics.count(example.ids.len(), targets, cut);
    }

    pub fn len(&self) -> usize {
        self.targets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    pub fn ids(&self, row: usize) -> &[u32] {
        &self.ids[self.starts[row]..self.starts[row + 1]]
    }

    /// The label of each token of a row; `None` is not learned.
    pub fn labels(&self, row: usize) -> impl ExactSizeIterator<Item = Option<u32>> + '_ {
        let labels = &self.labels[self.starts[row]..self.starts[row + 1]];
        labels.iter().map(|&label| (label != NOT_LEARNED).then_some(label))
    }

    /// Tokens of a row.
    pub fn length(&self, row: usize) -> usize {
        self.starts[row + 1] - self.starts[row]
    }

    pub fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|row| self.length(row)).collect()
    }

    /// Predicted tokens of a row.
    pub fn targets(&self, row: usize) -> usize {
        self.targets[row] as usize
    }

    pub fn sample_id(&self, row: usize) -> u64 {
        self.sample_ids[row]
    }

    pub fn statistics(&self) -> &TokenStatistics {
        &self.statistics
    }

    /// Some of the rows, in the order asked for; they keep their sample ids. The statistics count no cuts.
    pub fn select(&self, rows: &[usize]) -> ExampleSet {
        let mut set = ExampleSet::default();
        for &row in rows {
            set.ids.extend_from_slice(self.ids(row));
            set.labels.extend_from_slice(&self.labels[self.starts[row]..self.starts[row + 1]]);
            set.starts.push(set.ids.len());
            set.targets.push(self.targets[row]);
            set.sample_ids.push(self.sample_ids[row]);
            set.statistics.count(self.length(row), self.targets(row), Cut { tokens: 0, targets: 0 });
        }
        set
    }
}

struct Cut {
    tokens: usize,
    targets: usize,
}

impl TokenStatistics {
    fn count(&mut self, tokens: usize, targets: usize, cut: Cut) {
        self.rows += 1;
        self.tokens += tokens;
        self.targets += targets;
        self.rows_cut += usize::from(cut.tokens > 0);
        self.tokens_cut += cut.tokens;
        self.targets_cut += cut.targets;
        self.longest = self.longest.max(tokens);
    }
}
