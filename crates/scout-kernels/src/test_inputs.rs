//! Inputs and comparisons for the tests of this crate: numbers that look random and are the same in every run.

use scout_core::Shape;
use scout_device::Tensor;

use crate::noise::hash;
pub(crate) use crate::noise::values;

pub(crate) fn tensor(seed: u64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    Tensor::from_f32(values(seed, shape.num_elements()), shape).unwrap()
}

/// Evenly spread below `limit`.
pub(crate) fn indices(seed: u64, len: usize, limit: u32) -> Vec<u32> {
    (0..len as u64).map(|index| (hash(seed, index) >> 33) as u32 % limit).collect()
}

pub(crate) fn index_tensor(values: &[u32]) -> Tensor {
    Tensor::from_u32(values.to_vec(), [values.len()]).unwrap()
}

pub(crate) fn doubles(tensor: &Tensor) -> Vec<f64> {
    tensor.f32s().unwrap().iter().map(|&value| f64::from(value)).collect()
}

/// Each element within `tolerance` of the largest expected magnitude, and of the same shape.
pub(crate) fn assert_close(what: &str, found: &Tensor, dims: &[usize], expected: &[f64], tolerance: f64) {
    assert_eq!(found.dims(), dims, "{what}");
    assert_eq!(found.num_elements(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f64, |largest, value| largest.max(value.abs()));
    for (index, (found, &expected)) in doubles(found).into_iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= tolerance * largest, "{what}: element {index} is {found}, expected {expected}");
    }
}

/// `backward` is the gradient of Σ dy·forward(x), by central differences.
pub(crate) fn assert_gradient(
    what: &str,
    x: &[f64],
    dy: &[f64],
    forward: impl Fn(&[f64]) -> Vec<f64>,
    backward: &[f64],
) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), backward.len(), "{what}");
    let weighted = |x: &[f64]| -> f64 {
        let y = forward(x);
        assert_eq!(y.len(), dy.len(), "{what}");
        y.iter().zip(dy).map(|(y, dy)| y * dy).sum()
    };
    let mut x = x.to_vec();
    for (index, &found) in backward.iter().enumerate() {
        let middle = x[index];
        x[index] = middle + STEP;
        let above = weighted(&x);
        x[index] = middle - STEP;
        let below = weighted(&x);
        x[index] = middle;
        let expected = (above - below) / (2.0 * STEP);
        assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{what}: {index}: {found} {expected}");
    }
}

/// The bits, for results that must not differ at all.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.f32s().unwrap().iter().map(|value| value.to_bits()).collect()
}
