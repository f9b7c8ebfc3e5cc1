//! A loss or a gradient that is not finite ends the run on all ranks at the same step and leaves the adapter alone.

use scout_core::ExitCode;
use scout_model::{Batch, Document, Target};
use scout_train::prepare::prepare;
use scout_train::{TrainError, assemble};

use crate::bench::{Bench, adapter_of, bits, on_every_rank, run_alone, trainer};

/// One document whose targets weigh `weight`.
fn batch(weight: f32) -> Batch {
    let tokens: Vec<u32> = (0..20).map(|at| 7 * at % 400).collect();
    let targets: Vec<Target> = (0..19).map(|row| Target { row, token: tokens[row as usize + 1], weight }).collect();
    Batch::new(&[Document { sample_id: 1, tokens }], &targets, 32).unwrap()
}

/// A loss of some 1e39, which an f64 holds, and gradients that no f32 holds.
const OVERFLOWS_BACKWARD: f32 = 3e38;
const GOOD: f32 = 0.05;

fn expect_not_a_number(error: &TrainError, what: &str, step: usize) {
    assert!(
        matches!(error, TrainError::NotANumber { what: found, step: at } if *found == what && *at == step),
        "{error}"
    );
    assert_eq!(error.exit_code(), ExitCode::NotANumber);
    assert_eq!(error.exit_code().code(), 79);
    assert!(error.hint().is_some());
}

#[test]
fn a_loss_or_gradient_that_is_not_finite_is_an_error_and_moves_nothing() {
    let bench = Bench::new();
    let config = bench.config(&["max_steps=8"]);
    let (_, mut untouched) = trainer(&config);
    untouched.step(&[batch(GOOD)], 0).unwrap();
    let after_one = adapter_of(&untouched);
    let expected = untouched.step(&[batch(GOOD)], 1).unwrap();
    for (weight, what) in [(f32::NAN, "loss"), (f32::INFINITY, "loss"), (OVERFLOWS_BACKWARD, "gradient norm")] {
        let (_, mut trainer) = trainer(&config);
        trainer.step(&[batch(GOOD)], 0).unwrap();
        for batches in [vec![batch(weight)], vec![batch(GOOD), batch(weight)]] {
            expect_not_a_number(&trainer.step(&batches, 1).unwrap_err(), what, 1);
            assert!(bits(&adapter_of(&trainer)) == bits(&after_one), "weight {weight}: the adapter has moved");
        }
        // Moments too are as if nothing had happened: the same step with a good batch goes where it would have gone.
        assert_eq!(trainer.step(&[batch(GOOD)], 1).unwrap(), expected, "weight {weight}");
        assert!(bits(&adapter_of(&trainer)) == bits(&adapter_of(&untouched)), "weight {weight}: moments have moved");
    }
}

#[test]
fn what_one_rank_meets_ends_all_at_the_same_step() {
    let bench = Bench::new();
    let config = bench.config(&["max_steps=8"]);
    for (weight, what) in [(f32::NAN, "loss"), (OVERFLOWS_BACKWARD, "gradient norm")] {
        let prepared = prepare(&config, 3).unwrap();
        let adapters = on_every_rank(3, |job| {
            let rank = job.mesh().rank().0;
            let mut trainer = assemble::build(&config, &prepared, &job).unwrap();
            let before = adapter_of(&trainer);
            let own = if rank == 1 { batch(weight) } else { batch(GOOD) };
            expect_not_a_number(&trainer.step(&[own], 0).unwrap_err(), what, 0);
            let after = adapter_of(&trainer);
            // What was gathered for the next pass is as good as before.
            let found = trainer.step(&[batch(GOOD)], 0).unwrap();
            trainer.leave().unwrap();
            let mut untouched = assemble::build(&config, &prepared, &job).unwrap();
            assert_eq!(found, untouched.step(&[batch(GOOD)], 0).unwrap());
            untouched.leave().unwrap();
            (before, after)
        });
        for (before, after) in adapters {
            assert!(bits(&before) == bits(&after), "{what}");
        }
    }
}

#[test]
fn a_run_that_blows_up_ends_with_79_and_saves_no_adapter() {
    let bench = Bench::new();
    let config = bench.config(&["learning_rate=1.0e+30", "max_grad_norm=0", "max_steps=6"]);
    let error = run_alone(&config).map(|outcome| panic!("{:?}", outcome.losses)).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::NotANumber, "{error}");
    let run = bench.path("run");
    assert!(!run.join("adapter_model.safetensors").exists());
    let log = std::fs::read_to_string(run.join("trainer_log.jsonl")).unwrap();
    // Steps before it are logged, the step itself is not: never as zero, never as null.
    assert!(log.lines().count() < 6 && !log.contains("NaN") && !log.contains("\"loss\":null"), "{log}");
}
