//! Sums and counts against plain loops, around the borders of blocks.

use super::{count_not_finite, sum_of_squares};
use crate::test_inputs::values;

#[test]
fn squares_add_up_over_any_length() {
    for len in [0, 1, 7, 8, 9, 16_383, 16_384, 16_385, 100_003] {
        let values = values(1, len);
        let expected: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
        assert!((sum_of_squares(&values) - expected).abs() <= 1e-12 * expected, "{len}");
    }
    assert!((sum_of_squares(&[3e30, 4e30]).sqrt() / 5e30 - 1.0).abs() < 1e-6, "squares do not overflow");
}

#[test]
fn numbers_that_are_not_finite_are_counted() {
    for (at, expected) in [(vec![], 0), (vec![0], 1), (vec![5, 16_384, 40_000], 3)] {
        let mut values = values(1, 40_001);
        for (index, &at) in at.iter().enumerate() {
            values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][index];
        }
        assert_eq!(count_not_finite(&values), expected, "{at:?}");
    }
    assert_eq!(count_not_finite(&[f32::MAX, f32::MIN_POSITIVE / 2.0]), 0);
}
