//! Products against the reference over odd sizes, and refusals.

use scout_device::Tensor;

use super::reference::{product, transposed};
use super::{nn, nt, tn};
use crate::test_inputs::{doubles, index_tensor, tensor};

const SIZES: &[(usize, usize, usize)] = &[
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (0, 5, 70),
    (0, 0, 70),
    (16, 9, 65),
    (0, 0, 0),
    (1, 1, 1),
    (1, 7, 5),
    (5, 1, 9),
    (9, 2, 5),
    (7, 5, 1),
    (2, 513, 3),
    (16, 40, 16),
    (17, 33, 65),
    (64, 64, 64),
    (129, 70, 4),
    (4, 70, 129),
    (300, 16, 8),
    (8, 300, 16),
    (65, 1030, 66),
];

fn assert_product(what: &str, found: &Tensor, a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) {
    assert_eq!(found.dims(), [m, n], "{what}");
    let magnitude = |values: &[f64]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
    let expected = product(a, b, (m, k, n));
    let bounds = product(&magnitude(a), &magnitude(b), (m, k, n));
    for ((found, expected), bound) in doubles(found).into_iter().zip(expected).zip(bounds) {
        assert!((found - expected).abs() <= 1e-6 * bound, "{what} {m}x{k}x{n}: {found} {expected}");
    }
}

#[test]
fn all_three_forms_are_the_product() {
    for &(m, k, n) in SIZES {
        let (a, b) = (tensor(1, [m, k]), tensor(2, [k, n]));
        assert_product("nn", &nn(&a, &b).unwrap(), &doubles(&a), &doubles(&b), (m, k, n));
        let b = tensor(2, [n, k]);
        let expected_b = transposed(&doubles(&b), (n, k));
        assert_product("nt", &nt(&a, &b).unwrap(), &doubles(&a), &expected_b, (m, k, n));
        let (a, b) = (tensor(1, [k, m]), tensor(2, [k, n]));
        let expected_a = transposed(&doubles(&a), (k, m));
        assert_product("tn", &tn(&a, &b).unwrap(), &expected_a, &doubles(&b), (m, k, n));
    }
}

#[test]
fn rows_of_a_larger_tensor_multiply_like_a_copy_of_them() {
    let (a, b) = (tensor(3, [40, 12]).rows(7, 20).unwrap(), tensor(4, [30, 12]).rows(3, 9).unwrap());
    let expected_b = transposed(&doubles(&b), (9, 12));
    assert_product("nt of views", &nt(&a, &b).unwrap(), &doubles(&a), &expected_b, (20, 12, 9));
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let (a, b, cube) = (tensor(1, [3, 4]), tensor(2, [5, 3]), tensor(3, [2, 3, 4]));
    assert!(nn(&a, &b).is_err());
    assert!(nt(&a, &b).is_err());
    assert!(tn(&a, &b).is_err());
    for product in [nn, nt, tn] {
        assert!(product(&a, &cube).is_err());
        assert!(product(&cube, &a).is_err());
        let whole_numbers = index_tensor(&[1, 2, 3, 4]).reshape([2, 2]).unwrap();
        assert!(product(&whole_numbers, &whole_numbers).is_err());
    }
}
