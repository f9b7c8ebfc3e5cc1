//! Held-out rows: their loss is the mean over their targets, whatever the batches and ranks, and an adapter on disk is
//! the adapter that was trained.

use scout_core::ByteCount;
use scout_device::Purpose;
use scout_model::{Batch, Document, NoTrace, Target};
use scout_train::assemble;
use scout_train::prepare::prepare;

use crate::bench::{Bench, adapter_of, alone, assert_near, bits, on_every_rank, run_alone, trainer};

const HOLDS_OUT: [&str; 3] = ["val_size=7", "eval_strategy=steps", "eval_steps=2"];

#[test]
fn the_evaluation_loss_is_the_mean_over_all_held_out_targets() {
    let bench = Bench::new();
    let (prepared, mut trainer) =
        trainer(&bench.config(&[&HOLDS_OUT[..], &["lora_target=all", "lora_dropout=0.5"]].concat()));
    let chunk_size = prepared.plan.source.config.attention_chunk_size;
    for step in 0..2 {
        let (batches, _) = prepared.data.update(step, 0, chunk_size).unwrap();
        trainer.step(&batches, step).unwrap();
    }
    let held_out = &prepared.data.held_out;
    assert_eq!((held_out.len(), prepared.data.examples.len()), (7, 96 - 7));
    let lora = trainer.adapter.weights().unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for row in 0..held_out.len() {
        // Every position is scored; those without a label count nothing.
        let tokens = held_out.ids(row).to_vec();
        let targets: Vec<Target> =
            (1..tokens.len()).map(|at| Target { row: at as u32 - 1, token: tokens[at], weight: 1.0 }).collect();
        let document = Document { sample_id: held_out.sample_id(row), tokens };
        let batch = Batch::new(&[document], &targets, chunk_size).unwrap();
        let losses =
            trainer.losses(&trainer.pass(&batch, &lora, None), &mut NoTrace).unwrap().token_loss.to_f32_vec().unwrap();
        for (loss, label) in losses.iter().zip(held_out.labels(row).skip(1)) {
            if label.is_some() {
                (sum, count) = (sum + f64::from(*loss), count + 1);
            }
        }
    }
    let expected = sum / count as f64;
    for rows_per_batch in [1, 2, 3, 7, 100] {
        let batches = prepared.data.evaluation(rows_per_batch, 1, 0, chunk_size).unwrap();
        assert_eq!(batches.len(), 7usize.div_ceil(rows_per_batch));
        let found = trainer.evaluate(&batches).unwrap();
        assert_near(&format!("{rows_per_batch} rows a batch"), found, expected, 1e-6);
    }
}

#[test]
fn evaluations_between_steps_let_go_of_what_was_gathered_ahead_and_change_nothing() {
    let bench = Bench::new();
    let config = bench.config(&HOLDS_OUT);
    let prepared = prepare(&config, 2).unwrap();
    let chunk_size = prepared.plan.source.config.attention_chunk_size;
    let train = |evaluates: bool| {
        on_every_rank(2, |job| {
            let rank = job.mesh().rank().0;
            let held_out = prepared.data.evaluation(2, 2, rank, chunk_size).unwrap();
            let mut trainer = assemble::build(&config, &prepared, &job).unwrap();
            for step in 0..3 {
                let (batches, _) = prepared.data.update(step, rank, chunk_size).unwrap();
                trainer.step(&batches, step).unwrap();
                assert!(trainer.account.in_use(Purpose::Gathered) > ByteCount(0), "the next pass has begun");
                if evaluates {
                    trainer.evaluate(&held_out).unwrap();
                    assert_eq!(trainer.account.in_use(Purpose::Gathered), ByteCount(0));
                }
            }
            trainer.leave().unwrap();
            assert_eq!(trainer.account.in_use(Purpose::Gathered), ByteCount(0));
            assert_eq!(trainer.account.peak(Purpose::Gathered), prepared.plan.memory.gathered);
            bits(&adapter_of(&trainer))
        })
    };
    assert!(train(true) == train(false), "adapters differ");
}

