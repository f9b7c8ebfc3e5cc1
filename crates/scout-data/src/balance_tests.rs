//! Rows that are dealt anew: the same ones with the same weights, more evenly, within the memory that was planned.

use proptest::prelude::*;

use super::*;
use crate::batch::LossReduction;
use crate::order::{Dealing, Dealt, SampleOrder, Shuffle, UpdateOrder};
use crate::packing::PackedOrder;
use crate::template::Example;

/// Of Scout, where a pair costs 0.00005 of a token and every fourth layer sees whole rows.
const SCOUT: RowCost = RowCost { chunk_size: 8192, pair: 1.25e-5, pair_in_chunk: 3.75e-5 };
/// One in which attention is most of the work.
const STEEP: RowCost = RowCost { chunk_size: 16, pair: 0.5, pair_in_chunk: 0.25 };

fn examples(lengths: &[usize]) -> ExampleSet {
    let mut set = ExampleSet::default();
    for (&length, sample_id) in lengths.iter().zip(0..) {
        // Rows differ in how much of them is learned too.
        let labels = (0..length).map(|at| if at % (sample_id as usize % 3 + 1) == 0 { 7 } else { -100 }).collect();
        set.push(&Example { ids: vec![3; length], labels, ..Example::default() }, sample_id);
    }
    set
}

fn plan(set: &ExampleSet, dealt: Dealt) -> UpdatePlan {
    UpdatePlan::new(set, dealt, LossReduction::MicroBatchMean)
}

/// Every row with its weight, in an order of their own.
fn rows(plan: &UpdatePlan) -> Vec<(usize, u32)> {
    let mut rows: Vec<(usize, u32)> =
        plan.ranks.iter().flatten().flatten().map(|row| (row.row, row.weight.to_bits())).collect();
    rows.sort_unstable();
    rows
}

fn most_tokens(set: &ExampleSet, plan: &UpdatePlan) -> usize {
    let tokens = |rows: &Vec<WeightedRow>| rows.iter().map(|row| set.length(row.row)).sum();
    plan.ranks.iter().flatten().map(tokens).max().unwrap()
}

/// Everything that is promised of any update.
fn check(set: &ExampleSet, dealt: &UpdatePlan, cost: &RowCost) -> std::result::Result<(), TestCaseError> {
    let found = dealt.clone().balanced(set, cost);
    prop_assert_eq!(rows(&found), rows(dealt), "rows or weights changed");
    prop_assert_eq!(found.counts, dealt.counts);
    prop_assert_eq!(found.ranks.len(), dealt.ranks.len());
    for (found, dealt) in found.ranks.iter().zip(&dealt.ranks) {
        prop_assert_eq!(found.len(), dealt.len());
        prop_assert!(found.iter().all(|rows| !rows.is_empty()), "an empty micro-batch");
    }
    prop_assert!(most_tokens(set, &found) <= most_tokens(set, dealt), "more memory than planned");
    let (before, after) = (dealt.balance(set, cost), found.balance(set, cost));
    prop_assert!(after.most <= before.most, "{before:?} {after:?}");
    prop_assert!((after.mean - before.mean).abs() <= 1e-9 * before.mean);
    prop_assert_eq!(found, dealt.clone().balanced(set, cost), "not the same again");
    Ok(())
}

proptest! {
    #[test]
    fn the_same_rows_with_the_same_weights_are_dealt_more_evenly(
        lengths in prop::collection::vec(2_usize..200, 1..60),
        world in 1_usize..6, batch in 1_usize..6, accumulation in 1_usize..5, update in 0_u64..5, seed in any::<u64>(),
    ) {
        let set = examples(&lengths);
        let dealing = Dealing { world, batch, accumulation };
        let orders: [Box<dyn UpdateOrder>; 2] = [
            Box::new(SampleOrder::new(lengths.len(), dealing, Shuffle::Seeded(seed)).unwrap()),
            Box::new(PackedOrder::new(&lengths, 200, dealing, Shuffle::Seeded(seed)).unwrap()),
        ];
        for order in orders {
            for cost in [SCOUT, STEEP] {
                check(&set, &plan(&set, order.update(update)), &cost)?;
            }
        }
    }

    #[test]
    fn a_single_micro_batch_stays_as_it_was_dealt(lengths in prop::collection::vec(2_usize..200, 1..60), seed in any::<u64>()) {
        let set = examples(&lengths);
        let dealing = Dealing { world: 1, batch: lengths.len().min(8), accumulation: 1 };
        let order = SampleOrder::new(lengths.len(), dealing, Shuffle::Seeded(seed)).unwrap();
        let dealt = plan(&set, order.update(0));
        prop_assert_eq!(dealt.clone().balanced(&set, &SCOUT), dealt);
    }
}

