//! Rows of the embedding, the gradients they collect, and ids that are refused.

use super::{forward, reference, weight_gradient};
use crate::rows::reference::gather;
use crate::test_inputs::{assert_close, assert_gradient, doubles, index_tensor, indices, tensor};

#[test]
fn each_id_becomes_its_row() {
    for (num_tokens, vocabulary, width) in [(0, 5, 3), (1, 1, 1), (700, 50, 64)] {
        let (ids, weight) = (indices(1, num_tokens, vocabulary), tensor(2, [vocabulary as usize, width]));
        let found = forward(&index_tensor(&ids), &weight).unwrap();
        assert_eq!(found.dims(), [num_tokens, width]);
        assert_eq!(found.to_f32_vec().unwrap(), gather(&weight.f32s().unwrap(), &ids, width));
    }
}

#[test]
fn each_row_collects_the_gradients_of_its_tokens() {
    for (num_tokens, vocabulary, width) in [(0, 5, 3), (1, 1, 1), (9, 4, 17), (700, 50, 64), (300, 2, 33)] {
        let (ids, dx) = (indices(1, num_tokens, vocabulary as u32), tensor(2, [num_tokens, width]));
        let found = weight_gradient(&dx, &index_tensor(&ids), vocabulary).unwrap();
        let expected = reference::weight_gradient(&doubles(&dx), &ids, (vocabulary, width));
        assert_close(&format!("{num_tokens} {vocabulary}"), &found, &[vocabulary, width], &expected, 1e-6);
    }
}

#[test]
fn the_gradient_is_that_of_the_forward_pass() {
    let (ids, dx) = ([2u32, 0, 2, 3], doubles(&tensor(1, [4, 3])));
    let forward = |weight: &[f64]| ids.iter().flat_map(|&id| weight[id as usize * 3..][..3].to_vec()).collect();
    let found = reference::weight_gradient(&dx, &ids, (5, 3));
    assert_gradient("embedding", &doubles(&tensor(2, [5, 3])), &dx, forward, &found);
}

#[test]
fn an_id_outside_of_the_vocabulary_is_an_error() {
    let weight = tensor(1, [5, 3]);
    let refused = forward(&index_tensor(&[0, 5]), &weight).unwrap_err();
    assert!(refused.to_string().ends_with(": found index 5 at position 1, expected one below 5"), "{refused}");
    assert!(forward(&tensor(1, [2]), &weight).is_err());
    assert!(forward(&index_tensor(&[0, 1]).reshape([1, 2]).unwrap(), &weight).is_err());
    assert!(forward(&index_tensor(&[0]), &tensor(1, [5])).is_err());
    assert!(weight_gradient(&weight, &index_tensor(&[0, 1, 2, 0, 1]), 3).is_ok());
    assert!(weight_gradient(&weight, &index_tensor(&[0, 1, 3, 0, 1]), 3).is_err());
    assert!(weight_gradient(&weight, &index_tensor(&[0, 1]), 3).is_err());
}
