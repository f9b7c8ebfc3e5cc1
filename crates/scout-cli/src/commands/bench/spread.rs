//! Numbers of which nobody wants to read all.

/// Least, median and most. There must be one.
pub fn spread(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    [numbers[0], numbers[numbers.len() / 2], numbers[numbers.len() - 1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_median_and_most_of_numbers_in_any_order() {
        assert_eq!(spread([3.0, 1.0, 2.0].into_iter()), [1.0, 2.0, 3.0]);
        assert_eq!(spread([9.0, -1.0, 4.0, 5.0, 2.0].into_iter()), [-1.0, 4.0, 9.0]);
        assert_eq!(spread([7.0].into_iter()), [7.0; 3]);
    }
}
