//! Floating-point numbers in the bytes of files, little end first: converted, and looked at for those that are not finite.

use half::{bf16, f16};
use scout_core::DType;

/// Numbers looked at between two questions whether one of them was not finite.
const AT_A_TIME: usize = 4096;

/// As many numbers as `values` has, from the beginning of `bytes`. `stored` is f32, bf16 or f16.
pub(super) fn to_f32(bytes: &[u8], stored: DType, values: &mut [f32]) {
    match stored {
        DType::F32 => {
            for (value, word) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*word);
            }
        }
        DType::BF16 => {
            for (value, word) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = widened(*word);
            }
        }
        _ => {
            for (value, word) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*word).to_f32();
            }
        }
    }
}

/// The numbers as f32, or rounded to bf16.
pub(super) fn from_f32(values: &[f32], dtype: DType, bytes: &mut [u8]) {
    match dtype {
        DType::BF16 => {
            for (value, word) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
                *word = bf16::from_f32(*value).to_le_bytes();
            }
        }
        _ => {
            for (value, word) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                *word = value.to_le_bytes();
            }
        }
    }
}

/// The first number that is infinite or none at all, with its index. `dtype` is f32, bf16 or f16.
pub(super) fn first_not_finite(bytes: &[u8], dtype: DType) -> Option<(usize, f32)> {
    // A number is not finite when all bits of its exponent are set. Groups are looked at without a branch, which is as fast
    // as memory; where one is found, slowly again.
    match dtype {
        DType::F32 => {
            const EXPONENT: u32 = 0x7f80_0000;
            let is_bad = |word: &[u8; 4]| u32::from_le_bytes(*word) & EXPONENT == EXPONENT;
            first(bytes.as_chunks::<4>().0, is_bad).map(|(index, word)| (index, f32::from_le_bytes(word)))
        }
        DType::BF16 => {
            const EXPONENT: u16 = 0x7f80;
            let is_bad = |word: &[u8; 2]| u16::from_le_bytes(*word) & EXPONENT == EXPONENT;
            first(bytes.as_chunks::<2>().0, is_bad).map(|(index, word)| (index, widened(word)))
        }
        _ => {
            const EXPONENT: u16 = 0x7c00;
            let is_bad = |word: &[u8; 2]| u16::from_le_bytes(*word) & EXPONENT == EXPONENT;
            first(bytes.as_chunks::<2>().0, is_bad).map(|(index, word)| (index, f16::from_le_bytes(word).to_f32()))
        }
    }
}

fn first<const N: usize>(words: &[[u8; N]], is_bad: impl Fn(&[u8; N]) -> bool) -> Option<(usize, [u8; N])> {
    for (group, words) in words.chunks(AT_A_TIME).enumerate() {
        if words.iter().fold(false, |found, word| found | is_bad(word)) {
            let index = words.iter().position(&is_bad).expect("one was found");
            return Some((group * AT_A_TIME + index, words[index]));
        }
    }
    None
}

/// bf16 is the upper half of an f32, so this is exact, and free of the library's special case for NaN.
fn widened(word: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_finite_is_found_wherever_it_stands() {
        let check = |dtype: DType, bad: &[u8], good: &[u8]| {
            let len = 2 * AT_A_TIME + 5;
            for at in [0, 1, AT_A_TIME - 1, AT_A_TIME, 2 * AT_A_TIME + 4] {
                let mut bytes = good.repeat(len);
                assert_eq!(first_not_finite(&bytes, dtype), None, "{dtype}");
                bytes[at * bad.len()..][..bad.len()].copy_from_slice(bad);
                let (index, value) = first_not_finite(&bytes, dtype).unwrap();
                assert_eq!((index, value.is_finite()), (at, false), "{dtype}: {bad:?}");
            }
        };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xff80_0001)] {
            check(DType::F32, &bad.to_le_bytes(), &f32::MAX.to_le_bytes());
        }
        for bad in [bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY, bf16::from_bits(0xff81)] {
            check(DType::BF16, &bad.to_le_bytes(), &bf16::MIN.to_le_bytes());
        }
        for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY, f16::from_bits(0xfc01)] {
            check(DType::F16, &bad.to_le_bytes(), &f16::MAX.to_le_bytes());
        }
    }
}
