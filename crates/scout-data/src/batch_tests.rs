//! Weights, positions and boundaries of flat batches.

use proptest::prelude::*;

use super::*;
use crate::order::{Dealing, SampleOrder, Shuffle, UpdateOrder};
use crate::template::{Example, IGNORED};

/// A set of rows given by their labels; the ids count up.
fn examples(rows: &[&[i64]]) -> ExampleSet {
    let mut set = ExampleSet::default();
    for (index, labels) in rows.iter().enumerate() {
        let ids = (0..labels.len() as u32).map(|id| 100 * index as u32 + id).collect();
        set.push(&Example { ids, labels: labels.to_vec(), ..Example::default() }, 1000 + index as u64);
    }
    set
}

#[test]
fn a_token_is_predicted_inside_its_document_only() {
    let set = examples(&[&[IGNORED, IGNORED, 7, 8], &[9], &[5, 6, IGNORED]]);
    let rows = [0, 1, 2].map(|row| WeightedRow { row, weight: 0.5 });
    let batch = FlatBatch::from_rows(&set, &rows);
    assert_eq!(batch.ids, [0, 1, 2, 3, 100, 200, 201, 202]);
    assert_eq!(batch.document_starts, [0, 4, 5, 8]);
    assert_eq!(batch.sample_ids, [1000, 1001, 1002]);
    let found: Vec<(u32, u32)> = batch.targets.iter().map(|target| (target.position, target.token)).collect();
    assert_eq!(found, [(1, 7), (2, 8), (5, 6)]);
}

#[test]
fn a_rank_without_rows_has_an_empty_batch() {
    let batch = FlatBatch::from_rows(&examples(&[]), &[]);
    assert_eq!(batch, FlatBatch::default());
    assert_eq!((batch.num_documents(), batch.document_starts.as_slice()), (0, &[0][..]));
}

#[test]
fn weights_follow_the_padded_micro_batches() {
    // Targets a row: 1, 3, 2, 0 (the label of a first token never counts).
    let set = examples(&[&[IGNORED, 1], &[IGNORED, 1, 2, 3], &[IGNORED, 1, 2], &[4, IGNORED]]);
    for (world, batch, reduction, expected) in [
        (1, 4, LossReduction::Token, [6.0, 6.0, 6.0, 6.0]),
        (2, 2, LossReduction::Token, [6.0, 6.0, 6.0, 6.0]),
        (1, 4, LossReduction::MicroBatchMean, [6.0, 6.0, 6.0, 6.0]),
        (2, 2, LossReduction::MicroBatchMean, [8.0, 8.0, 4.0, 4.0]),
        (4, 1, LossReduction::MicroBatchMean, [4.0, 12.0, 8.0, f32::INFINITY]),
    ] {
        let order = SampleOrder::new(4, Dealing { world, batch, accumulation: 1 }, Shuffle::Off).unwrap();
        let plan = UpdatePlan::new(&set, order.update(0), reduction);
        let weights: Vec<f32> = plan.ranks.concat().concat().iter().map(|row| row.weight).collect();
        assert_eq!(weights, expected.map(|divisor| 1.0 / divisor), "{world} {batch} {reduction:?}");
        assert_eq!(plan.counts, UpdateCounts { rows: 4, tokens: 11, targets: 6, micro_batches: world });
    }
}

proptest! {
    #[test]
    fn the_weights_of_an_update_sum_to_one(
        lengths in prop::collection::vec(2_usize..20, 1..30),
        world in 1_usize..4, batch in 1_usize..4, accumulation in 1_usize..3, update in 0_u64..5,
    ) {
        let rows: Vec<Vec<i64>> = lengths.iter().map(|&length| (0..length as i64).collect()).collect();
        let set = examples(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let order = SampleOrder::new(rows.len(), Dealing { world, batch, accumulation }, Shuffle::Seeded(3)).unwrap();
        for reduction in [LossReduction::Token, LossReduction::MicroBatchMean] {
            let mut total = 0.0;
            let plan = UpdatePlan::new(&set, order.update(update), reduction);
            prop_assert_eq!(plan.counts.rows, world * batch * accumulation);
            for rank in 0..world {
                let batches = plan.flat_batches(&set, rank);
                prop_assert_eq!(batches.len(), accumulation);
                total += batches.iter().flat_map(|batch| &batch.targets).map(|target| f64::from(target.weight)).sum::<f64>();
            }
            prop_assert!((total - 1.0).abs() < 1e-5, "{reduction:?}: {total}");
        }
    }
}
