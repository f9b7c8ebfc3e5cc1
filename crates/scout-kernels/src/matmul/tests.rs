//! Products against the reference over odd sizes, and refusals.

use scout_device::Tensor;

use super::reference::{product, transposed};
use super::{Columns, add_nn, add_nt, nn, nt, side_by_side_nn, side_by_side_nt, tn};
use crate::Result;
use crate::test_inputs::{bits, doubles, index_tensor, tensor};

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

/// Columns `start..start + count`, copied out.
fn copied(tensor: &Tensor, start: usize, count: usize) -> Tensor {
    let (num_rows, width) = (tensor.dims()[0], tensor.dims()[1]);
    let values = tensor.to_f32_vec().unwrap();
    let rows = (0..num_rows).flat_map(|row| values[row * width + start..][..count].to_vec());
    Tensor::from_f32(rows.collect(), [num_rows, count]).unwrap()
}

#[test]
fn columns_of_a_wider_matrix_multiply_like_a_copy_of_them() {
    for (num_rows, width, start, count) in [(0, 9, 2, 3), (1, 7, 6, 1), (7, 12, 3, 5), (300, 40, 8, 24), (20, 5, 0, 5)]
    {
        let wide = tensor(1, [num_rows, width]);
        let (columns, copy) = (Columns { tensor: &wide, start, count }, copied(&wide, start, count));
        for (found, expected) in [
            (nn(columns, &tensor(2, [count, 33])), nn(&copy, &tensor(2, [count, 33]))),
            (nt(columns, &tensor(3, [70, count])), nt(&copy, &tensor(3, [70, count]))),
            (tn(columns, &tensor(4, [num_rows, 6])), tn(&copy, &tensor(4, [num_rows, 6]))),
            (tn(&tensor(5, [num_rows, 6]), columns), tn(&tensor(5, [num_rows, 6]), &copy)),
        ] {
            let (found, expected) = (found.unwrap(), expected.unwrap());
            assert_eq!(found.dims(), expected.dims());
            assert_eq!(bits(&found), bits(&expected), "{num_rows}x{width}, {count} from {start}");
        }
    }
}

#[test]
fn a_product_is_added_to_a_sum_of_its_shape() {
    for &(m, k, n) in SIZES {
        let (a, b, sum) = (tensor(1, [m, k]), tensor(2, [k, n]), tensor(3, [m, n]));
        let added = |product: Tensor| -> Vec<f32> {
            doubles(&sum).iter().zip(doubles(&product)).map(|(sum, product)| (sum + product) as f32).collect()
        };
        let fresh = || Some(tensor(3, [m, n]));
        assert_eq!(add_nn(fresh(), &a, &b).unwrap().to_f32_vec().unwrap(), added(nn(&a, &b).unwrap()), "{m}x{k}x{n}");
        let b = tensor(2, [n, k]);
        assert_eq!(add_nt(fresh(), &a, &b).unwrap().to_f32_vec().unwrap(), added(nt(&a, &b).unwrap()), "{m}x{k}x{n}");
    }
    let (a, b) = (tensor(1, [3, 4]), tensor(2, [4, 5]));
    assert!(add_nn(Some(tensor(3, [5, 3])), &a, &b).is_err());
    assert!(add_nt(Some(tensor(3, [3, 4])), &a, &tensor(2, [5, 4])).is_err());
}

#[test]
fn products_side_by_side_are_those_alone() {
    for num_rows in [0, 1, 40] {
        let (x, y) = (tensor(1, [num_rows, 9]), tensor(2, [num_rows, 20]));
        let (b, c, d) = (tensor(3, [9, 4]), tensor(4, [6, 3]), tensor(5, [9, 1]));
        let columns = Columns { tensor: &y, start: 13, count: 6 };
        let found = side_by_side_nn(&[((&x).into(), &b), (columns, &c), ((&x).into(), &d)]).unwrap();
        assert_eq!(found.dims(), [num_rows, 8]);
        let parts = [(0, nn(&x, &b).unwrap()), (4, nn(columns, &c).unwrap()), (7, nn(&x, &d).unwrap())];
        for (start, part) in parts {
            assert_eq!(bits(&copied(&found, start, part.dims()[1])), bits(&part));
        }
        let (b, c) = (tensor(3, [4, 9]), tensor(4, [3, 6]));
        let found = side_by_side_nt(&[((&x).into(), &b), (columns, &c)]).unwrap();
        for (start, part) in [(0, nt(&x, &b).unwrap()), (4, nt(columns, &c).unwrap())] {
            assert_eq!(bits(&copied(&found, start, part.dims()[1])), bits(&part));
        }
    }
    let (x, b) = (tensor(1, [5, 4]), tensor(2, [4, 3]));
    assert!(side_by_side_nn(&[]).is_err());
    assert!(side_by_side_nn(&[((&x).into(), &b), ((&tensor(3, [6, 4])).into(), &b)]).is_err());
    assert!(side_by_side_nn(&[((&x).into(), &tensor(2, [5, 3]))]).is_err());
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    type Form = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let forms: [Form; 3] = [|a, b| nn(a, b), |a, b| nt(a, b), |a, b| tn(a, b)];
    let (a, b, cube) = (tensor(1, [3, 4]), tensor(2, [5, 3]), tensor(3, [2, 3, 4]));
    assert!(nn(&a, &b).is_err());
    assert!(nt(&a, &b).is_err());
    assert!(tn(&a, &b).is_err());
    for product in forms {
        assert!(product(&a, &cube).is_err());
        assert!(product(&cube, &a).is_err());
        let whole_numbers = index_tensor(&[1, 2, 3, 4]).reshape([2, 2]).unwrap();
        assert!(product(&whole_numbers, &whole_numbers).is_err());
    }
    for (start, count) in [(1, 4), (usize::MAX, 3), (0, 3)] {
        assert!(nn(Columns { tensor: &a, start, count }, &tensor(2, [4, 2])).is_err(), "{count} from {start}");
    }
}
