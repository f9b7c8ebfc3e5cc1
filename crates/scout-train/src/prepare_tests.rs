//! What the plan is told of the data: exactly what the run will meet.

use scout_data::Example;
use scout_model::ModelConfig;

use super::*;
use crate::runs::Rows;

fn config(overrides: &[&str]) -> RunConfig {
    let overrides: Vec<String> = overrides.iter().map(|entry| entry.to_string()).collect();
    RunConfig::from_text("run.yaml", "random_weights: true\nmodel_name_or_path: none\n", &overrides, &[])
        .unwrap()
        .config
}

fn examples(lengths: impl Iterator<Item = usize>) -> ExampleSet {
    let mut set = ExampleSet::default();
    for (length, sample_id) in lengths.zip(0..) {
        set.push(&Example { ids: vec![1; length], labels: vec![1; length], ..Example::default() }, sample_id);
    }
    set
}

fn data(config: &RunConfig, world_size: usize) -> RunData {
    let rows = examples((0..150).map(|row| 5 + row * row * 37 % 120));
    let order = order(config, &rows, world_size).unwrap();
    RunData {
        examples: rows,
        held_out: examples([300, 7, 8].into_iter()),
        order,
        reduction: LossReduction::MicroBatchMean,
        cost: row_cost(&ModelConfig::scout()),
        runs: config.train.gradient_accumulation_steps,
        statistics: TokenStatistics::default(),
    }
}

fn size(batch: &Batch) -> LargestBatch {
    LargestBatch::of(batch.documents.borders().windows(2).map(|ends| (ends[1] - ends[0]) as usize))
}

/// The largest updates and runs of the first steps.
fn met(data: &RunData, world_size: usize, num_steps: usize) -> Largest {
    let mut met = Largest::default();
    for (step, rank) in (0..num_steps).flat_map(|step| (0..world_size).map(move |rank| (step, rank))) {
        let (batches, _) = data.update(step, rank, 32).unwrap();
        let lengths = |batch: &Batch| -> Vec<usize> {
            batch.documents.borders().windows(2).map(|ends| (ends[1] - ends[0]) as usize).collect()
        };
        met.meet(&batches.iter().map(lengths).collect::<Vec<_>>(), |length| *length);
    }
    met
}

fn is_within(found: LargestBatch, bound: LargestBatch) -> bool {
    found.or(bound) == bound
}

#[test]
fn the_plan_is_told_exactly_the_largest_update_and_micro_batch_of_all_steps() {
    for (overrides, world_size, num_steps) in [
        (&["per_device_train_batch_size=4", "num_train_epochs=2"][..], 1, 76),
        (&["per_device_train_batch_size=4", "num_train_epochs=2"], 4, 20),
        (&["per_device_train_batch_size=1", "gradient_accumulation_steps=4", "num_train_epochs=2"], 2, 38),
        (&["per_device_train_batch_size=3", "gradient_accumulation_steps=2", "max_steps=3"], 3, 3),
        (&["per_device_train_batch_size=2", "packing=true", "cutoff_len=128", "max_steps=60"], 2, 60),
    ] {
        let config = config(overrides);
        let data = data(&config, world_size);
        let counts = data.counts(&config);
        let found = counts.trained;
        assert_eq!(found, met(&data, world_size, num_steps), "{overrides:?} on {world_size}");
        let bounds = data.bounds(&config);
        let are_bounds = is_within(found.update, bounds.update) && is_within(found.micro_batch, bounds.micro_batch);
        assert!(are_bounds, "{overrides:?}: {found:?} {bounds:?}");
        assert_eq!(plan::num_steps(&config, counts.updates_per_epoch), num_steps, "{overrides:?} on {world_size}");
    }
}

#[test]
fn a_run_too_long_to_be_walked_is_planned_by_what_it_cannot_exceed() {
    let config = config(&["per_device_train_batch_size=200", "max_steps=1000000000"]);
    let data = data(&config, 2);
    let counts = data.counts(&config);
    assert_eq!(counts.trained, data.bounds(&config));
    // More rows than there are: some come twice.
    let LargestBatch { num_tokens, num_rows, .. } = counts.trained.micro_batch;
    assert!(num_tokens > data.examples.lengths().iter().sum::<usize>() && num_rows >= 200);
    assert!(is_within(met(&data, 2, 1).update, counts.trained.update));
}

#[test]
fn rows_that_are_only_scored_count_where_they_are_scored() {
    let counts = |overrides: &[&str]| {
        let config = config(&[&["per_device_train_batch_size=2", "max_steps=1"], overrides].concat());
        data(&config, 2).counts(&config)
    };
    let found = counts(&["val_size=3", "eval_strategy=epoch", "gradient_accumulation_steps=2"]).scored;
    assert_eq!(found.micro_batch, LargestBatch { num_rows: 2, num_tokens: 307, longest_row: 300 });
    assert_eq!(found.update, LargestBatch { num_rows: 3, num_tokens: 315, longest_row: 300 });
    assert_eq!(counts(&[]).scored, Largest::default());
}

