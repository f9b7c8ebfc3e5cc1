//! Training whole weights on several ranks: sharding changes no bit, dealing rows to more ranks changes only the order of
//! sums, memory is what the plan said, and what is frozen stays.

use scout_config::RunConfig;
use scout_core::ByteCount;
use scout_train::prepare::prepare;

use crate::bench::{Bench, Trained, assert_all_near, assert_near, bits, train, train_on_ranks};

const FULL: &[&str] = &["finetuning_type=full"];
/// Parts of layers, so that units are trained by half, and an end of the model.
const FREEZE: &[&str] = &[
    "finetuning_type=freeze",
    "freeze_trainable_layers=2",
    "freeze_trainable_modules=q_proj,router,experts,post_attention_layernorm",
    "freeze_extra_modules=lm_head",
];

fn recipe(bench: &Bench, world_size: usize, more: &[&str]) -> RunConfig {
    // The product of ranks and rows is the same for all, and with it the rows of every update.
    let batch = format!("per_device_train_batch_size={}", 12 / world_size);
    let common = [batch.as_str(), "learning_rate=1.0e-3", "weight_decay=0.1", "warmup_steps=1"];
    bench.config(&[&common, more].concat())
}

fn assert_same_bits(what: &str, found: &Trained, expected: &Trained) {
    for (step, (found, expected)) in found.reports.iter().zip(&expected.reports).enumerate() {
        assert_eq!(found.loss.to_bits(), expected.loss.to_bits(), "{what}: loss of step {step}");
        assert_eq!(found.grad_norm.to_bits(), expected.grad_norm.to_bits(), "{what}: norm of step {step}");
    }
    assert!(bits(&found.weights) == bits(&expected.weights), "{what}: weights differ");
}

#[test]
fn sharded_and_resident_weights_are_trained_to_the_same_bits() {
    let bench = Bench::new();
    for kind in [FULL, FREEZE] {
        for more in [&[][..], &["gradient_accumulation_steps=2"]] {
            for world_size in [1, 2, 3, 4] {
                let train_with = |weights: &str| {
                    let weights = format!("weights={weights}");
                    let more = [kind, more, &[weights.as_str()]].concat();
                    train_on_ranks(&recipe(&bench, world_size, &more), world_size, 3)
                };
                let [sharded, resident] = ["zero3", "resident"].map(train_with);
                for trained in sharded.iter().chain(&resident) {
                    assert_same_bits(&format!("{world_size} ranks, {kind:?}, {more:?}"), trained, &sharded[0]);
                }
                let bits_of_loss = |step: usize| sharded[0].reports[step].loss.to_bits();
                assert_ne!(bits_of_loss(1), bits_of_loss(2));
            }
        }
    }
}

#[test]
fn losses_do_not_depend_on_the_number_of_ranks_beyond_the_order_of_sums() {
    const STEPS: usize = 20;
    let bench = Bench::new();
    for kind in [FULL, FREEZE] {
        // AdamW divides by the root of the second moment; with a large epsilon noise in a gradient stays noise in the step.
        let more = [kind, &["adam_epsilon=1.0e-3", "num_train_epochs=4.0"]].concat();
        let alone = train(&recipe(&bench, 1, &more), STEPS);
        for world_size in [2, 4] {
            let trained = train_on_ranks(&recipe(&bench, world_size, &more), world_size, STEPS);
            for (step, (found, expected)) in trained[0].reports.iter().zip(&alone.reports).enumerate() {
                let what = format!("step {step} on {world_size} ranks, {kind:?}");
                assert_near(&format!("loss of {what}"), found.loss, expected.loss, 1e-5);
                assert_near(&format!("norm of {what}"), found.grad_norm, expected.grad_norm, 1e-4);
                assert_eq!(found.num_tokens, expected.num_tokens);
            }
        }
        assert!(alone.reports[STEPS - 1].loss < 0.95 * alone.reports[0].loss, "{kind:?}: something is learned");
    }
}

