//! The exponential function and the sigmoid in f32, from additions and multiplications only: the same bits on every
//! machine, and loops over it become vector code, which calls of the system's function would prevent.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: products of the first with small integers are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Adding this moves the integer nearest to a small number into the lowest bits of the mantissa.
const ROUND: f32 = 12_582_912.0;

/// eˣ within 2 units in the last place; 0 below −104, infinite above 88.8, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons, not `clamp`: they let NaN through and still compile to selects.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    // 2ⁿ as two factors: n reaches from −150 to 128, further than one exponent.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// 1/(1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in -870_000..=887_000 {
            let x = step as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let unit = f64::from((expected as f32).next_up()) - f64::from(expected as f32);
            worst = worst.max((f64::from(exp(x)) - expected).abs() / unit);
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn exp_ends_as_it_should() {
        for (x, expected) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (f32::INFINITY, f32::INFINITY),
            (f32::NEG_INFINITY, 0.0),
            (1e30, f32::INFINITY),
            (88.8, f32::INFINITY),
            (-1e30, 0.0),
        ] {
            assert_eq!(exp(x), expected, "{x}");
        }
        assert!(exp(f32::NAN).is_nan());
        let tiny = exp(-95.0);
        assert!((f64::from(tiny) / (-95.0f64).exp() - 1.0).abs() < 1e-3, "{tiny}");
        assert_eq!((sigmoid(0.0), sigmoid(200.0), sigmoid(-200.0)), (0.5, 1.0, 0.0));
    }
}
