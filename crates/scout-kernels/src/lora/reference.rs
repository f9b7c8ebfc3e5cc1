//! The dropout mask and the addition, element by element.

use super::DropoutKey;

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
    z ^ (z >> 31)
}

pub(super) fn is_kept(key: DropoutKey, (sample, position): (u64, u32), feature: usize, probability: f32) -> bool {
    let module = mix(mix(mix(key.seed) ^ key.step) ^ key.module);
    let row = mix(mix(module ^ sample) ^ u64::from(position));
    let pair = (feature / 2) as u64;
    let hash = mix(row.wrapping_add((pair + 1).wrapping_mul(0x9e3779b97f4a7c15)));
    let half = if feature.is_multiple_of(2) { hash & 0xffff_ffff } else { hash >> 32 };
    half as f64 >= (f64::from(probability) * 4_294_967_296.0).round()
}

pub(super) fn dropout(x: &[f32], tokens: &[(u64, u32)], key: DropoutKey, probability: f32) -> Vec<f32> {
    let width = x.len() / tokens.len().max(1);
    let keep = |index: usize| is_kept(key, tokens[index / width], index % width, probability);
    let scale = 1.0 / (1.0 - probability);
    x.iter().enumerate().map(|(index, x)| if keep(index) { x * scale } else { 0.0 }).collect()
}

pub(super) fn add_delta(y: &[f32], delta: &[f32], scale: f32) -> Vec<f32> {
    y.iter().zip(delta).map(|(y, delta)| y + scale * delta).collect()
}
