//! Documents in one flat run never see each other: together and alone they give the same numbers, and a run without
//! documents gives none.

use scout_core::Projection;
use scout_model::pass::Dropout;
use scout_model::{Keep, ModelConfig, Pass};

use crate::rig::{Rig, WholeOutcome, assert_close, doubles, lora, small};

/// Rows of a product may be added up in another order when there are more of them.
const TOLERANCE: f64 = 5e-6;
/// On the way back two layers of large adapters amplify that difference.
const BACKWARD_TOLERANCE: f64 = 2e-5;

struct Alone {
    outcome: WholeOutcome,
    num_tokens: usize,
    num_targets: usize,
}

fn check_packing(name: &str, rig: &Rig, documents: &[(u64, usize)], dropout: Option<Dropout>) {
    let run = |documents: &[(u64, usize)]| {
        let batch = rig.batch(documents);
        let outcome = rig.whole(&Pass { dropout, ..rig.pass(&batch) });
        Alone { outcome, num_tokens: batch.num_tokens(), num_targets: batch.num_targets() }
    };
    let together = run(documents);
    let hidden_size = rig.config.hidden_size;
    let (mut token, mut target, mut loss) = (0, 0, 0.0);
    let mut gradients = vec![0.0f64; together.outcome.gradients.len()];
    for &document in documents {
        let alone = run(&[document]);
        let what = format!("{name}: document {document:?}");
        let rows = token * hidden_size..(token + alone.num_tokens) * hidden_size;
        let Alone { outcome, num_tokens, num_targets } = alone;
        let same = |part: &str, found: &[f32], expected: &[f32], tolerance: f64| {
            assert_close(&format!("{what}: {part}"), found, &doubles(expected), tolerance);
        };
        same("hidden states", &together.outcome.hidden[rows.clone()], &outcome.hidden, TOLERANCE);
        let losses = &together.outcome.token_loss[target..target + num_targets];
        same("losses", losses, &outcome.token_loss, TOLERANCE);
        same("gradient of the embedding", &together.outcome.dx[rows], &outcome.dx, BACKWARD_TOLERANCE);
        gradients.iter_mut().zip(&outcome.gradients).for_each(|(sum, &value)| *sum += f64::from(value));
        (token, target, loss) = (token + num_tokens, target + num_targets, loss + outcome.loss);
    }
    assert!((together.outcome.loss - loss).abs() <= TOLERANCE * loss, "{name}: loss");
    assert_close(&format!("{name}: adapter gradients"), &together.outcome.gradients, &gradients, BACKWARD_TOLERANCE);
}

#[test]
fn documents_together_give_what_each_gives_alone() {
    let rig = Rig::new(small(), &lora(&Projection::ALL));
    for documents in [
        &[(1, 13), (2, 1), (3, 7)][..],
        &[(9, 5), (8, 5), (7, 5)],
        &[(4, 30), (5, 2)],
        // The same document twice: one sample, two places.
        &[(6, 8), (6, 8)],
        // Many short ones: another shape of product than any document has alone.
        &[(10, 2), (11, 3), (12, 2), (13, 4), (14, 2), (15, 3), (16, 2), (17, 5), (18, 2), (19, 6)],
    ] {
        check_packing("plain", &rig, documents, None);
    }
    let one_kv_head = ModelConfig { num_heads: 3, num_kv_heads: 1, ..small() };
    check_packing("one key head", &Rig::new(one_kv_head, &lora(&[])), &[(1, 6), (2, 9)], None);
}

#[test]
fn dropout_treats_a_document_alike_in_any_company() {
    let rig = Rig::new(small(), &lora(&Projection::ALL[..7]));
    let dropout = Some(Dropout { probability: 0.5, seed: 3, step: 11 });
    check_packing("dropout", &rig, &[(21, 6), (22, 9), (23, 3)], dropout);
    check_packing("dropout, in another order", &rig, &[(23, 3), (21, 6), (22, 9)], dropout);
}

#[test]
fn the_order_of_documents_moves_their_rows_and_changes_no_loss() {
    let rig = Rig::new(small(), &lora(&Projection::ALL));
    let [there, back] = [[(1, 9), (2, 4), (3, 6)], [(3, 6), (2, 4), (1, 9)]].map(|documents| {
        let batch = rig.batch(&documents);
        rig.whole(&rig.pass(&batch))
    });
    assert!((there.loss - back.loss).abs() <= TOLERANCE * there.loss);
    assert_close("gradients", &there.gradients, &doubles(&back.gradients), BACKWARD_TOLERANCE);
}

#[test]
fn a_batch_without_tokens_passes_through_everything_and_leaves_no_gradient() {
    let rig = Rig::new(small(), &lora(&Projection::ALL));
    for documents in [&[][..], &[(1, 0)]] {
        let batch = rig.batch(documents);
        for keep in [Keep::Everything, Keep::AllButGateUp, Keep::InputOnly] {
            for dropout in [None, Some(Dropout { probability: 0.1, seed: 1, step: 1 })] {
                let found = rig.whole(&Pass { keep: keep.into(), dropout, ..rig.pass(&batch) });
                assert_eq!((found.hidden.len(), found.dx.len(), found.token_loss.len()), (0, 0, 0));
                assert_eq!(found.loss, 0.0);
                assert_eq!(found.gradients.len(), rig.layout.num_elements());
                assert!(found.gradients.iter().all(|&gradient| gradient == 0.0), "{keep:?}");
            }
        }
    }
}

#[test]
fn a_batch_without_targets_has_no_loss_and_no_gradient() {
    let rig = Rig::new(small(), &lora(&Projection::ALL));
    // Documents of one token predict nothing.
    let batch = rig.batch(&[(1, 1), (2, 1), (3, 1)]);
    assert_eq!((batch.num_tokens(), batch.num_targets()), (3, 0));
    let found = rig.whole(&rig.pass(&batch));
    assert_eq!(found.loss, 0.0);
    assert!(found.dx.iter().chain(&found.gradients).all(|&gradient| gradient == 0.0));
    assert!(found.hidden.iter().all(|value| value.is_finite()));
}
