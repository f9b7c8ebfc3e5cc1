//! Sharded training beside training with whole weights on every rank: equal to the last bit at equal numbers of ranks,
//! and within the rounding of sums between different ones.

use scout_core::DType;

use crate::backends::Backend;
use crate::rig::{Recipe, Toy, Trained};

/// The second step sees what the first one did.
const STEPS: usize = 2;

fn assert_same_bits(what: &str, found: &[Trained], expected: &[Trained]) {
    assert_eq!(found.len(), expected.len());
    for (rank, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (step, (found, expected)) in found.reports.iter().zip(&expected.reports).enumerate() {
            let bits = |report: &scout_train::StepReport| [report.loss.to_bits(), report.grad_norm.to_bits()];
            assert_eq!(bits(found), bits(expected), "{what}: rank {rank}, loss and norm of step {step}");
        }
        assert_eq!(found.reports.len(), STEPS);
        assert!(found.adapter == expected.adapter, "{what}: rank {rank}, adapters differ");
    }
}

#[test]
fn sharded_training_equals_unsharded_training_bit_for_bit() {
    let toy = Toy::new(DType::F32);
    let configs = ["resident", "zero3"].map(|weights| toy.config(&[&format!("weights={weights}")]));
    for world_size in [2, 3, 4, 8] {
        let [resident, sharded] = &configs;
        let recipe = |config, lookahead| Recipe { config, world_size, num_steps: STEPS, lookahead };
        let expected = recipe(resident, None).train_on(Backend::Local);
        assert!(expected.iter().all(|rank| rank.peak.gathered.0 == 0), "whole weights gather nothing");
        // A step moves the adapter, or equality would say nothing.
        assert!(expected[0].reports[0].loss != expected[0].reports[1].loss);
        for lookahead in [0, 1, 2, 5] {
            let found = recipe(sharded, Some(lookahead)).train_on(Backend::Local);
            assert!(found.iter().all(|rank| rank.peak.gathered.0 > 0), "shards are gathered");
            assert_same_bits(&format!("{world_size} ranks, {lookahead} ahead"), &found, &expected);
        }
        // Ranks that share no memory: gathers ahead overtake nothing there either.
        for lookahead in [world_size % 3, 5] {
            let found = recipe(sharded, Some(lookahead)).train_on(Backend::Streams);
            assert_same_bits(&format!("{world_size} ranks over streams, {lookahead} ahead"), &found, &expected);
        }
    }
}

#[test]
fn every_choice_of_adapters_and_batches_is_sharded_without_a_trace() {
    let toy = Toy::new(DType::BF16);
    for overrides in [
        &["lora_target=all", "gradient_accumulation_steps=1", "per_device_train_batch_size=3"][..],
        &["lora_target=experts", "packing=true", "per_device_train_batch_size=2"],
        &["lora_target=q_proj", "loss_reduction=micro_batch_mean", "use_rslora=true"],
    ] {
        let train = |weights: &str| {
            let weights = format!("weights={weights}");
            let config = toy.config(&[overrides, &[weights.as_str()]].concat());
            Recipe { config: &config, world_size: 3, num_steps: STEPS, lookahead: None }.train_on(Backend::Local)
        };
        assert_same_bits(&overrides.join(" "), &train("zero3"), &train("resident"));
    }
}

#[test]
fn losses_of_twenty_steps_do_not_depend_on_the_number_of_ranks() {
    let toy = Toy::new(DType::F32);
    let train = |world_size: usize| {
        // The same rows in every update, and a rate at which the loss falls without dancing.
        let batch = format!("per_device_train_batch_size={}", 8 / world_size);
        let config = toy.config(&[&batch, "gradient_accumulation_steps=1", "max_steps=20", "learning_rate=2.0e-3"]);
        let recipe = Recipe { config: &config, world_size, num_steps: 20, lookahead: None };
        recipe.train_on(Backend::Local).remove(0).reports
    };
    let alone = train(1);
    assert_eq!(alone.len(), 20);
    assert!(alone[19].loss < 0.9 * alone[0].loss, "{} to {}", alone[0].loss, alone[19].loss);
    for world_size in [2, 4, 8] {
        for (step, (found, expected)) in train(world_size).iter().zip(&alone).enumerate() {
            let error = (found.loss - expected.loss).abs() / expected.loss;
            assert!(error <= 1e-5, "{world_size} ranks, step {step}: {} and {}", found.loss, expected.loss);
            assert_eq!(found.num_tokens, expected.num_tokens, "{world_size} ranks, step {step}");
        }
    }
}
