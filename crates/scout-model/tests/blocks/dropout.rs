//! Adapters on their own: the mask of their dropout seen through factors that are unit matrices, their scale, and that
//! one adapter is not aware of another.

use std::collections::BTreeMap;

use scout_core::Projection;
use scout_device::Tensor;
use scout_model::lora::Factor;
use scout_model::pass::Dropout;
use scout_model::{Batch, LoraLayout, LoraSettings, ModelConfig, Pass};

use crate::rig::{Rig, assert_close, bits, doubles, lora, small, values};

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
const WIDTH: usize = 12;

/// All projections are square, and every factor is the unit matrix: an adapter adds its dropped input and nothing else.
fn mask_rig(projections: &[Projection]) -> Rig {
    let config = ModelConfig {
        hidden_size: WIDTH,
        intermediate_size: WIDTH,
        num_heads: 2,
        num_kv_heads: 2,
        head_dim: WIDTH / 2,
        ..small()
    };
    let settings = LoraSettings { rank: WIDTH, alpha: WIDTH as f64, ..lora(projections) };
    let layout = LoraLayout::new(&config, &settings);
    let mut flat = vec![0.0; layout.num_elements()];
    flat.chunks_exact_mut(WIDTH * WIDTH).for_each(|factor| (0..WIDTH).for_each(|i| factor[i * WIDTH + i] = 1.0));
    Rig::with_factors(config, &settings, flat)
}

/// What the adapter of a projection lets through of an input of ones, `[T, WIDTH]`.
fn mask(rig: &Rig, batch: &Batch, place: (usize, Projection), dropout: Dropout) -> Vec<f32> {
    let pass = Pass { dropout: Some(dropout), ..rig.pass(batch) };
    let dims = [batch.num_tokens(), WIDTH];
    let ones = Tensor::from_f32(vec![1.0; dims[0] * dims[1]], dims).unwrap();
    let adapter = rig.lora.find(place.0, place.1).unwrap();
    adapter.forward_linear(Tensor::zeros_f32(dims).unwrap(), 0, &ones, &pass).unwrap().0.to_f32_vec().unwrap()
}

const HALF: Dropout = Dropout { probability: 0.5, seed: 1, step: 0 };

#[test]
fn an_element_is_dropped_or_made_larger_and_the_share_is_the_one_asked_for() {
    let rig = mask_rig(&DROPPING);
    let batch = rig.batch(&[(0, 400), (1, 400)]);
    for probability in [0.05, 0.1, 0.5, 0.9] {
        let mask = mask(&rig, &batch, (0, Projection::Q), Dropout { probability, ..HALF });
        let kept = 1.0 / (1.0 - probability);
        assert!(mask.iter().all(|&value| value == 0.0 || (value - kept).abs() < 1e-5 * kept), "{probability}");
        let dropped = mask.iter().filter(|&&value| value == 0.0).count() as f32 / mask.len() as f32;
        // 9,600 elements: four standard deviations.
        assert!((dropped - probability).abs() < 0.0205, "{dropped} of {probability}");
    }
}

#[test]
fn the_mask_differs_by_seed_step_layer_projection_sample_and_position() {
    let rig = mask_rig(&DROPPING);
    let batch = rig.batch(&[(0, 40)]);
    let mut seen: BTreeMap<Vec<u32>, String> = BTreeMap::new();
    let mut expect_new = |name: String, mask: &[f32]| {
        if let Some(other) = seen.insert(bits(mask), name.clone()) {
            panic!("{name} has the mask of {other}");
        }
    };
    for layer in 0..2 {
        for projection in DROPPING {
            let found = mask(&rig, &batch, (layer, projection), HALF);
            expect_new(format!("{projection:?} of layer {layer}"), &found);
        }
    }
    for (seed, step) in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 1), (u64::MAX, 0), (0, u64::MAX)] {
        let found = mask(&rig, &batch, (0, Projection::Q), Dropout { seed, step, ..HALF });
        expect_new(format!("seed {seed}, step {step}"), &found);
    }
    for sample in [1, 2, 40, u64::MAX] {
        let found = mask(&rig, &rig.batch(&[(sample, 40)]), (0, Projection::Q), HALF);
        expect_new(format!("sample {sample}"), &found);
    }
    let of_positions = mask(&rig, &rig.batch(&[(77, 40)]), (0, Projection::Q), HALF);
    let rows: Vec<&[f32]> = of_positions.chunks(WIDTH).collect();
    // Of 40 rows of 12 bits some pair may well be equal; a mask that ignored the position would make all of them so.
    let different = rows.iter().filter(|row| **row != rows[0]).count();
    assert!(different > 35, "{different}");
}

