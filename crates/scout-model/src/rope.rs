//! Rotation frequencies, one for each pair of a head, with the `llama3` bands applied.

use std::f64::consts::PI;

use crate::config::RopeConfig;

/// `head_dim / 2` frequencies. Long wavelengths are stretched by the factor, short ones stay, the band between blends.
///
/// Scout's two band limits are equal: the blend would divide by zero, so the bands are told apart by branches.
pub fn frequencies(rope: &RopeConfig, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|pair_index| {
            let plain = rope.theta.powf(-2.0 * pair_index as f64 / head_dim as f64);
            let Some(bands) = rope.bands else { return plain as f32 };
            let wavelength = 2.0 * PI / plain;
            let length = bands.original_max_position;
            let frequency = if wavelength < length / bands.high_freq_factor {
                plain
            } else if wavelength > length / bands.low_freq_factor {
                plain / bands.factor
            } else {
                let width = bands.high_freq_factor - bands.low_freq_factor;
                // At one single limit the wavelength equals it exactly, and both neighbours agree on the stretched value.
                let share = if width > 0.0 { (length / wavelength - bands.low_freq_factor) / width } else { 0.0 };
                (1.0 - share) * plain / bands.factor + share * plain
            };
            frequency as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelConfig, RopeBands};

    #[test]
    fn scouts_frequencies_are_stretched_from_pair_35_on() {
        let config = ModelConfig::scout();
        let with_bands = frequencies(&config.rope, 128);
        let plain = frequencies(&RopeConfig { bands: None, ..config.rope }, 128);
        for pair_index in 0..64 {
            let factor = if pair_index < 35 { 1.0 } else { 16.0 };
            assert_eq!(with_bands[pair_index], (f64::from(plain[pair_index]) / factor) as f32, "{pair_index}");
        }
        for (pair_index, expected) in [(1, 0.8146172), (35, 4.778106e-5), (63, 1.534463e-7)] {
            assert!((with_bands[pair_index] / expected - 1.0f32).abs() < 1e-6, "{pair_index}");
        }
    }

    #[test]
    fn a_wide_band_blends_and_a_band_of_no_width_never_divides_by_zero() {
        let bands = |low, high| RopeConfig {
            theta: 500_000.0,
            bands: Some(RopeBands {
                factor: 8.0,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position: 8192.0,
            }),
        };
        let blended = frequencies(&bands(1.0, 4.0), 128);
        let plain = frequencies(&RopeConfig { theta: 500_000.0, bands: None }, 128);
        let between = (0..64).filter(|&i| blended[i] < plain[i] * 0.999 && blended[i] > plain[i] / 8.0 * 1.001).count();
        assert!(between > 3, "{between} frequencies lie between the bands");
        // A wavelength that equals the limit to the last bit.
        let exact = RopeConfig {
            theta: 1.0,
            bands: Some(RopeBands {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 1.0,
                original_max_position: 2.0 * PI,
            }),
        };
        assert!(frequencies(&exact, 8).iter().all(|f| f.is_finite()));
    }
}
