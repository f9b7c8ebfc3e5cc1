//! Adapters with dropout, and their scale. A mask shows in the gradient of factor A: over a document of one token, that
//! gradient is zero exactly in the columns of the elements that were dropped. How a mask is drawn is tested where it is.

use std::collections::BTreeMap;

use scout_core::Projection;
use scout_model::lora::Factor;
use scout_model::pass::Dropout;
use scout_model::{Batch, LoraLayout, LoraSettings, ModelConfig, Pass};

use crate::rig::{BlockOutcome, Rig, assert_close, bits, lora, small, values};

/// Projections whose adapters drop; PEFT loads none that drops on routed experts.
const DROPPING: [Projection; 7] = [
    Projection::Q,
    Projection::K,
    Projection::V,
    Projection::O,
    Projection::SharedGate,
    Projection::SharedUp,
    Projection::SharedDown,
];
/// Those whose gradient does not vanish where a token attends to itself alone.
const SEEN_WITH_ONE_TOKEN: [Projection; 5] =
    [Projection::V, Projection::O, Projection::SharedGate, Projection::SharedUp, Projection::SharedDown];
const HALF: Dropout = Dropout { probability: 0.5, seed: 1, step: 0 };

/// Every projection has inputs of this width, so that masks of different projections can be compared.
const WIDTH: usize = 24;

fn square() -> ModelConfig {
    ModelConfig { hidden_size: WIDTH, intermediate_size: WIDTH, ..small() }
}

fn run_block(
    rig: &Rig,
    batch: &Batch,
    (layer, projection): (usize, Projection),
    dropout: Option<Dropout>,
) -> BlockOutcome {
    let attends = matches!(projection, Projection::Q | Projection::K | Projection::V | Projection::O);
    let [x, dy] = [7, 8].map(|seed| rig.activations(seed, batch));
    rig.block(rig.block_index(layer, attends), &x, &dy, &Pass { dropout, ..rig.pass(batch) })
}

/// Which elements of the input of a projection were dropped, in the one token of document `sample`.
fn dropped(rig: &Rig, sample: u64, place: (usize, Projection), dropout: Dropout) -> Vec<bool> {
    let outcome = run_block(rig, &rig.batch(&[(sample, 1)]), place, Some(dropout));
    let range = rig.layout.range(rig.layout.find(place.0, place.1).unwrap(), Factor::A);
    outcome.gradients[range][..WIDTH].iter().map(|&gradient| gradient == 0.0).collect()
}

#[test]
fn the_share_of_dropped_elements_is_the_one_asked_for() {
    let rig = Rig::new(square(), &lora(&DROPPING));
    for probability in [0.05f64, 0.5, 0.9] {
        let dropout = Dropout { probability: probability as f32, ..HALF };
        let masks = (0..100).map(|sample| dropped(&rig, sample, (0, Projection::O), dropout));
        let count = masks.flatten().filter(|&is_dropped| is_dropped).count() as f64;
        let elements = 100.0 * WIDTH as f64;
        let deviation = (elements * probability * (1.0 - probability)).sqrt();
        assert!((count - elements * probability).abs() < 4.0 * deviation, "{count} of {elements} at {probability}");
    }
}

#[test]
fn the_mask_differs_by_seed_step_layer_projection_and_sample() {
    let rig = Rig::new(square(), &lora(&DROPPING));
    let mut seen: BTreeMap<Vec<bool>, String> = BTreeMap::new();
    let mut expect_new = |name: String, mask: Vec<bool>| {
        if let Some(other) = seen.insert(mask, name.clone()) {
            panic!("{name} has the mask of {other}");
        }
    };
    for layer in 0..2 {
        for projection in SEEN_WITH_ONE_TOKEN {
            expect_new(format!("{projection:?} of layer {layer}"), dropped(&rig, 0, (layer, projection), HALF));
        }
    }
    for (seed, step) in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 1), (u64::MAX, 0), (0, u64::MAX)] {
        let mask = dropped(&rig, 0, (0, Projection::O), Dropout { seed, step, ..HALF });
        expect_new(format!("seed {seed}, step {step}"), mask);
    }
    for sample in [1, 2, 40, u64::MAX] {
        expect_new(format!("sample {sample}"), dropped(&rig, sample, (0, Projection::O), HALF));
    }
}

#[test]
fn a_repeated_pass_drops_the_same_elements_and_another_step_drops_others() {
    let rig = Rig::new(small(), &lora(&DROPPING));
    let batch = rig.batch(&[(4, 9), (5, 3)]);
    let run = |dropout| bits(&rig.whole(&Pass { dropout, ..rig.pass(&batch) }).gradients);
    assert_eq!(run(Some(HALF)), run(Some(HALF)));
    let others = [None, Some(Dropout { step: 1, ..HALF }), Some(Dropout { seed: 2, ..HALF })];
    for other in others {
        assert_ne!(run(other), run(Some(HALF)), "{other:?}");
    }
    assert_eq!(run(Some(Dropout { probability: 0.0, ..HALF })), run(None), "probability 0 drops nothing");
}