#[test]
fn no_run_is_larger_than_planned_in_any_number_of_them() {
    for (overrides, world_size) in [
        (&["per_device_train_batch_size=4", "gradient_accumulation_steps=3"][..], 2),
        (&["per_device_train_batch_size=1", "gradient_accumulation_steps=8"], 3),
        (&["per_device_train_batch_size=2", "gradient_accumulation_steps=3", "packing=true", "cutoff_len=128"], 2),
    ] {
        let config = config(&[overrides, &["val_size=3", "eval_strategy=epoch", "num_train_epochs=1"]].concat());
        let (accumulation, rows_per_batch) =
            (config.train.gradient_accumulation_steps, config.train.per_device_train_batch_size);
        let mut data = data(&config, world_size);
        let DataCounts { trained, scored, updates_per_epoch, .. } = data.counts(&config);
        assert!(updates_per_epoch > 5, "{overrides:?}");
        let rows = Rows { num_micro_batches: accumulation, trained, scored };
        let of_all = |data: &RunData, step| {
            let ranks = data.update_plan(step).ranks;
            let mut rows: Vec<usize> = ranks.iter().flatten().flatten().map(|row| row.row).collect();
            rows.sort_unstable();
            (rows, ranks)
        };
        let as_dealt: Vec<_> = (0..updates_per_epoch).map(|step| of_all(&data, step)).collect();
        for runs in 1..=13 {
            data.runs = runs;
            let planned = rows.largest_run(runs);
            for (step, as_dealt) in as_dealt.iter().enumerate() {
                let found = of_all(&data, step);
                assert_eq!(found.0, as_dealt.0, "the same rows");
                assert!(runs != accumulation || found.1 == as_dealt.1, "micro-batches as they were dealt");
                for rank in 0..world_size {
                    let (batches, counts) = data.update(step, rank, 32).unwrap();
                    assert_eq!((batches.len(), counts.micro_batches), (runs, world_size * accumulation));
                    assert!(batches.iter().all(|batch| is_within(size(batch), planned)), "{overrides:?}, {runs} runs");
                }
            }
            let scored = data.scored_runs(rows_per_batch);
            let sizes = scored.iter().map(|rows| LargestBatch::of(rows.iter().map(|row| data.held_out.length(*row))));
            assert!(sizes.clone().all(|size| size.num_rows > 0 && is_within(size, planned)), "{overrides:?}, {runs}");
            assert_eq!(sizes.map(|size| size.num_tokens).sum::<usize>(), 315);
            for rank in 0..world_size {
                let batches = data.evaluation(rows_per_batch, world_size, rank, 32).unwrap();
                assert_eq!(batches.len(), scored.len().div_ceil(world_size));
            }
        }
    }
}

#[test]
fn ranks_are_balanced_and_memory_gains_by_it() {
    let config = config(&["per_device_train_batch_size=8", "num_train_epochs=3"]);
    let data = data(&config, 4);
    let as_dealt: Balance = (0..3)
        .flat_map(|epoch| data.order.epoch(epoch))
        .map(|dealt| UpdatePlan::new(&data.examples, dealt, data.reduction).balance(&data.examples, &data.cost))
        .sum();
    let balanced = data.balance(15);
    assert!((balanced.mean / as_dealt.mean - 1.0).abs() < 1e-9, "{balanced:?} {as_dealt:?}");
    assert!(balanced.excess() < 0.01 && as_dealt.excess() > 0.1, "{balanced:?} {as_dealt:?}");
    let mut lengths = data.examples.lengths();
    lengths.sort_unstable();
    let longest: usize = lengths.iter().rev().take(8).sum();
    assert!(4 * data.counts(&config).trained.micro_batch.num_tokens < 3 * longest);
}

#[test]
fn a_row_costs_its_tokens_and_the_pairs_that_attention_sees() {
    let model = ModelConfig::scout();
    let cost = row_cost(&model);
    let flops = |num_tokens: usize, pairs: u64| {
        plan::useful_flops(&model, num_tokens, AttendedPairs { in_documents: pairs, in_chunks: pairs })
    };
    // Inside one chunk all layers see all pairs.
    let (tokens, pairs) = (1000, 1000 * 1001 / 2);
    let found = tokens as f64 + (cost.pair + cost.pair_in_chunk) * pairs as f64;
    assert!((found * flops(1, 0) / flops(tokens, pairs) - 1.0).abs() < 1e-9);
    // A quarter of Scout's layers see across chunks.
    assert!((cost.pair_in_chunk / cost.pair - 3.0).abs() < 1e-9);
    assert_eq!(cost.chunk_size, 8192);
}

#[test]
fn what_an_epoch_takes_twice_is_said_where_a_small_data_set_notices() {
    let steps =
        |num_rows, updates_per_epoch| StepsPlan { num_rows, updates_per_epoch, total_steps: 9, warmup_steps: 0 };
    let plain = config(&["per_device_train_batch_size=4", "gradient_accumulation_steps=2"]);
    for (num_rows, updates, world, expected) in [
        (1000, 125, 1, None),
        (999, 125, 1, None),
        (86, 6, 2, Some("an update takes 16 rows, so an epoch of 6 takes 96")),
    ] {
        let note = wrap_note(&plain, &steps(num_rows, updates), world);
        match expected {
            None => assert_eq!(note, None),
            Some(begin) => assert!(note.as_ref().is_some_and(|note| note.starts_with(begin)), "{note:?}"),
        }
    }
    let short = StepsPlan { total_steps: 5, ..steps(86, 6) };
    assert_eq!(wrap_note(&plain, &short, 2), None, "it ends before an epoch does");
    let packs = config(&["packing=true"]);
    assert_eq!(wrap_note(&packs, &steps(86, 6), 2), None);
    assert!(packing_note(&packs).is_some_and(|note| note.contains("keeps rows apart")));
    assert_eq!(packing_note(&config(&["packing=true", "neat_packing=true"])), None);
}
