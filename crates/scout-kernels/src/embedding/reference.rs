//! The gradient of the embedding, token by token.

pub(super) fn weight_gradient(dx: &[f64], ids: &[u32], (vocabulary, width): (usize, usize)) -> Vec<f64> {
    let mut dweight = vec![0.0; vocabulary * width];
    for (token, &id) in ids.iter().enumerate() {
        for column in 0..width {
            dweight[id as usize * width + column] += dx[token * width + column];
        }
    }
    dweight
}
