//! Positions against the reference, and the real numbers of the temperature.

use scout_device::Tensor;

use super::{Placed, Position, backward, forward, reference};
use crate::test_inputs::{assert_close, assert_gradient, bits, doubles, index_tensor, tensor};

const EPSILON: f32 = 1e-5;

fn frequencies(head_size: usize) -> Vec<f32> {
    (0..head_size / 2).map(|pair| 500_000f32.powf(-2.0 * pair as f32 / head_size as f32)).collect()
}

fn frequency_tensor(head_size: usize) -> Tensor {
    Tensor::from_f32(frequencies(head_size), [head_size / 2]).unwrap()
}

#[test]
fn rotations_and_norms_agree_with_the_reference() {
    for (positions, num_heads, size) in [
        (vec![], 2, 4),
        (vec![0], 1, 2),
        (vec![0, 1, 2, 0], 1, 6),
        (vec![7, 8191, 9000], 5, 16),
        ((0..300).collect(), 3, 64),
    ] {
        let what = format!("{} tokens, {num_heads} heads of {size}", positions.len());
        let dims = [positions.len(), num_heads, size];
        let (x, dy, at) = (tensor(1, dims), tensor(2, dims), index_tensor(&positions));
        let f = frequencies(size);
        let turned = reference::rotate(&doubles(&x), &positions, &f, num_heads, 1.0);

        let position = Position::Rotate { frequencies: frequency_tensor(size) };
        let placed = forward(&x, &at, &position).unwrap();
        assert_close(&what, &placed.y, &dims, &turned, 1e-6);
        assert!(placed.inverse_rms.is_none());
        let expected = reference::rotate(&doubles(&dy), &positions, &f, num_heads, -1.0);
        assert_close(&what, &backward(&dy, &placed, &at, &position).unwrap(), &dims, &expected, 1e-6);

        let position = Position::RotateAndNormalise { frequencies: frequency_tensor(size), epsilon: EPSILON };
        let placed = forward(&x, &at, &position).unwrap();
        let (y, r) = reference::normalise(&turned, size, f64::from(EPSILON));
        assert_close(&what, &placed.y, &dims, &y, 1e-6);
        assert_close(&what, placed.inverse_rms.as_ref().unwrap(), &dims[..2], &r, 1e-6);
        let through_norm = reference::backward_of_normalise(&doubles(&dy), &y, &r);
        let expected = reference::rotate(&through_norm, &positions, &f, num_heads, -1.0);
        assert_close(&what, &backward(&dy, &placed, &at, &position).unwrap(), &dims, &expected, 2e-6);
    }
}

#[test]
fn the_gradient_is_that_of_the_forward_pass() {
    let (positions, num_heads, size) = ([0, 3, 900], 2, 6);
    let f = frequencies(size);
    let (x, dy) = (doubles(&tensor(1, [3, num_heads, size])), doubles(&tensor(2, [3, num_heads, size])));
    let place = |x: &[f64]| reference::normalise(&reference::rotate(x, &positions, &f, num_heads, 1.0), size, 0.0);
    let (y, r) = place(&x);
    let through_norm = reference::backward_of_normalise(&dy, &y, &r);
    let dx = reference::rotate(&through_norm, &positions, &f, num_heads, -1.0);
    assert_gradient("rotate and normalise", &x, &dy, |x| place(x).0, &dx);
}

#[test]
fn the_temperature_rises_at_multiples_of_the_floor() {
    let positions = [0, 1, 8190, 8191, 16383, 131_071];
    let (dims, at) = ([positions.len(), 2, 3], index_tensor(&positions));
    let position = Position::Temperature { attn_scale: 0.1, floor_scale: 8192.0 };
    let x = tensor(1, dims);
    let placed = forward(&x, &at, &position).unwrap();
    let expected: Vec<f64> = doubles(&x)
        .iter()
        .enumerate()
        .map(|(index, x)| x * reference::temperature(positions[index / 6], 0.1, 8192.0))
        .collect();
    assert_close("temperature", &placed.y, &dims, &expected, 1e-6);
    assert_eq!(bits(&backward(&x, &placed, &at, &position).unwrap()), bits(&placed.y));
    assert_eq!(bits(&placed.y)[..18], bits(&x)[..18], "the factor is exactly 1 up to position 8190");
    for (position, expected) in [(8191, 1.0693), (16383, 1.1099), (131_071, 1.2833)] {
        assert!((reference::temperature(position, 0.1, 8192.0) - expected).abs() < 1e-4, "{position}");
    }
}

#[test]
fn unchanged_changes_nothing() {
    let (x, dy, at) = (tensor(1, [2, 1, 3]), tensor(2, [2, 1, 3]), index_tensor(&[0, 1]));
    let placed = forward(&x, &at, &Position::Unchanged).unwrap();
    assert_eq!(bits(&placed.y), bits(&x));
    assert_eq!(bits(&backward(&dy, &placed, &at, &Position::Unchanged).unwrap()), bits(&dy));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, at) = (tensor(1, [2, 3, 4]), index_tensor(&[0, 1]));
    let position = |size| Position::RotateAndNormalise { frequencies: frequency_tensor(size), epsilon: EPSILON };
    assert!(forward(&x, &at, &position(4)).is_ok());
    assert!(forward(&x, &at, &position(6)).is_err());
    assert!(forward(&x, &index_tensor(&[0]), &position(4)).is_err());
    assert!(forward(&tensor(1, [2, 12]), &at, &position(4)).is_err());
    let odd = Position::Rotate { frequencies: tensor(1, [1]) };
    assert!(forward(&tensor(1, [2, 3, 3]), &at, &odd).is_err());
    assert!(forward(&x, &tensor(1, [2]), &position(4)).is_err(), "positions are whole numbers");
    let without_rms = Placed { y: x.clone(), inverse_rms: None };
    assert!(backward(&x, &without_rms, &at, &position(4)).is_err());
}
