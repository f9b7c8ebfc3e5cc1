//! An update's rows as flat micro-batches: one run of tokens with document boundaries, never any padding, and each
//! target with the weight it has in the loss. Chooses no rows; the order does.

use crate::examples::ExampleSet;
use crate::order::Dealt;

/// How the losses of an update's targets become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReduction {
    /// The mean over all targets of the update, on all ranks.
    Token,
    /// The mean over all micro-batches of the mean over each one's targets, as LLaMA-Factory computes it. A micro-batch
    /// without targets counts as one whose loss is 0, where LLaMA-Factory gets 0/0.
    MicroBatchMean,
}

/// One token to be predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The place in the flat run whose output predicts the token.
    pub position: u32,
    pub token: u32,
    /// What the token's loss is multiplied with; the loss of an update is the plain sum over all of its targets.
    pub weight: f32,
}

/// Documents one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct FlatBatch {
    pub ids: Vec<u32>,
    /// Where each document begins, and at the end the number of tokens: one entry more than documents.
    pub document_starts: Vec<u32>,
    pub targets: Vec<Target>,
    /// One per document.
    pub sample_ids: Vec<u64>,
}

/// A row and the weight of each of its targets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightedRow {
    pub row: usize,
    pub weight: f32,
}

/// What an update holds, over all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpdateCounts {
    pub rows: usize,
    pub tokens: usize,
    pub targets: usize,
    pub micro_batches: usize,
}

/// The rows of an update with their weights, `[rank][micro-batch]`.
///
/// A weight is fixed by the micro-batch in which the padded trainer would compute the row. Rows may move between
/// micro-batches and ranks afterwards, and are, to balance them ([`UpdatePlan::balanced`]); that changes no loss.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdatePlan {
    pub ranks: Vec<Vec<Vec<WeightedRow>>>,
    pub counts: UpdateCounts,
}

impl UpdatePlan {
    /// From the rows as an order deals them.
    pub fn new(examples: &ExampleSet, dealt: Dealt, reduction: LossReduction) -> UpdatePlan {
        let counts = count(examples, &dealt);
        let weigh = |rows: Vec<usize>| -> Vec<WeightedRow> {
            let divisor = match reduction {
                LossReduction::Token => counts.targets,
                LossReduction::MicroBatchMean => {
                    rows.iter().map(|&row| examples.targets(row)).sum::<usize>() * counts.micro_batches
                }
            };
            let weight = if divisor == 0 { 0.0 } else { (1.0 / divisor as f64) as f32 };
            rows.into_iter().map(|row| WeightedRow { row, weight }).collect()
        };
        let ranks = dealt.into_iter().map(|batches| batches.into_iter().map(weigh).collect()).collect();
        UpdatePlan { ranks, counts }
    }

    /// The micro-batches of one rank.
    pub fn flat_batches(&self, examples: &ExampleSet, rank: usize) -> Vec<FlatBatch> {
        self.ranks[rank].iter().map(|rows| FlatBatch::from_rows(examples, rows)).collect()
    }
}

fn count(examples: &ExampleSet, dealt: &Dealt) -> UpdateCounts {
    let mut counts = UpdateCounts::default();
    for rows in dealt.iter().flatten() {
        counts.micro_batches += 1;
        counts.rows += rows.len();
        counts.tokens += rows.iter().map(|&row| examples.length(row)).sum::<usize>();
        counts.targets += rows.iter().map(|&row| examples.targets(row)).sum::<usize>();
    }
    counts
}

impl Default for FlatBatch {
    /// A batch without documents, for a rank without rows.
    fn default() -> FlatBatch {
        FlatBatch { ids: Vec::new(), document_starts: vec![0], targets: Vec::new(), sample_ids: Vec::new() }
    }
}

impl FlatBatch {
    /// Lays rows one after another. A token is predicted by the one before it in the same document, so the first of a
    /// document is predicted by nothing and the last predicts nothing.
    pub fn from_rows(examples: &ExampleSet, rows: &[WeightedRow]) -> FlatBatch {
        let mut batch = FlatBatch::default();
        batch.ids.reserve_exact(rows.iter().map(|row| examples.length(row.row)).sum());
        batch.targets.reserve_exact(rows.iter().map(|row| examples.targets(row.row)).sum());
        for &WeightedRow { row, weight } in rows {
            let start = batch.ids.len();
            batch.ids.extend_from_slice(examples.ids(row));
            for (offset, label) in examples.labels(row).enumerate().skip(1) {
                if let Some(token) = label {
                    batch.targets.push(Target { position: place(start + offset - 1), token, weight });
                }
            }
            batch.document_starts.push(place(batch.ids.len()));
            batch.sample_ids.push(examples.sample_id(row));
        }
        batch
    }

    pub fn num_documents(&self) -> usize {
        self.sample_ids.len()
    }
}

fn place(index: usize) -> u32 {
    u32::try_from(index).expect("a micro-batch of four thousand million tokens fits no memory")
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
