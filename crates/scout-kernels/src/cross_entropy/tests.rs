//! Losses and gradients against the reference, in one chunk and in several.

use scout_device::Tensor;

use super::{HeadLoss, TrainedHeadLoss, forward, forward_backward, forward_backward_of_head, host, reference};
use crate::test_inputs::{assert_close, assert_gradient, bits, doubles, index_tensor, indices, tensor};

#[test]
fn losses_and_gradients_agree_with_the_reference() {
    for (num_rows, width, vocabulary) in [(0, 4, 7), (1, 1, 1), (1, 3, 2), (7, 5, 33), (40, 32, 1000)] {
        let what = format!("{num_rows} {width} {vocabulary}");
        let (x, weight) = (tensor(1, [num_rows, width]), tensor(2, [vocabulary, width]));
        let (targets, weights) = (indices(3, num_rows, vocabulary as u32), tensor(4, [num_rows]));
        let (x64, weight64) = (doubles(&x), doubles(&weight));
        let losses = reference::losses(&x64, &weight64, &targets, width);
        let dx = reference::dx(&x64, &weight64, &targets, &doubles(&weights), width);
        let dweight = reference::dweight(&x64, &weight64, &targets, &doubles(&weights), width);
        let targets = index_tensor(&targets);
        let check = |found: HeadLoss| {
            assert_close(&what, &found.token_loss, &[num_rows], &losses, 1e-6);
            assert_close(&what, &found.dx, &[num_rows, width], &dx, 3e-6);
        };
        let check_of_head = |found: TrainedHeadLoss| {
            check(found.loss);
            assert_close(&what, &found.dweight, &[vocabulary, width], &dweight, 3e-6);
        };
        check(forward_backward(&x, &weight, &targets, &weights).unwrap());
        check_of_head(forward_backward_of_head(&x, &weight, &targets, &weights).unwrap());
        assert_close(&what, &forward(&x, &weight, &targets).unwrap(), &[num_rows], &losses, 1e-6);
        // Chunks of three rows and a tail, and of one row because none fits.
        for logits_per_chunk in [3 * vocabulary, 0] {
            check(host::forward_backward(&x, &weight, (&targets, &weights), logits_per_chunk).unwrap());
            let found = host::forward_backward_of_head(&x, &weight, (&targets, &weights), logits_per_chunk);
            check_of_head(found.unwrap());
            let found = host::forward(&x, &weight, &targets, logits_per_chunk).unwrap();
            assert_close(&what, &found, &[num_rows], &losses, 1e-6);
        }
    }
}

#[test]
fn both_functions_find_the_same_loss_to_the_last_bit() {
    let (x, weight, targets) = (tensor(1, [9, 16]), tensor(2, [50, 16]), index_tensor(&indices(3, 9, 50)));
    let with_gradient = forward_backward(&x, &weight, &targets, &tensor(4, [9])).unwrap();
    assert_eq!(bits(&with_gradient.token_loss), bits(&forward(&x, &weight, &targets).unwrap()));
    let of_head = forward_backward_of_head(&x, &weight, &targets, &tensor(4, [9])).unwrap().loss;
    assert_eq!(bits(&of_head.token_loss), bits(&with_gradient.token_loss));
    assert_eq!(bits(&of_head.dx), bits(&with_gradient.dx));
}

#[test]
fn the_gradient_is_that_of_the_losses() {
    let (x, weight, weights) = (doubles(&tensor(1, [2, 3])), doubles(&tensor(2, [5, 3])), doubles(&tensor(3, [2])));
    let targets = [4, 0];
    let dx = reference::dx(&x, &weight, &targets, &weights, 3);
    assert_gradient("cross entropy", &x, &weights, |x| reference::losses(x, &weight, &targets, 3), &dx);
    let dweight = reference::dweight(&x, &weight, &targets, &weights, 3);
    assert_gradient("head", &weight, &weights, |weight| reference::losses(&x, weight, &targets, 3), &dweight);
}

#[test]
fn logits_far_apart_neither_overflow_nor_vanish() {
    let x = Tensor::from_f32(vec![1e4, -1e4], [2, 1]).unwrap();
    let weight = Tensor::from_f32(vec![1.0, 0.0], [2, 1]).unwrap();
    let losses = forward(&x, &weight, &index_tensor(&[0, 0])).unwrap();
    assert_eq!(losses.to_f32_vec().unwrap(), [0.0, 1e4]);
}

#[test]
fn a_number_that_is_none_reaches_the_loss() {
    let x = Tensor::from_f32(vec![f32::NAN, 0.0], [1, 2]).unwrap();
    let losses = forward(&x, &tensor(1, [20, 2]), &index_tensor(&[3])).unwrap();
    assert!(losses.to_f32_vec().unwrap()[0].is_nan());
}

#[test]
fn targets_and_shapes_that_do_not_fit_are_refused() {
    let (x, weight, weights) = (tensor(1, [2, 3]), tensor(2, [5, 3]), tensor(3, [2]));
    let targets = index_tensor(&[4, 0]);
    assert!(forward(&x, &weight, &index_tensor(&[5, 0])).is_err());
    assert!(forward(&x, &weight, &index_tensor(&[0])).is_err());
    assert!(forward(&x, &tensor(2, [5, 4]), &targets).is_err());
    assert!(forward(&x, &tensor(2, [0, 3]), &targets).is_err());
    assert!(forward_backward(&x, &weight, &targets, &weights).is_ok());
    assert!(forward_backward(&x, &weight, &targets, &tensor(3, [3])).is_err());
    assert!(forward_backward_of_head(&x, &weight, &targets, &tensor(3, [3])).is_err());
    assert!(forward_backward_of_head(&x, &weight, &index_tensor(&[5, 0]), &weights).is_err());
}
