//! Row by row, each with the matrix of its expert.

/// `a` is `[T, k]`, `b` is `[E, k, n]`; row `t` belongs to `expert_of_row[t]`.
pub(super) fn nn(a: &[f64], b: &[f64], expert_of_row: &[usize], (k, n): (usize, usize)) -> Vec<f64> {
    let mut y = vec![0.0; expert_of_row.len() * n];
    for (row, &expert) in expert_of_row.iter().enumerate() {
        for i in 0..k {
            for j in 0..n {
                y[row * n + j] += a[row * k + i] * b[(expert * k + i) * n + j];
            }
        }
    }
    y
}

/// `a` is `[T, n]`, the result `[T, k]`.
pub(super) fn nt(a: &[f64], b: &[f64], expert_of_row: &[usize], (k, n): (usize, usize)) -> Vec<f64> {
    let mut y = vec![0.0; expert_of_row.len() * k];
    for (row, &expert) in expert_of_row.iter().enumerate() {
        for i in 0..k {
            for j in 0..n {
                y[row * k + i] += a[row * n + j] * b[(expert * k + i) * n + j];
            }
        }
    }
    y
}

/// `a` is `[T, k]`, `b` is `[T, n]`, the result `[E, k, n]`.
pub(super) fn tn(
    a: &[f64],
    b: &[f64],
    expert_of_row: &[usize],
    (num_experts, k, n): (usize, usize, usize),
) -> Vec<f64> {
    let mut y = vec![0.0; num_experts * k * n];
    for (row, &expert) in expert_of_row.iter().enumerate() {
        for i in 0..k {
            for j in 0..n {
                y[(expert * k + i) * n + j] += a[row * k + i] * b[row * n + j];
            }
        }
    }
    y
}