#[test]
fn an_update_is_the_same_in_one_micro_batch_and_in_several() {
    let bench = Bench::new();
    let cut = |batch: usize, accumulation: usize| {
        let batch = format!("per_device_train_batch_size={batch}");
        let accumulation = format!("gradient_accumulation_steps={accumulation}");
        let smooth = ["adam_epsilon=1.0e-3", "learning_rate=1.0e-3", &batch, &accumulation];
        train(&bench.config(&[FULL, &smooth].concat()), 4)
    };
    let whole = cut(12, 1);
    for (batch, accumulation) in [(6, 2), (4, 3), (1, 12)] {
        let found = cut(batch, accumulation);
        for (found, expected) in found.reports.iter().zip(&whole.reports) {
            assert_near(&format!("loss of {accumulation} micro-batches"), found.loss, expected.loss, 1e-5);
            assert_near(&format!("norm of {accumulation} micro-batches"), found.grad_norm, expected.grad_norm, 1e-5);
        }
        assert_all_near(&format!("{accumulation} micro-batches"), &found.weights, &whole.weights, 1e-5);
    }
}

#[test]
fn the_account_peaks_where_the_plan_says() {
    let bench = Bench::new();
    for kind in [FULL, FREEZE, &["finetuning_type=freeze", "freeze_trainable_layers=1"]] {
        for (world_size, weights) in [(1, "zero3"), (2, "resident"), (2, "zero3"), (3, "zero3")] {
            let weights = format!("weights={weights}");
            let config = bench.config(&[kind, &[weights.as_str(), "gradient_accumulation_steps=2"]].concat());
            let memory = prepare(&config, world_size).unwrap().plan.memory;
            for trained in train_on_ranks(&config, world_size, 2) {
                let what = format!("{weights} on {world_size}, {kind:?}");
                assert_eq!(trained.peaks, [memory.shard, memory.gathered, memory.trained], "{what}");
                assert_eq!(trained.left_gathered, ByteCount(0), "{what}");
            }
        }
    }
}

/// Names and numbers of elements of all parameters, in the order of `Trained::weights`.
fn params(config: &RunConfig) -> Vec<(String, usize)> {
    let plan = prepare(config, 1).unwrap().plan;
    let params = plan.units.units().iter().flat_map(|unit| unit.params.iter());
    params.map(|param| (param.name.clone(), param.num_elements())).collect()
}

#[test]
fn what_is_frozen_keeps_its_bits_and_what_is_trained_moves() {
    let bench = Bench::new();
    let [untouched, full] = [0, 3].map(|steps| train(&recipe(&bench, 1, FULL), steps).weights);
    let frozen = train_on_ranks(&recipe(&bench, 2, FREEZE), 2, 3).remove(0).weights;
    let mut start = 0;
    for (name, len) in params(&recipe(&bench, 1, FULL)) {
        let of_param = |weights: &[f32]| bits(&weights[start..start + len]);
        assert_ne!(of_param(&full), of_param(&untouched), "{name} is trained");
        let in_layers = ["layers.2.", "layers.3."].iter().any(|layer| name.contains(layer))
            && ["q_proj", "router", ".experts.", "post_attention_layernorm"].iter().any(|part| name.contains(part));
        let is_trained = in_layers || name == "lm_head.weight";
        assert_eq!(of_param(&frozen) != of_param(&untouched), is_trained, "{name}");
        start += len;
    }
    assert_eq!(start, untouched.len());
}

#[test]
fn decay_spares_the_norms() {
    let bench = Bench::new();
    // No gradient moves a weight: what is left is decay.
    let still = ["finetuning_type=full", "adam_epsilon=1.0e30", "learning_rate=1.0e-2", "weight_decay=0.5"];
    let [before, after] = [0, 1].map(|steps| train(&bench.config(&still), steps).weights);
    let mut start = 0;
    for (name, len) in params(&bench.config(&still)) {
        for (before, after) in before[start..start + len].iter().zip(&after[start..start + len]) {
            let expected = if name.contains("norm") { *before } else { before * (1.0 - 1e-2f32 * 0.5) };
            let error = (after - expected).abs();
            assert!(error <= 1e-6 * before.abs() + 1e-25, "{name}: {before} became {after}");
        }
        start += len;
    }
}