#[test]
fn a_document_has_the_same_mask_in_every_batch() {
    let rig = mask_rig(&DROPPING);
    let place = (1, Projection::SharedDown);
    let alone = mask(&rig, &rig.batch(&[(5, 9)]), place, HALF);
    for (documents, start) in [(&[(4, 3), (5, 9)][..], 3), (&[(5, 9), (4, 3)], 0), (&[(6, 1), (7, 20), (5, 9)], 21)] {
        let together = mask(&rig, &rig.batch(documents), place, HALF);
        assert_eq!(together[start * WIDTH..][..alone.len()], alone, "{documents:?}");
    }
}

#[test]
fn an_adapter_has_the_same_mask_whichever_others_there_are() {
    let batch_of = |rig: &Rig| rig.batch(&[(5, 9)]);
    let all = mask_rig(&DROPPING);
    for projections in [&[Projection::V][..], &[Projection::V, Projection::SharedUp], &[Projection::Q, Projection::V]] {
        let some = mask_rig(projections);
        for layer in 0..2 {
            let place = (layer, Projection::V);
            let expected = mask(&all, &batch_of(&all), place, HALF);
            assert_eq!(mask(&some, &batch_of(&some), place, HALF), expected, "{projections:?}");
        }
    }
}

#[test]
fn over_many_seeds_dropout_changes_nothing() {
    let rig = Rig::new(small(), &lora(&DROPPING));
    let batch = rig.batch(&[(0, 4)]);
    let x = rig.activations(7, &batch);
    let adapter = rig.lora.find(0, Projection::SharedUp).unwrap();
    let width = rig.config.intermediate_size;
    let add = |dropout: Option<Dropout>| {
        let zeros = Tensor::zeros_f32([4, width]).unwrap();
        let pass = Pass { dropout, ..rig.pass(&batch) };
        adapter.forward_linear(zeros, 0, &x, &pass).unwrap().0.to_f32_vec().unwrap()
    };
    let expected = add(None);
    const SEEDS: u64 = 4000;
    let mut mean = vec![0.0f64; expected.len()];
    for seed in 0..SEEDS {
        let dropped = add(Some(Dropout { probability: 0.3, seed, step: 0 }));
        mean.iter_mut().zip(dropped).for_each(|(mean, value)| *mean += f64::from(value) / SEEDS as f64);
    }
    let mean: Vec<f32> = mean.iter().map(|&value| value as f32).collect();
    assert_close("mean over seeds", &mean, &doubles(&expected), 0.05);
    let once = add(Some(Dropout { probability: 0.3, seed: 0, step: 0 }));
    assert_ne!(bits(&once), bits(&expected));
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
    let settings = LoraSettings { rank: 4, alpha: 4.0, ..lora(&[Projection::Q]) };
    let add = |settings: &LoraSettings| {
        let rig = Rig::new(small(), settings);
        let batch = rig.batch(&[(0, 3)]);
        let x = rig.activations(7, &batch);
        let zeros = Tensor::zeros_f32([3, 24]).unwrap();
        let adapter = rig.lora.find(0, Projection::Q).unwrap();
        adapter.forward_linear(zeros, 0, &x, &rig.pass(&batch)).unwrap().0.to_f32_vec().unwrap()
    };
    let once = add(&settings);
    let four_times: Vec<f64> = once.iter().map(|&value| 4.0 * f64::from(value)).collect();
    assert_close("alpha 16", &add(&LoraSettings { alpha: 16.0, ..settings.clone() }), &four_times, 1e-6);
    let twice: Vec<f64> = once.iter().map(|&value| 2.0 * f64::from(value)).collect();
    assert_close("rslora", &add(&LoraSettings { use_rslora: true, ..settings }), &twice, 1e-6);
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
        let [found, expected] = [&some, &whole].map(|rig| rig.whole(&rig.pass(&batch)));
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
