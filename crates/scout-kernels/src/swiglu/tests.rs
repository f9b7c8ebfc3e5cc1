//! SwiGLU against the reference, and at its ends.

use scout_device::Tensor;

use super::{back_and_forth, backward, forward, reference};
use crate::test_inputs::{assert_close, assert_gradient, bits, doubles, tensor, values};

#[test]
fn both_directions_agree_with_the_reference() {
    for (num_tokens, width) in [(0, 4), (1, 1), (3, 7), (40, 33), (300, 200)] {
        let what = format!("{num_tokens} {width}");
        // Wide enough that the sigmoid is flat at both ends.
        let spread = values(1, num_tokens * 2 * width).iter().map(|value| value * 20.0).collect();
        let gate_up = Tensor::from_f32(spread, [num_tokens, 2 * width]).unwrap();
        let expected = reference::forward(&doubles(&gate_up), width);
        assert_close(&what, &forward(&gate_up).unwrap(), &[num_tokens, width], &expected, 1e-6);
        let dh = tensor(2, [num_tokens, width]);
        let expected = reference::backward(&doubles(&dh), &doubles(&gate_up), width);
        assert_close(&what, &backward(&dh, &gate_up).unwrap(), &[num_tokens, 2 * width], &expected, 1e-6);
        let both = back_and_forth(&dh, &gate_up).unwrap();
        assert_eq!(bits(&both.d_gate_up), bits(&backward(&dh, &gate_up).unwrap()), "{what}");
        assert_eq!(bits(&both.h), bits(&forward(&gate_up).unwrap()), "{what}");
    }
}

#[test]
fn the_gradient_is_that_of_the_forward_pass() {
    let (gate_up, dh) = (doubles(&tensor(1, [2, 6])), doubles(&tensor(2, [2, 3])));
    let gradient = reference::backward(&dh, &gate_up, 3);
    assert_gradient("swiglu", &gate_up, &dh, |gate_up| reference::forward(gate_up, 3), &gradient);
}

#[test]
fn large_gates_stay_finite() {
    let gate_up = Tensor::from_f32(vec![-1e4, 1e4, 2.0, 3.0], [1, 4]).unwrap();
    assert_eq!(forward(&gate_up).unwrap().to_f32_vec().unwrap(), [0.0, 3e4]);
    let dh = Tensor::from_f32(vec![1.0, 1.0], [1, 2]).unwrap();
    assert_eq!(backward(&dh, &gate_up).unwrap().to_f32_vec().unwrap(), [0.0, 3.0, 0.0, 1e4]);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    assert!(forward(&tensor(1, [3, 5])).is_err());
    assert!(forward(&tensor(1, [6])).is_err());
    assert!(backward(&tensor(1, [3, 6]), &tensor(2, [3, 6])).is_err());
    assert!(backward(&tensor(1, [2, 3]), &tensor(2, [3, 6])).is_err());
    assert!(back_and_forth(&tensor(1, [3, 6]), &tensor(2, [3, 6])).is_err());
}
