//! Blocks shared out among threads, their sums added up in order.

use rayon::prelude::*;

const BLOCK: usize = 16 * 1024;
const LANES: usize = 8;

pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    let blocks: Vec<f64> = values.par_chunks(BLOCK).map(sum_of_squares_of_block).collect();
    blocks.into_iter().sum()
}

fn sum_of_squares_of_block(values: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let mut lanes = [0.0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let tail: f64 = chunks.remainder().iter().map(|&value| square(value)).sum();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += square(chunk[lane]);
        }
    }
    lanes.iter().sum::<f64>() + tail
}

pub(super) fn count_not_finite(values: &[f32]) -> u64 {
    let count = |block: &[f32]| block.iter().filter(|value| !value.is_finite()).count() as u64;
    values.par_chunks(BLOCK).map(count).sum()
}