#[test]
fn over_many_seeds_dropout_changes_nothing() {
    const SEEDS: u64 = 4000;
    for place in [(0, Projection::O), (1, Projection::SharedDown)] {
        // The output is linear in what this one adapter adds, so the mean over masks is the output without any.
        let rig = Rig::new(small(), &lora(&[place.1]));
        let batch = rig.batch(&[(0, 3)]);
        let expected = run_block(&rig, &batch, place, None).y;
        let mut mean = vec![0.0f64; expected.len()];
        for seed in 0..SEEDS {
            let y = run_block(&rig, &batch, place, Some(Dropout { probability: 0.3, seed, step: 0 })).y;
            mean.iter_mut().zip(&y).for_each(|(mean, &value)| *mean += f64::from(value) / SEEDS as f64);
            assert_ne!(bits(&y), bits(&expected), "seed {seed} drops something");
        }
        assert_close(&format!("mean over seeds of {place:?}"), &expected, &mean, 0.02);
    }
}

#[test]
fn the_scale_is_alpha_over_rank_or_over_its_root() {
    for (rank, alpha, use_rslora, expected) in [
        (8, 16.0, false, 2.0),
        (8, 8.0, false, 1.0),
        (16, 8.0, false, 0.5),
        (3, 1.0, false, 1.0 / 3.0),
        (16, 8.0, true, 2.0),
        (1, 0.5, true, 0.5),
        (2, 1.0, true, std::f32::consts::FRAC_1_SQRT_2),
    ] {
        let settings = LoraSettings { rank, alpha, use_rslora, ..lora(&[]) };
        assert_eq!(settings.scale(), expected, "rank {rank}, alpha {alpha}, rslora {use_rslora}");
    }
}

#[test]
fn what_an_adapter_adds_grows_with_its_scale() {
    for place in [(0, Projection::O), (0, Projection::SharedDown), (0, Projection::ExpertsDown)] {
        let settings = LoraSettings { rank: 4, alpha: 4.0, ..lora(&[place.1]) };
        let run = |settings: &LoraSettings| {
            let rig = Rig::new(small(), settings);
            run_block(&rig, &rig.batch(&[(0, 6)]), place, None).y
        };
        let plain = run(&lora(&[]));
        let added = |settings: &LoraSettings| -> Vec<f32> {
            run(settings).iter().zip(&plain).map(|(with, without)| with - without).collect()
        };
        let once = added(&settings);
        let times = |factor: f64| -> Vec<f64> { once.iter().map(|&value| factor * f64::from(value)).collect() };
        assert!(once.iter().any(|value| value.abs() > 0.01), "{place:?}");
        assert_close("alpha 16", &added(&LoraSettings { alpha: 16.0, ..settings.clone() }), &times(4.0), 1e-5);
        assert_close("rslora", &added(&LoraSettings { use_rslora: true, ..settings }), &times(2.0), 1e-5);
    }
}

#[test]
fn an_adapter_on_some_projections_is_one_on_all_whose_others_do_nothing() {
    let all = lora(&Projection::ALL);
    for projections in [
        &[Projection::Q][..],
        &[Projection::K, Projection::O],
        &[Projection::SharedUp],
        &[Projection::SharedGate, Projection::ExpertsDown],
        &[Projection::ExpertsGateUp, Projection::V],
    ] {
        let some = Rig::new(small(), &lora(projections));
        // The same factors on the chosen projections; elsewhere one factor is zero, so that nothing is added.
        let layout = LoraLayout::new(&small(), &all);
        let mut flat = vec![0.0; layout.num_elements()];
        for (index, module) in layout.modules().iter().enumerate() {
            let a = layout.range(index, Factor::A);
            match some.layout.find(module.layer_index, module.projection) {
                None => flat[a.clone()].copy_from_slice(&values(3, a.len(), 0.5)),
                Some(chosen) => [Factor::A, Factor::B].into_iter().for_each(|factor| {
                    flat[layout.range(index, factor)].copy_from_slice(&some.flat[some.layout.range(chosen, factor)]);
                }),
            }
        }
        let whole = Rig::with_factors(small(), &all, flat);
        let batch = some.batch(&[(0, 9), (1, 4)]);
        // Other targets must not move the mask either.
        let drops = projections.iter().all(|projection| !projection.is_routed());
        let dropout = drops.then_some(Dropout { probability: 0.2, seed: 6, step: 3 });
        let [found, expected] = [&some, &whole].map(|rig| rig.whole(&Pass { dropout, ..rig.pass(&batch) }));
        assert_eq!(bits(&found.hidden), bits(&expected.hidden), "{projections:?}");
        assert_eq!(bits(&found.dx), bits(&expected.dx), "{projections:?}");
        for (index, module) in some.layout.modules().iter().enumerate() {
            let in_whole = whole.layout.find(module.layer_index, module.projection).unwrap();
            for factor in [Factor::A, Factor::B] {
                let found = &found.gradients[some.layout.range(index, factor)];
                assert_eq!(found, &expected.gradients[whole.layout.range(in_whole, factor)], "{module:?}");
            }
        }
    }
}
