//! Thin products, the addition, and a dropout mask that depends on names alone.

use scout_device::Tensor;

use super::{DropoutKey, Side, TokenKeys, add_delta, dropout, product_nn, product_nt, reference, side_by_side};
use crate::matmul::Columns;
use crate::matmul::reference::{product, transposed};
use crate::test_inputs::{assert_close, bits, doubles, tensor, values};

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
fn a_delta_is_added_in_place() {
    for (num_tokens, width) in [(0, 5), (1, 1), (3, 0), (3, 7), (500, 96)] {
        let (y, delta) = (tensor(1, [num_tokens, width]), tensor(2, [num_tokens, width]));
        let expected = reference::add_delta(&y.f32s().unwrap(), &delta.f32s().unwrap(), 0.25);
        let found = add_delta(y, &delta, 0.25).unwrap();
        assert_eq!(found.dims(), [num_tokens, width]);
        assert_eq!(found.to_f32_vec().unwrap(), expected);
    }
}

#[test]
fn a_delta_is_read_where_its_rows_begin() {
    let all = tensor(2, [5, 3]);
    let found = add_delta(Tensor::zeros_f32([2, 3]).unwrap(), &all.rows(3, 2).unwrap(), 1.0).unwrap();
    assert_eq!(found.to_f32_vec().unwrap(), all.to_f32_vec().unwrap()[9..]);
}

#[test]
fn a_delta_that_does_not_fit_is_refused() {
    let y = || tensor(1, [3, 4]);
    assert!(add_delta(y(), &tensor(2, [3, 2]), 1.0).is_err());
    assert!(add_delta(y(), &tensor(2, [2, 4]), 1.0).is_err());
    assert!(add_delta(tensor(1, [12]), &tensor(2, [12]), 1.0).is_err());
    let shared = y();
    assert!(add_delta(shared.clone(), &shared, 1.0).is_err(), "a delta in the memory it would change");
}

/// `residual + scale · narrow·wide` in f64.
fn thin(narrow: &[f64], wide: &[f64], dims: (usize, usize, usize), scale: f64, residual: &[f64]) -> Vec<f64> {
    product(narrow, wide, dims).iter().zip(residual).map(|(value, residual)| scale * value + residual).collect()
}

#[test]
fn thin_products_agree_with_the_reference() {
    for (num_tokens, rank, count) in [(0, 3, 2), (1, 1, 1), (3, 2, 7), (50, 8, 32), (3, 0, 4), (4, 3, 0), (200, 24, 65)]
    {
        // The rank's columns of a wider factor.
        let wider = tensor(1, [num_tokens, rank + 5]);
        let narrow = Columns { tensor: &wider, start: 3, count: rank };
        let values = doubles(&wider);
        let of_row = |row: usize| values[row * (rank + 5) + 3..][..rank].to_vec();
        let own: Vec<f64> = (0..num_tokens).flat_map(of_row).collect();
        let (dims, what) = ((num_tokens, rank, count), format!("{num_tokens}x{rank}x{count}"));
        let (wide, residual) = (tensor(2, [count, rank]), tensor(3, [num_tokens, count]));
        let (across, zeros) = (transposed(&doubles(&wide), (count, rank)), vec![0.0; num_tokens * count]);
        let expected = thin(&own, &across, dims, 0.5, &zeros);
        let found = product_nt(narrow, &wide, 0.5, None).unwrap();
        assert_close(&what, &found, &[num_tokens, count], &expected, 1e-6);
        let expected = thin(&own, &across, dims, 0.5, &doubles(&residual));
        let found = product_nt(narrow, &wide, 0.5, Some(&residual)).unwrap();
        assert_close(&what, &found, &[num_tokens, count], &expected, 1e-6);
        let wide = tensor(4, [rank, count]);
        let found = product_nn(narrow, &wide, 0.5).unwrap();
        assert_close(&what, &found, &[num_tokens, count], &thin(&own, &doubles(&wide), dims, 0.5, &zeros), 1e-6);
    }
    assert!(product_nt(&tensor(2, [3, 2]), &tensor(3, [2, 4]), 1.0, None).is_err());
    assert!(product_nn(&tensor(2, [3, 2]), &tensor(3, [4, 2]), 1.0).is_err());
    assert!(product_nt(&tensor(2, [3, 2]), &tensor(3, [4, 2]), 1.0, Some(&tensor(1, [4, 3]))).is_err());
}

#[test]
fn thin_products_stand_side_by_side_with_zeros_where_there_is_none() {
    for num_tokens in [0, 1, 30] {
        let narrow = tensor(1, [num_tokens, 6]);
        let [first, second] = [0, 2].map(|start| Columns { tensor: &narrow, start, count: 2 + start });
        let (wide, other) = (tensor(2, [5, 2]), tensor(3, [3, 4]));
        let parts = [product_nt(first, &wide, 0.5, None).unwrap(), product_nt(second, &other, 0.5, None).unwrap()];
        let [first, second] = [Side::Product(first, &wide), Side::Product(second, &other)];
        for (sides, places) in [
            (&[first, second][..], &[(0, 0), (5, 1)][..]),
            (&[Side::Zeros(2), second, first, Side::Zeros(1)], &[(2, 1), (5, 0)]),
        ] {
            let found = side_by_side(sides, 0.5).unwrap();
            let width = found.dims()[1];
            let mut expected = vec![0.0; num_tokens * width];
            for &(start, part) in places {
                let part = &parts[part];
                for (row, values) in part.f32s().unwrap().chunks(part.dims()[1]).enumerate() {
                    expected[row * width + start..][..values.len()].copy_from_slice(values);
                }
            }
            assert_eq!(found.dims(), [num_tokens, width]);
            assert_eq!(found.to_f32_vec().unwrap(), expected);
        }
    }
    assert!(side_by_side(&[Side::Zeros(4)], 1.0).is_err());
    let (short, long, wide) = (tensor(1, [2, 4]), tensor(1, [3, 4]), tensor(2, [5, 4]));
    let sides = [&short, &long].map(|narrow| Side::Product(narrow.into(), &wide));
    assert!(side_by_side(&sides, 1.0).is_err());
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