/// The rows alone.
fn dealt(plan: UpdatePlan) -> Dealt {
    let rows = |rows: Vec<WeightedRow>| rows.into_iter().map(|row| row.row).collect();
    plan.ranks.into_iter().map(|batches| batches.into_iter().map(rows).collect()).collect()
}

#[test]
fn rows_move_where_there_is_room_and_whole_micro_batches_where_there_is_none() {
    for (lengths, before, after) in [
        // One micro-batch a rank: the long rows part.
        (&[50, 40, 10, 10][..], vec![vec![vec![0, 1]], vec![vec![2, 3]]], vec![vec![vec![0]], vec![vec![1, 2, 3]]]),
        // Already as even as can be.
        (&[50, 10, 40, 20], vec![vec![vec![1, 0]], vec![vec![3, 2]]], vec![vec![vec![1, 0]], vec![vec![3, 2]]]),
        // One row each: nothing to gain.
        (&[50, 10], vec![vec![vec![0]], vec![vec![1]]], vec![vec![vec![0]], vec![vec![1]]]),
        // A rank alone evens its micro-batches and begins with the larger.
        (&[10, 11, 40, 41], vec![vec![vec![0, 1], vec![2, 3]]], vec![vec![vec![0, 3], vec![1, 2]]]),
        // Packs of 60 that are full, in which rows that are dealt longest first find no room: a rank gives a whole one.
        (
            &[60, 60, 24, 18, 18, 20, 20, 20],
            vec![vec![vec![0], vec![1]], vec![vec![2, 3, 4], vec![5, 6, 7]]],
            vec![vec![vec![0], vec![2, 3, 4]], vec![vec![1], vec![5, 6, 7]]],
        ),
    ] {
        let set = examples(lengths);
        let found = dealt(plan(&set, before.clone()).balanced(&set, &SCOUT));
        assert_eq!(found, after, "{lengths:?} {before:?}");
    }
}

#[test]
fn a_pair_inside_a_chunk_costs_on_other_layers_than_one_across_chunks() {
    let cost = RowCost { chunk_size: 4, pair: 2.0, pair_in_chunk: 0.5 };
    // 10 tokens: 55 pairs, of which 10 + 10 + 3 lie inside chunks.
    assert_eq!(cost.of(10), (1024.0 * (10.0 + 2.0 * 55.0 + 0.5 * 23.0)) as u64);
    assert_eq!(cost.of(0), 0);
}

#[test]
fn balance_of_updates_adds_what_each_waits_for() {
    let updates = [Balance { most: 12.0, mean: 10.0 }, Balance { most: 30.0, mean: 30.0 }];
    assert!((updates[0].excess() - 0.2).abs() < 1e-12);
    let both: Balance = updates.into_iter().sum();
    assert_eq!(both, Balance { most: 42.0, mean: 40.0 });
    assert_eq!(Balance::default().excess(), 0.0);
}

/// Tokens of the rows of the Alpaca-like job.
fn alpaca_lengths() -> Vec<usize> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/alpaca_lengths.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let parts =
        |row: &serde_json::Value| row.as_array().unwrap().iter().map(|part| part.as_u64().unwrap()).sum::<u64>();
    // The template adds eleven tokens to instruction, input and output.
    file["lengths"].as_array().unwrap().iter().map(|row| parts(row) as usize + 11).collect()
}

#[test]
fn ranks_of_the_alpaca_job_have_equal_work_from_some_rows_a_rank_on() {
    let lengths = alpaca_lengths();
    assert_eq!((lengths.len(), lengths.iter().sum::<usize>()), (1000, 169_705));
    let set = examples(&lengths);
    for (world, batch, accumulation, before, after) in [
        (8, 16, 1, 1.20, 1.002),
        (8, 4, 1, 1.40, 1.015),
        (8, 4, 4, 1.20, 1.002),
        // The longest row alone is more than a rank's share.
        (8, 2, 1, 1.70, 1.30),
        (8, 1, 4, 1.45, 1.05),
        // A rank has one row: nothing can be moved.
        (8, 1, 1, 2.0, 2.4),
    ] {
        let dealing = Dealing { world, batch, accumulation };
        let order = SampleOrder::new(1000, dealing, Shuffle::Seeded(42)).unwrap();
        let updates = || (0..3).flat_map(|epoch| order.epoch(epoch)).map(|dealt| plan(&set, dealt));
        let as_dealt: Balance = updates().map(|plan| plan.balance(&set, &SCOUT)).sum();
        let balanced: Balance = updates().map(|plan| plan.balanced(&set, &SCOUT).balance(&set, &SCOUT)).sum();
        let what =
            format!("{world} ranks, {accumulation} × {batch}: {:.4}, {:.4}", as_dealt.excess(), balanced.excess());
        println!("{what}");
        assert!(as_dealt.excess() > before - 1.0, "{what}");
        assert!(balanced.excess() < after - 1.0, "{what}");
    }
}
