//! Sums over flat runs of numbers: the square of a norm, and how many numbers are not finite. The run is cut into
//! blocks of a fixed size whose sums are added in order, in f64, so the result is the same for any number of threads.

mod host;
#[cfg(test)]
mod tests;

/// Σ v², within 1e-12 of the exact sum.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    host::sum_of_squares(values)
}

/// How many are infinite or NaN.
pub fn count_not_finite(values: &[f32]) -> u64 {
    host::count_not_finite(values)
}
