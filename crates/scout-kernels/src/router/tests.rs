//! Routing against the reference: ties, NaN, empty experts, and the gradient through the score.

use scout_device::Tensor;

use super::{Routing, backward, choose, combine, forced, gather, gather_scaled, logits, reference, weight_gradient};
use crate::test_inputs::{assert_close, assert_gradient, bits, doubles, index_tensor, indices, tensor};

fn whole_numbers(tensor: &Tensor) -> Vec<u32> {
    tensor.u32s().unwrap().to_vec()
}

#[test]
fn the_largest_logit_wins_and_the_first_of_equal_ones() {
    let nan = f32::NAN;
    for (logits, expected) in [
        ([1.0, 2.0, 3.0], 2),
        ([2.0, 2.0, 1.0], 0),
        ([-5.0, -1.0, -1.0], 1),
        ([0.0, -0.0, 0.0], 0),
        ([f32::NEG_INFINITY; 3], 0),
        ([1.0, f32::INFINITY, 3.0], 1),
        ([1.0, nan, f32::INFINITY], 1),
        ([nan, nan, 3.0], 0),
    ] {
        let routing = choose(&Tensor::from_f32(logits.to_vec(), [1, 3]).unwrap()).unwrap();
        assert_eq!(whole_numbers(&routing.expert_T), [expected], "{logits:?}");
        let score = routing.score_T.f32s().unwrap()[0];
        assert_eq!(score.is_nan(), logits[expected as usize].is_nan(), "{logits:?}");
    }
}

#[test]
fn tokens_are_sorted_by_expert_and_keep_their_order_within_one() {
    for (num_tokens, num_experts) in [(0, 4), (1, 1), (9, 3), (300, 16), (5, 40)] {
        let logits = tensor(1, [num_tokens, num_experts]);
        let routing = choose(&logits).unwrap();
        let experts = whole_numbers(&routing.expert_T);
        let order = whole_numbers(&routing.order_T);
        assert_eq!(order, reference::order(&experts));
        for (token, position) in whole_numbers(&routing.position_T).into_iter().enumerate() {
            assert_eq!(order[position as usize] as usize, token);
        }
        let offsets = routing.offsets().unwrap();
        assert_eq!(offsets.len(), num_experts + 1);
        for (expert, ends) in offsets.windows(2).enumerate() {
            let count = experts.iter().filter(|&&found| found as usize == expert).count();
            assert_eq!((ends[1] - ends[0]) as usize, count);
        }
        let logits = doubles(&logits);
        let scores: Vec<f64> = experts
            .iter()
            .enumerate()
            .map(|(t, &e)| reference::sigmoid(logits[t * num_experts + e as usize]))
            .collect();
        assert_close("scores", &routing.score_T, &[num_tokens], &scores, 3e-7);
    }
}

#[test]
fn given_experts_are_taken_with_the_scores_of_their_logits() {
    let logits = tensor(1, [50, 7]);
    let chosen = choose(&logits).unwrap();
    let again = forced(&logits, &chosen.expert_T).unwrap();
    assert_eq!(bits(&again.score_T), bits(&chosen.score_T));
    assert_eq!(whole_numbers(&again.order_T), whole_numbers(&chosen.order_T));
    assert_eq!(again.offsets().unwrap(), chosen.offsets().unwrap());
    let all_on_one = forced(&logits, &index_tensor(&[4; 50])).unwrap();
    assert_eq!(all_on_one.offsets().unwrap(), [0, 0, 0, 0, 0, 50, 50, 50]);
    assert!(forced(&logits, &index_tensor(&[7; 50])).is_err());
    assert!(forced(&logits, &index_tensor(&[0; 49])).is_err());
}

/// Random, all on one expert, none on the outer ones.
fn routings(num_tokens: usize, logits: &Tensor) -> Vec<Routing> {
    let narrow = indices(5, num_tokens, 2).into_iter().map(|expert| expert + 1).collect::<Vec<_>>();
    vec![
        choose(logits).unwrap(),
        forced(logits, &index_tensor(&vec![2; num_tokens])).unwrap(),
        forced(logits, &index_tensor(&narrow)).unwrap(),
    ]
}

