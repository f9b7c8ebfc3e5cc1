//! Additions to columns, and a dropout mask that depends on names alone.

use scout_device::Tensor;

use super::{DropoutKey, TokenKeys, add_delta, add_nn, add_nt, columns, dropout, reference};
use crate::matmul;
use crate::test_inputs::{bits, tensor, values};

const KEY: DropoutKey = DropoutKey { seed: 42, step: 7, module: 3 };

/// Two samples, one behind the other.
fn names(num_tokens: usize) -> Vec<(u64, u32)> {
    let first = num_tokens / 3;
    let name = |token| if token < first { (1000, token) } else { (u64::MAX - 5, token - first) };
    (0..num_tokens).map(name).map(|(sample, position)| (sample, position as u32)).collect()
}

fn keys(names: &[(u64, u32)]) -> TokenKeys {
    let (samples, positions): (Vec<u64>, Vec<u32>) = names.iter().copied().unzip();
    TokenKeys::new(&samples, &positions).unwrap()
}

#[test]
fn a_delta_lands_in_its_columns_and_nowhere_else() {
    for (num_tokens, width, start, count) in
        [(0, 5, 1, 2), (1, 1, 0, 1), (3, 7, 2, 4), (3, 7, 7, 0), (5, 6, 0, 6), (500, 96, 32, 33)]
    {
        let (y, delta) = (tensor(1, [num_tokens, width]), tensor(2, [num_tokens, count]));
        let before = y.to_f32_vec().unwrap();
        let expected = match count {
            0 => before.clone(),
            _ => reference::add_delta(&before, &delta.f32s().unwrap(), (width, start, count), 0.25),
        };
        let found = add_delta(y, start, &delta, 0.25).unwrap();
        assert_eq!(found.dims(), [num_tokens, width]);
        assert_eq!(found.to_f32_vec().unwrap(), expected);
        let part = columns(&found, start, count).unwrap();
        assert_eq!(part.dims(), [num_tokens, count]);
        let row = |row: usize| expected[row * width + start..][..count].to_vec();
        assert_eq!(part.to_f32_vec().unwrap(), (0..num_tokens).flat_map(row).collect::<Vec<f32>>());
    }
}

#[test]
fn a_delta_is_read_where_its_rows_begin() {
    let all = tensor(2, [5, 3]);
    let found = add_delta(Tensor::zeros_f32([2, 3]).unwrap(), 0, &all.rows(3, 2).unwrap(), 1.0).unwrap();
    assert_eq!(found.to_f32_vec().unwrap(), all.to_f32_vec().unwrap()[9..]);
}

#[test]
fn columns_that_do_not_exist_are_refused() {
    let y = || tensor(1, [3, 4]);
    assert!(add_delta(y(), 3, &tensor(2, [3, 2]), 1.0).is_err());
    assert!(add_delta(y(), 0, &tensor(2, [2, 2]), 1.0).is_err());
    assert!(add_delta(y(), usize::MAX, &tensor(2, [3, 2]), 1.0).is_err());
    let shared = y();
    assert!(add_delta(shared.clone(), 0, &shared, 1.0).is_err(), "a delta in the memory it would change");
    assert!(columns(&y(), 2, 3).is_err());
    assert!(columns(&tensor(1, [3]), 0, 1).is_err());
}

#[test]
fn the_mask_is_the_one_the_contract_describes() {
    for (num_tokens, width, probability) in [(0, 3, 0.5), (1, 1, 0.5), (9, 7, 0.1), (50, 16, 0.05), (300, 65, 0.9)] {
        let (x, names) = (values(1, num_tokens * width), names(num_tokens));
        let expected = reference::dropout(&x, &names, KEY, probability);
        let x = Tensor::from_f32(x, [num_tokens, width]).unwrap();
        let found = dropout(&x, &keys(&names), KEY, probability).unwrap();
        assert_eq!(found.to_f32_vec().unwrap(), expected);
    }
}

#[test]
fn the_mask_never_changes_between_versions() {
    let kept: Vec<bool> = (0..16).map(|feature| reference::is_kept(KEY, (1000, 5), feature, 0.5)).collect();
    let dropped: Vec<usize> = (0..16).filter(|&feature| !kept[feature]).collect();
    assert_eq!(dropped, GOLDEN_DROPPED);
}

