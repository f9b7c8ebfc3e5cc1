//! Grouped products against the reference, with empty experts wherever they can be.

use scout_device::{Matrices, Tensor};

use super::{nn, nt, reference, tn};
use crate::test_inputs::{assert_close, doubles, tensor};

const OFFSETS: &[&[u32]] = &[
    &[0],
    &[0, 0],
    &[0, 0, 0],
    &[0, 1],
    &[0, 3, 3, 7],
    &[0, 0, 5],
    &[0, 5, 5, 5],
    &[0, 0, 0, 40, 40],
    &[0, 17, 18, 90, 133],
];

#[test]
fn each_row_meets_the_matrix_of_its_expert() {
    for offsets in OFFSETS {
        for (k, n) in [(1, 1), (6, 4), (33, 18), (5, 0)] {
            let num_experts = offsets.len() - 1;
            let num_rows = *offsets.last().unwrap() as usize;
            let expert_of_row: Vec<usize> = (0..num_experts)
                .flat_map(|expert| vec![expert; (offsets[expert + 1] - offsets[expert]) as usize])
                .collect();
            let what = format!("{offsets:?} {k} {n}");
            let b = tensor(1, [num_experts, k, n]);
            let (wide, narrow) = (tensor(2, [num_rows, k]), tensor(3, [num_rows, n]));
            let expected = reference::nn(&doubles(&wide), &doubles(&b), &expert_of_row, (k, n));
            assert_close(&what, &nn(&wide, &b, offsets).unwrap(), &[num_rows, n], &expected, 2e-6);
            let expected = reference::nt(&doubles(&narrow), &doubles(&b), &expert_of_row, (k, n));
            assert_close(&what, &nt(&narrow, &b, offsets).unwrap(), &[num_rows, k], &expected, 2e-6);
            let expected = reference::tn(&doubles(&wide), &doubles(&narrow), &expert_of_row, (num_experts, k, n));
            assert_close(&what, &tn(&wide, &narrow, offsets).unwrap(), &[num_experts, k, n], &expected, 2e-6);
        }
    }
}

#[test]
fn matrices_that_lie_apart_are_read_where_they_lie() {
    let (b, offsets) = (tensor(1, [4, 6, 3]), [0, 5, 5, 9, 20]);
    let (wide, narrow) = (tensor(2, [20, 6]), tensor(3, [20, 3]));
    for own in [0..1, 1..3, 3..4, 2..4] {
        let values = b.to_f32_vec().unwrap();
        let others = [&values[own.end * 18..], &values[..own.start * 18]].concat();
        let others = Tensor::from_f32(others, [4 - own.len(), 6, 3]).unwrap();
        let matrices = Matrices::around(own.start, b.rows(own.start, own.len()).unwrap(), others).unwrap();
        let bits = |tensor: Tensor| tensor.to_f32_vec().unwrap();
        assert_eq!(bits(nn(&wide, matrices.clone(), &offsets).unwrap()), bits(nn(&wide, &b, &offsets).unwrap()));
        assert_eq!(bits(nt(&narrow, matrices, &offsets).unwrap()), bits(nt(&narrow, &b, &offsets).unwrap()));
    }
}

#[test]
fn offsets_and_shapes_that_do_not_fit_are_refused() {
    let (a, b) = (tensor(1, [7, 4]), tensor(2, [2, 4, 3]));
    assert!(nn(&a, &b, &[0, 3, 7]).is_ok());
    for offsets in [&[][..], &[0, 7], &[0, 3, 6], &[1, 3, 7], &[0, 8, 7], &[0, 1, 2, 7]] {
        assert!(nn(&a, &b, offsets).is_err(), "{offsets:?}");
    }
    assert!(nt(&a, &b, &[0, 3, 7]).is_err());
    assert!(nn(&a, &a, &[0, 3, 7]).is_err());
    assert!(tn(&a, &tensor(3, [6, 4]), &[0, 3, 7]).is_err());
    assert!(tn(&a, &a, &[]).is_err());
}
