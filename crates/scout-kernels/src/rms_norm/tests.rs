//! RMS norm against the reference, and the reference against differences.

use super::{backward, forward, reference, weight_gradient};
use crate::test_inputs::{assert_close, assert_gradient, doubles, tensor};

const EPSILON: f32 = 1e-5;

#[test]
fn both_directions_agree_with_the_reference() {
    for (num_tokens, width) in [(0, 5), (1, 1), (3, 2), (1, 16), (40, 63), (5, 1030), (700, 512)] {
        let what = format!("{num_tokens} {width}");
        let (x, weight, dy) = (tensor(1, [num_tokens, width]), tensor(2, [width]), tensor(3, [num_tokens, width]));
        let (y, inverse_rms) = reference::forward(&doubles(&x), &doubles(&weight), f64::from(EPSILON));
        let found = forward(&x, &weight, EPSILON).unwrap();
        assert_close(&what, &found.y, &[num_tokens, width], &y, 1e-6);
        assert_close(&what, &found.inverse_rms, &[num_tokens], &inverse_rms, 1e-6);
        let dweight = reference::weight_gradient(&doubles(&dy), &doubles(&x), &inverse_rms, width);
        let of_weight = weight_gradient(&dy, &x, &found.inverse_rms).unwrap();
        assert_close(&what, &of_weight, &[width], &dweight, 2e-6);
        let dx = reference::backward(&doubles(&dy), &doubles(&x), &inverse_rms, &doubles(&weight));
        let inverse_rms = found.inverse_rms;
        let found = backward(&dy, &x, &inverse_rms, &weight, None).unwrap();
        // With one column the two terms cancel but for ε, and so do most of their digits.
        let tolerance = if width == 1 { 1e-2 } else { 2e-6 };
        assert_close(&what, &found, &[num_tokens, width], &dx, tolerance);
        let residual = tensor(4, [num_tokens, width]);
        let expected: Vec<f64> =
            doubles(&found).iter().zip(doubles(&residual)).map(|(dx, beside)| dx + beside).collect();
        let found = backward(&dy, &x, &inverse_rms, &weight, Some(&residual)).unwrap();
        assert_close(&format!("{what} with a residual"), &found, &[num_tokens, width], &expected, 1e-7);
    }
}

#[test]
fn a_row_of_zeros_stays_finite() {
    let zeros = scout_device::Tensor::zeros_f32([1, 4]).unwrap();
    let found = forward(&zeros, &tensor(2, [4]), EPSILON).unwrap();
    assert_eq!(found.y.to_f32_vec().unwrap(), vec![0.0; 4]);
    assert_close("zeros", &found.inverse_rms, &[1], &[f64::from(EPSILON).powf(-0.5)], 1e-6);
}

#[test]
fn the_gradient_is_that_of_the_forward_pass() {
    let (x, weight, dy) = (doubles(&tensor(1, [2, 7])), doubles(&tensor(2, [7])), doubles(&tensor(3, [2, 7])));
    let (_, inverse_rms) = reference::forward(&x, &weight, 1e-3);
    let dx = reference::backward(&dy, &x, &inverse_rms, &weight);
    assert_gradient("rms norm", &x, &dy, |x| reference::forward(x, &weight, 1e-3).0, &dx);
    let dweight = reference::weight_gradient(&dy, &x, &inverse_rms, 7);
    assert_gradient("rms norm's weight", &weight, &dy, |weight| reference::forward(&x, weight, 1e-3).0, &dweight);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, weight, r) = (tensor(1, [3, 4]), tensor(2, [4]), tensor(3, [3]));
    assert!(forward(&x, &tensor(2, [5]), EPSILON).is_err());
    assert!(forward(&tensor(1, [12]), &weight, EPSILON).is_err());
    assert!(backward(&x, &x, &r, &weight, None).is_ok());
    assert!(backward(&tensor(1, [4, 3]), &x, &r, &weight, None).is_err());
    assert!(backward(&x, &x, &weight, &weight, None).is_err());
    assert!(backward(&x, &x, &r, &r, None).is_err());
    assert!(backward(&x, &x, &r, &weight, Some(&tensor(1, [4, 3]))).is_err());
    assert!(weight_gradient(&x, &x, &r).is_ok());
    assert!(weight_gradient(&tensor(1, [4, 3]), &x, &r).is_err());
    assert!(weight_gradient(&x, &x, &weight).is_err());
}