#[test]
fn the_evaluation_loss_does_not_depend_on_the_number_of_ranks() {
    let bench = Bench::new();
    let config = bench.config(&HOLDS_OUT);
    let expected = {
        let (prepared, trainer) = trainer(&config);
        trainer.evaluate(&prepared.data.evaluation(4, 1, 0, 32).unwrap()).unwrap()
    };
    for world_size in [2, 3] {
        for rows_per_batch in [1, 2, 4] {
            let found = on_every_rank(world_size, |job| {
                let rank = job.mesh().rank().0;
                let prepared = prepare(&config, world_size).unwrap();
                let batches = prepared.data.evaluation(rows_per_batch, world_size, rank, 32).unwrap();
                assemble::build(&config, &prepared, &job).unwrap().evaluate(&batches).unwrap()
            });
            for loss in found {
                assert_near(&format!("{rows_per_batch} rows on {world_size} ranks"), loss, expected, 1e-6);
            }
        }
    }
}

#[test]
fn the_held_out_rows_are_the_same_for_every_number_of_ranks_and_are_never_trained_on() {
    let bench = Bench::new();
    let config = bench.config(&HOLDS_OUT);
    let split = |world_size: usize| {
        let data = prepare(&config, world_size).unwrap().data;
        let ids = |set: &scout_data::ExampleSet| (0..set.len()).map(|row| set.sample_id(row)).collect::<Vec<_>>();
        (ids(&data.held_out), ids(&data.examples))
    };
    let (held_out, trained) = split(1);
    assert_eq!(split(4), (held_out.clone(), trained.clone()));
    let mut all = [held_out, trained].concat();
    all.sort_unstable();
    assert_eq!(all, (0..96).collect::<Vec<u64>>());
}

#[test]
fn a_run_goes_on_from_an_adapter_exactly_where_it_ended() {
    let bench = Bench::new();
    let first_dir = bench.path("first");
    let first = bench.config(
        &[&HOLDS_OUT[..], &["max_steps=6", "eval_steps=6", &format!("output_dir={}", first_dir.display())]].concat(),
    );
    let ended = run_alone(&first).unwrap();
    let last_loss = ended.summary.eval.unwrap().eval_loss;

    // Its own rank and targets win over those of the keys.
    let adapter = format!("adapter_name_or_path={}", first_dir.display());
    let more = [adapter.as_str(), "lora_rank=2", "lora_target=q_proj", "max_steps=2"];
    let second = bench.config(&[&HOLDS_OUT[..], &more].concat());
    let prepared = prepare(&second, 1).unwrap();
    assert_eq!(prepared.plan.lora.rank, 4);
    assert_eq!(prepared.plan.lora.projections.len(), 9);
    assert!(prepared.notes.iter().any(|note| note.contains("rank 4")), "{:?}", prepared.notes);
    let mut trainer = assemble::build(&second, &prepared, &alone()).unwrap();
    let batches = prepared.data.evaluation(4, 1, 0, 32).unwrap();
    assert_eq!(trainer.evaluate(&batches).unwrap().to_bits(), last_loss.to_bits());

    // The first loss of the second run is that of the adapter the first run ended with.
    let (update, _) = prepared.data.update(0, 0, 32).unwrap();
    let expected = trainer.evaluate(&update).unwrap();
    let started_from = adapter_of(&trainer);
    assert_eq!(trainer.step(&update, 0).unwrap().loss.to_bits(), expected.to_bits());
    assert!(bits(&adapter_of(&trainer)) != bits(&started_from));
    let outcome = run_alone(&second).unwrap();
    assert_eq!(outcome.losses[0].to_bits(), (expected as f32).to_bits());
    let fresh = run_alone(&bench.config(&["max_steps=1", "overwrite_output_dir=true"])).unwrap();
    assert_ne!(fresh.losses[0].to_bits(), outcome.losses[0].to_bits(), "a fresh adapter begins elsewhere");
}