#[test]
fn moves_and_gradients_agree_with_the_reference() {
    for (num_tokens, width) in [(0, 3), (1, 1), (7, 5), (90, 33), (600, 64)] {
        let dims = [num_tokens, width];
        let (x, weight) = (tensor(1, dims), tensor(2, [4, width]));
        for routing in routings(num_tokens, &logits(&x, &weight).unwrap()) {
            let what = format!("{dims:?} {:?}", routing.offsets());
            let (experts, order) = (whole_numbers(&routing.expert_T), whole_numbers(&routing.order_T));
            let sort = |values: &[f64]| -> Vec<f64> {
                order.iter().flat_map(|&token| values[token as usize * width..][..width].to_vec()).collect()
            };
            let x64 = doubles(&x);
            assert_close(&what, &gather(&x, &routing).unwrap(), &dims, &sort(&x64), 0.0);
            let expected = sort(&reference::scaled(&x64, &doubles(&weight), &experts, width));
            assert_close(&what, &gather_scaled(&x, &routing).unwrap(), &dims, &expected, 2e-6);

            let (routed, shared, residual) = (tensor(3, dims), tensor(4, dims), tensor(5, dims));
            let sorted = gather(&routed, &routing).unwrap();
            let sum = |with: f64| -> Vec<f64> {
                let parts = doubles(&routed).into_iter().zip(doubles(&shared)).zip(doubles(&residual));
                parts.map(|((routed, shared), residual)| routed + shared + with * residual).collect()
            };
            let found = combine(&sorted, &routing, &shared, Some(&residual)).unwrap();
            assert_close(&what, &found, &dims, &sum(1.0), 1e-6);
            assert_close(&what, &combine(&sorted, &routing, &shared, None).unwrap(), &dims, &sum(0.0), 1e-6);

            let found = backward(&sorted, &x, &routing, &weight, &shared).unwrap();
            let scores = doubles(&routing.score_T);
            let (dx, dlogit) =
                reference::backward(&doubles(&routed), &x64, (&experts, &scores), &doubles(&weight), &doubles(&shared));
            assert_close(&what, &found.dx, &dims, &dx, 2e-6);
            assert_close(&what, &found.dlogit_T, &[num_tokens], &dlogit, 2e-6);
            let dweight = reference::weight_gradient(&dlogit, &x64, &experts, 4);
            let of_weight = weight_gradient(&found.dlogit_T, &x, &routing).unwrap();
            if num_tokens > 0 {
                assert_close(&what, &of_weight, &[4, width], &dweight, 3e-6);
            }
            assert_eq!(of_weight.dims(), [4, width]);
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_forward_pass() {
    let (x, weight, du) = (doubles(&tensor(1, [3, 5])), doubles(&tensor(2, [4, 5])), doubles(&tensor(3, [3, 5])));
    let experts = [3, 0, 3];
    let scores: Vec<f64> = (0..3)
        .map(|t| reference::sigmoid((0..5).map(|i| x[t * 5 + i] * weight[experts[t] as usize * 5 + i]).sum()))
        .collect();
    let (dx, dlogit) = reference::backward(&du, &x, (&experts, &scores), &weight, &[0.0; 15]);
    assert_gradient("router", &x, &du, |x| reference::scaled(x, &weight, &experts, 5), &dx);
    let dweight = reference::weight_gradient(&dlogit, &x, &experts, 4);
    assert_gradient("router's weight", &weight, &du, |weight| reference::scaled(&x, weight, &experts, 5), &dweight);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, weight) = (tensor(1, [6, 3]), tensor(2, [4, 3]));
    let routing = choose(&tensor(3, [6, 4])).unwrap();
    let short = tensor(1, [5, 3]);
    assert!(choose(&tensor(1, [6])).is_err());
    assert!(choose(&tensor(1, [6, 0])).is_err());
    assert!(choose(&tensor(1, [0, 0])).is_ok());
    assert!(gather(&short, &routing).is_err());
    assert!(gather_scaled(&short, &routing).is_err());
    assert!(combine(&x, &routing, &short, None).is_err());
    assert!(combine(&x, &routing, &x, Some(&short)).is_err());
    assert!(backward(&x, &x, &routing, &weight, &x).is_ok());
    assert!(backward(&x, &x, &routing, &x, &x).is_err());
    assert!(backward(&x, &short, &routing, &weight, &x).is_err());
    assert!(weight_gradient(&tensor(1, [6]), &x, &routing).is_ok());
    assert!(weight_gradient(&tensor(1, [5]), &x, &routing).is_err());
    assert!(weight_gradient(&tensor(1, [6]), &short, &routing).is_err());
    let broken = Routing { score_T: tensor(1, [5]), ..routing };
    assert!(gather(&x, &broken).is_err());
}
