//! Where the marks of an axis lie and what stands beside them.

/// Round numbers inside a range, with texts that all have the same number of decimals.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticks {
    pub values: Vec<f64>,
    pub labels: Vec<String>,
}

/// At most `most` marks (and at least two where the range allows it) at multiples of 1, 2, 2.5 or 5 times a power of
/// ten. `whole` keeps to whole numbers, for steps.
pub fn ticks(low: f64, high: f64, most: usize, whole: bool) -> Ticks {
    let span = high - low;
    let power = 10_f64.powi((span / most as f64).log10().floor() as i32);
    let candidates = [1.0, 2.0, 2.5, 5.0, 10.0, 20.0].map(|factor| factor * power);
    let fits = |step: &f64| {
        let count = (high / step + SLACK).floor() - (low / step - SLACK).ceil() + 1.0;
        count <= most as f64 && (!whole || (*step >= 1.0 && step.fract() == 0.0))
    };
    // A range narrower than one whole step has a mark per whole number, that is one or none.
    let step = candidates.into_iter().find(fits).unwrap_or(if whole { 1.0 } else { span });
    let first = (low / step - SLACK).ceil() as i64;
    let last = (high / step + SLACK).floor() as i64;
    let values: Vec<f64> = (first..=last).map(|index| index as f64 * step).collect();
    let labels = labels(&values, step);
    Ticks { values, labels }
}

/// A range's end that misses a mark only by rounding still gets it.
const SLACK: f64 = 1e-9;

fn labels(values: &[f64], step: f64) -> Vec<String> {
    let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    if largest >= 1e7 || (largest < 1e-4 && largest > 0.0) {
        return values.iter().map(|value| format!("{value:.1e}")).collect();
    }
    let decimals = (0..8).find(|decimals| {
        let scaled = step * 10_f64.powi(*decimals);
        (scaled - scaled.round()).abs() < 1e-6 * scaled
    });
    values.iter().map(|value| format!("{value:.*}", decimals.unwrap_or(8) as usize)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers_with_equal_decimals() {
        for (low, high, most, whole, expected) in [
            (0.0, 10.0, 6, false, vec!["0", "2", "4", "6", "8", "10"]),
            (0.9, 3.1, 6, false, vec!["1.0", "1.5", "2.0", "2.5", "3.0"]),
            (5.97, 6.24, 7, false, vec!["6.00", "6.05", "6.10", "6.15", "6.20"]),
            (0.0, 375.0, 9, true, vec!["0", "50", "100", "150", "200", "250", "300", "350"]),
            (0.85, 4.15, 9, true, vec!["1", "2", "3", "4"]),
            (-0.5, 0.5, 5, false, vec!["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
            (0.0, 1.0, 5, false, vec!["0.00", "0.25", "0.50", "0.75", "1.00"]),
            (1e-6, 5e-6, 6, false, vec!["1.0e-6", "2.0e-6", "3.0e-6", "4.0e-6", "5.0e-6"]),
        ] {
            assert_eq!(ticks(low, high, most, whole).labels, expected, "{low} to {high}");
        }
    }

    #[test]
    fn there_are_never_more_marks_than_asked_for_and_never_none() {
        for exponent in -12..12 {
            for factor in [1.0, 1.7, 3.3, 7.9] {
                let span = factor * 10_f64.powi(exponent);
                for low in [0.0, -span / 3.0, span * 10.0] {
                    let count = ticks(low, low + span, 8, false).values.len();
                    assert!((2..=8).contains(&count), "{low} + {span}: {count}");
                }
            }
        }
    }
}