/// From the contract's formula, computed in Python.
const GOLDEN_DROPPED: [usize; 9] = [2, 3, 4, 5, 7, 8, 9, 12, 15];

#[test]
fn the_share_of_dropped_elements_is_the_probability() {
    let keys = keys(&names(400));
    for probability in [0.02, 0.1, 0.5, 0.95] {
        let ones = Tensor::from_f32(vec![1.0; 400 * 250], [400, 250]).unwrap();
        let found = dropout(&ones, &keys, KEY, probability).unwrap().to_f32_vec().unwrap();
        let share = found.iter().filter(|&&value| value == 0.0).count() as f64 / 1e5;
        let deviation = (f64::from(probability) * (1.0 - f64::from(probability)) / 1e5).sqrt();
        assert!((share - f64::from(probability)).abs() < 4.0 * deviation, "{probability}: {share}");
        assert!(found.iter().all(|&value| value == 0.0 || value == 1.0 / (1.0 - probability)));
    }
}

#[test]
fn a_token_has_the_same_mask_in_every_batch_and_another_under_every_other_name() {
    let (x, names) = (tensor(1, [12, 40]), names(12));
    let all = keys(&names);
    let whole = dropout(&x, &all, KEY, 0.5).unwrap();
    let found = dropout(&x.rows(5, 4).unwrap(), &keys(&names[5..9]), KEY, 0.5).unwrap();
    assert_eq!(bits(&found), bits(&whole.rows(5, 4).unwrap()));
    for key in [DropoutKey { seed: 43, ..KEY }, DropoutKey { step: 8, ..KEY }, DropoutKey { module: 4, ..KEY }] {
        assert_ne!(bits(&dropout(&x, &all, key, 0.5).unwrap()), bits(&whole), "{key:?}");
    }
    let ones = Tensor::from_f32(vec![1.0; 12 * 40], [12, 40]).unwrap();
    let masks = dropout(&ones, &all, KEY, 0.5).unwrap().to_f32_vec().unwrap();
    let mut rows: Vec<&[f32]> = masks.chunks(40).collect();
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert!(rows.windows(2).all(|pair| pair[0] != pair[1]), "tokens have masks of their own");
}

#[test]
fn probabilities_outside_of_0_to_1_and_missing_names_are_refused() {
    let (x, keys) = (tensor(1, [12, 4]), keys(&names(12)));
    assert_eq!(bits(&dropout(&x, &keys, KEY, 0.0).unwrap()), bits(&x));
    for probability in [1.0, -0.1, f32::NAN, f32::INFINITY] {
        assert!(dropout(&x, &keys, KEY, probability).is_err(), "{probability}");
    }
    assert!(dropout(&tensor(1, [11, 4]), &keys, KEY, 0.5).is_err());
    assert!(TokenKeys::new(&[1, 2], &[0]).is_err());
}

#[test]
fn a_product_is_added_like_a_delta_of_its_own() {
    for (num_tokens, width, start, count, rank) in
        [(0, 5, 1, 2, 3), (3, 7, 2, 4, 2), (50, 40, 8, 32, 8), (3, 4, 1, 2, 0)]
    {
        let narrow = tensor(3, [num_tokens, rank]);
        let wide = tensor(4, [count, rank]);
        let delta = matmul::nt(&narrow, &wide).unwrap();
        let expected = add_delta(tensor(1, [num_tokens, width]), start, &delta, 0.5).unwrap();
        let found = add_nt(tensor(1, [num_tokens, width]), start, &narrow, &wide, 0.5).unwrap();
        assert_eq!(bits(&found), bits(&expected));
        let wide = tensor(5, [rank, count]);
        let delta = matmul::nn(&narrow, &wide).unwrap();
        let expected = add_delta(tensor(1, [num_tokens, width]), start, &delta, 0.5).unwrap();
        let found = add_nn(tensor(1, [num_tokens, width]), start, &narrow, &wide, 0.5).unwrap();
        assert_eq!(bits(&found), bits(&expected));
    }
    let y = || tensor(1, [3, 4]);
    assert!(add_nt(y(), 0, &tensor(2, [3, 2]), &tensor(3, [2, 4]), 1.0).is_err());
    assert!(add_nn(y(), 0, &tensor(2, [2, 2]), &tensor(3, [2, 4]), 1.0).is_err());
    assert!(add_nn(y(), 1, &tensor(2, [3, 2]), &tensor(3, [2, 4]), 1.0).is_err());
}
