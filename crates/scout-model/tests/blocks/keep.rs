//! What a block keeps for its backward pass changes its memory and no bit of its results.

use std::cell::Cell;

use scout_core::Projection;
use scout_device::Tensor;
use scout_model::pass::Dropout;
use scout_model::{Keep, Keeping, KeptRows, Pass};

use crate::rig::{BlockOutcome, Rig, bits, bits_by_param, lora, small};

const LESS: [Keep; 2] = [Keep::AllButGateUp, Keep::InputOnly];

fn assert_same_bits(what: &str, found: &BlockOutcome, expected: &BlockOutcome) {
    assert_eq!(bits(&found.y), bits(&expected.y), "{what}: y");
    assert_eq!(bits(&found.dx), bits(&expected.dx), "{what}: dx");
    assert_eq!(bits(&found.gradients), bits(&expected.gradients), "{what}: gradients");
    assert_eq!(bits_by_param(&found.weights), bits_by_param(&expected.weights), "{what}: gradients of weights");
}

#[test]
fn keeping_less_changes_no_bit_with_dropout_or_without() {
    let attended_and_shared = &Projection::ALL[..7];
    for (projections, dropout) in [
        (&Projection::ALL[..], None),
        (attended_and_shared, Some(Dropout { probability: 0.3, seed: 9, step: 4 })),
        (&[], None),
    ] {
        let rig = Rig::new(small(), &lora(projections));
        for documents in [&[(0, 13), (1, 1), (2, 7)][..], &[(0, 1)], &[]] {
            let batch = rig.batch(documents);
            let [x, dy] = [1, 2].map(|seed| rig.activations(seed, &batch));
            let pass = Pass { dropout, ..rig.pass(&batch) };
            for index in 0..rig.model.blocks.len() {
                let expected = rig.block(index, &x, &dy, &pass);
                for keep in LESS {
                    let what = format!("{keep:?}, block {index}, {} adapters", projections.len());
                    assert_same_bits(
                        &what,
                        &rig.block(index, &x, &dy, &Pass { keep: keep.into(), ..pass_of(&pass) }),
                        &expected,
                    );
                }
            }
        }
    }
}

#[test]
fn layers_that_keep_more_than_others_lie_evenly_among_them() {
    for (num_layers, num_more) in [(2, 1), (6, 2), (48, 6), (48, 42)] {
        let keeping = Keeping::mixed(Keep::AllButGateUp, num_more, num_layers);
        let more: Vec<usize> = (0..num_layers).filter(|layer| keeping.of_layer(*layer) == Keep::Everything).collect();
        assert_eq!(more.len(), num_more);
        let gaps = more.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.into_iter().all(|gap| gap.abs_diff(num_layers / num_more) <= 1), "{more:?}");
        assert_eq!(Keeping::mixed(Keep::InputOnly, num_more, num_layers).of_layer(more[0]), Keep::AllButGateUp);
    }
    assert!((0..48).all(|layer| Keeping::from(Keep::InputOnly).of_layer(layer) == Keep::InputOnly));
}

#[test]
fn a_whole_pass_has_the_same_loss_and_gradients_whatever_is_kept() {
    let rig = Rig::new(small(), &lora(&Projection::ALL));
    let batch = rig.batch(&[(4, 11), (5, 3)]);
    let expected = rig.whole(&rig.pass(&batch));
    assert!(expected.loss > 0.0 && expected.gradients.iter().any(|&gradient| gradient != 0.0));
    let mixtures = LESS.map(|least| Keeping::mixed(least, 1, rig.model.blocks.len() / 2));
    for keep in LESS.map(Keeping::from).into_iter().chain(mixtures) {
        let found = rig.whole(&Pass { keep, ..rig.pass(&batch) });
        assert_eq!(found.loss.to_bits(), expected.loss.to_bits(), "{keep:?}");
        assert_eq!(bits(&found.dx), bits(&expected.dx), "{keep:?}");
        assert_eq!(bits(&found.gradients), bits(&expected.gradients), "{keep:?}");
        assert_eq!(bits_by_param(&found.weights), bits_by_param(&expected.weights), "{keep:?}");
    }
}

#[test]
fn the_backward_pass_replays_the_routing_of_the_forward_pass_and_never_routes_again() {
    let rig = Rig::new(small(), &lora(&Projection::ALL));
    let batch = rig.batch(&[(0, 7), (1, 2)]);
    let [x, dy] = [1, 2].map(|seed| rig.activations(seed, &batch));
    let index = rig.block_index(0, false);
    let forced = vec![Tensor::from_u32(vec![2, 0, 1, 1, 0, 2, 0, 1, 2], [9]).unwrap(); 2];
    let other = vec![Tensor::from_u32(vec![0, 1, 2, 2, 1, 0, 1, 2, 0], [9]).unwrap(); 2];
    let free = rig.pass(&batch);
    let with_forced = rig.block(index, &x, &dy, &Pass { routes: Some(&forced), ..rig.pass(&batch) });
    let with_free = rig.block(index, &x, &dy, &free);
    assert_ne!(bits(&with_forced.dx), bits(&with_free.dx), "the two routings differ");
    for keep in [Keep::Everything, Keep::AllButGateUp, Keep::InputOnly] {
        for routes in [None, Some(&forced), Some(&other)] {
            let backward = Pass { keep: keep.into(), routes, ..rig.pass(&batch) };
            for (expected, routes) in [(&with_forced, Some(&forced)), (&with_free, None)] {
                let forward = Pass { keep: keep.into(), routes, ..rig.pass(&batch) };
                let found = rig.block_with_two_passes(index, &x, &dy, (&forward, &backward));
                assert_same_bits(&format!("{keep:?}"), &found, expected);
            }
        }
    }
}

fn pass_of<'a>(pass: &Pass<'a>) -> Pass<'a> {
    Pass {
        batch: pass.batch,
        lora: pass.lora,
        dropout: pass.dropout,
        keep: pass.keep,
        routes: pass.routes,
        exchange: pass.exchange,
        kept_rows: KeptRows::at_most(0),
        evenness: Cell::default(),
    }
}
