//! AdamW against the reference over several steps, and against torch's own bits.

use super::{Hyper, reference, update};
use crate::test_inputs::values;

const HYPER: Hyper = Hyper { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 1 };

#[test]
fn steps_agree_with_the_reference() {
    for (len, weight_decay, scale) in [(0, 0.1, 1.0), (1, 0.0, 0.5), (40_000, 0.1, 0.25)] {
        let mut parameters = values(1, len);
        let (mut first, mut second) = (vec![0.0; len], vec![0.0; len]);
        let as_number =
            |&value: &f32| reference::Number { parameter: f64::from(value), first_moment: 0.0, second_moment: 0.0 };
        let mut numbers: Vec<_> = parameters.iter().map(as_number).collect();
        for step in 1..=5 {
            let hyper = Hyper { step, weight_decay, learning_rate: 1e-2 / step as f64, ..HYPER };
            let gradients = values(10 + step, len);
            update(&mut parameters, &gradients, &mut first, &mut second, scale, &hyper).unwrap();
            for (number, &gradient) in numbers.iter_mut().zip(&gradients) {
                *number = reference::update(*number, f64::from(gradient) * f64::from(scale), &hyper);
            }
        }
        for (index, number) in numbers.iter().enumerate() {
            let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-6;
            assert!(close(parameters[index], number.parameter), "{index}: {} {number:?}", parameters[index]);
            assert!(close(first[index], number.first_moment), "{index}: {} {number:?}", first[index]);
            assert!(close(second[index], number.second_moment), "{index}: {} {number:?}", second[index]);
        }
    }
}

/// Parameters, first and second moments after each step: torch 2.15, AdamW with `foreach` and `fused` off.
const TORCH: [[[u32; 5]; 3]; 3] = [
    [
        [0x3efa9fbf, 0xbf9e8f5c, 0x403f2ca1, 0xbc223407, 0xbf3d3f7d],
        [0x3c23d70b, 0xbe4ccccd, 0x33d6bf95, 0x3cf5c290, 0xbb03126f],
        [0x3727c5ad, 0x3b83126f, 0x26901d7e, 0x38bcbe63, 0x34d6bf95],
    ],
    [
        [0x3ef83c14, 0xbf9e4f6d, 0x403f3c76, 0xbc740aca, 0xbf3db82b],
        [0x3d48b43a, 0xbda3d70a, 0xb4617c5e, 0x3d6978d6, 0x3b51b718],
        [0x39323f59, 0x3ba3b57d, 0x28342041, 0x393ca63a, 0x364296c0],
    ],
    [
        [0x3ef7d744, 0xbf9e434c, 0x403f3f1f, 0xbc6bd9ba, 0xbf3ddccf],
        [0x3cc56d5d, 0xbcb43958, 0xb44aefee, 0xbd1e83e2, 0x3b434c1b],
        [0x395c0323, 0x3babbcbb, 0x2833f224, 0x3a81b9d5, 0x3642761e],
    ],
];

#[test]
fn steps_follow_torch_within_two_units_in_the_last_place() {
    let mut parameters = [0.5, -1.25, 3.0, 1e-4, -0.75];
    let (mut first, mut second) = ([0.0; 5], [0.0; 5]);
    let gradients = [[0.1, -2.0, 1e-6, 0.3, -0.02], [0.4, 1.0, -3e-6, 0.3, 0.05], [-0.2, 0.5, 0.0, -0.9, 1e-3]];
    for (index, learning_rate) in [1e-2, 5e-3, 2e-3].into_iter().enumerate() {
        let hyper = Hyper { learning_rate, step: index as u64 + 1, ..HYPER };
        update(&mut parameters, &gradients[index], &mut first, &mut second, 1.0, &hyper).unwrap();
        for (found, expected) in [parameters, first, second].iter().zip(&TORCH[index]) {
            for (found, &expected) in found.iter().zip(expected) {
                // torch fuses multiplications with additions where its vector code does; we do not.
                let distance = found.to_bits().abs_diff(expected);
                assert!(distance <= 2, "step {}: {found} {}", hyper.step, f32::from_bits(expected));
            }
        }
    }
}

#[test]
fn a_shard_gives_the_bits_of_the_whole() {
    let (gradients, start) = (values(2, 1000), values(1, 1000));
    let run = |range: std::ops::Range<usize>| {
        let mut parameters = start[range.clone()].to_vec();
        let (mut first, mut second) = (vec![0.0; range.len()], vec![0.0; range.len()]);
        update(&mut parameters, &gradients[range], &mut first, &mut second, 0.3, &HYPER).unwrap();
        parameters
    };
    assert_eq!(run(0..1000)[301..777], run(301..777)[..]);
}

#[test]
fn a_learning_rate_of_zero_moves_the_moments_only() {
    let (mut parameters, mut first, mut second) = ([0.5f32], [0.0], [0.0]);
    let hyper = Hyper { learning_rate: 0.0, ..HYPER };
    update(&mut parameters, &[2.0], &mut first, &mut second, 1.0, &hyper).unwrap();
    assert_eq!(parameters, [0.5]);
    assert!((first[0] - 0.2).abs() < 1e-6 && (second[0] - 0.004).abs() < 1e-6);
}

#[test]
fn lengths_that_differ_and_step_zero_are_refused() {
    let update = |lengths: [usize; 4], step: u64| {
        let [mut p, g, mut m, mut v] = lengths.map(|len| vec![0.0; len]);
        super::update(&mut p, &g, &mut m, &mut v, 1.0, &Hyper { step, ..HYPER })
    };
    assert!(update([3, 3, 3, 3], 1).is_ok());
    assert!(update([3, 3, 3, 3], 0).is_err());
    for lengths in [[3, 2, 3, 3], [3, 3, 4, 3], [3, 3, 3, 0]] {
        assert!(update(lengths, 1).is_err(), "{lengths:?}");
    }
}
