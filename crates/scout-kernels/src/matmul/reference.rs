//! The product, entry by entry.

/// `[m, k] · [k, n]`.
pub(crate) fn product(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let mut y = vec![0.0; m * n];
    for row in 0..m {
        for column in 0..n {
            for inner in 0..k {
                y[row * n + column] += a[row * k + inner] * b[inner * n + column];
            }
        }
    }
    y
}

pub(crate) fn transposed(a: &[f64], (rows, columns): (usize, usize)) -> Vec<f64> {
    (0..rows * columns).map(|index| a[index % rows * columns + index / rows]).collect()
}
