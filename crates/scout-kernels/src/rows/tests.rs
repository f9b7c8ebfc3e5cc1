//! Rows against the reference, and indices that are refused.

use super::{copy, gather, reference, scatter};
use crate::lora;
use crate::test_inputs::{bits, index_tensor, indices, tensor};

#[test]
fn gather_and_scatter_agree_with_the_reference() {
    for (num_rows, width, step) in [(0, 3, 1), (1, 1, 1), (9, 5, 2), (2000, 33, 3), (7, 2, 100)] {
        let index: Vec<u32> = (0..num_rows as u32).rev().step_by(step).collect();
        let (x, at) = (tensor(1, [num_rows, width]), index_tensor(&index));
        let found = gather(&x, &at).unwrap();
        assert_eq!(found.dims(), [index.len(), width]);
        assert_eq!(found.to_f32_vec().unwrap(), reference::gather(&x.f32s().unwrap(), &index, width));
        let back = scatter(&found, &at, num_rows).unwrap();
        assert_eq!(back.dims(), [num_rows, width]);
        let expected = reference::scatter(&found.f32s().unwrap(), &index, width, num_rows);
        assert_eq!(back.to_f32_vec().unwrap(), expected);
    }
    let repeated = index_tensor(&[1, 1, 0]);
    assert_eq!(gather(&tensor(1, [2, 4]), &repeated).unwrap().dims(), [3, 4]);
}

#[test]
fn a_copy_has_memory_of_its_own() {
    for dims in [vec![], vec![0, 3], vec![5], vec![3, 4, 5]] {
        let x = tensor(1, &dims[..]);
        let found = copy(&x).unwrap();
        assert_eq!((found.dims(), bits(&found)), (&dims[..], bits(&x)));
    }
    let x = tensor(1, [4, 3]);
    let part = copy(&x.rows(1, 2).unwrap()).unwrap();
    let changed = lora::add_delta(part, &tensor(2, [2, 3]), 1.0).unwrap();
    assert_ne!(bits(&changed), bits(&x.rows(1, 2).unwrap()));
    assert_eq!(bits(&x), bits(&tensor(1, [4, 3])));
}

#[test]
fn indices_outside_or_twice_are_refused() {
    let x = tensor(1, [3, 4]);
    assert!(gather(&x, &index_tensor(&[0, 3])).is_err());
    assert!(gather(&x, &index_tensor(&[0, u32::MAX])).is_err());
    assert!(gather(&x, &tensor(1, [2])).is_err());
    assert!(gather(&tensor(1, [3]), &index_tensor(&[0])).is_err());
    assert!(gather(&x, &index_tensor(&indices(1, 4, 3)).reshape([2, 2]).unwrap()).is_err());
    assert!(scatter(&x, &index_tensor(&[0, 2, 1]), 3).is_ok());
    assert!(scatter(&x, &index_tensor(&[0, 2, 0]), 3).is_err());
    assert!(scatter(&x, &index_tensor(&[0, 2, 3]), 3).is_err());
    assert!(scatter(&x, &index_tensor(&[0, 2]), 3).is_err());
}
