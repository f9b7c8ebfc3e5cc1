//! Rows of the embedding, and ids that are refused.

use super::forward;
use crate::rows::reference;
use crate::test_inputs::{index_tensor, indices, tensor};

#[test]
fn each_id_becomes_its_row() {
    for (num_tokens, vocabulary, width) in [(0, 5, 3), (1, 1, 1), (700, 50, 64)] {
        let (ids, weight) = (indices(1, num_tokens, vocabulary), tensor(2, [vocabulary as usize, width]));
        let found = forward(&index_tensor(&ids), &weight).unwrap();
        assert_eq!(found.dims(), [num_tokens, width]);
        assert_eq!(found.to_f32_vec().unwrap(), reference::gather(&weight.f32s().unwrap(), &ids, width));
    }
}

#[test]
fn an_id_outside_of_the_vocabulary_is_an_error() {
    let weight = tensor(1, [5, 3]);
    let refused = forward(&index_tensor(&[0, 5]), &weight).unwrap_err();
    assert!(refused.to_string().ends_with(": found index 5 at position 1, expected one below 5"), "{refused}");
    assert!(forward(&tensor(1, [2]), &weight).is_err());
    assert!(forward(&index_tensor(&[0, 1]).reshape([1, 2]).unwrap(), &weight).is_err());
    assert!(forward(&index_tensor(&[0]), &tensor(1, [5])).is_err());
}
