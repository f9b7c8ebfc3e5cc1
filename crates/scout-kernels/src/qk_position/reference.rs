//! Rotation, head norm and temperature, element by element. Angles are f32 products, as the contract says.

/// Turns every pair of every head forward (`sign` 1) or back (−1).
pub(super) fn rotate(x: &[f64], positions: &[u32], frequencies: &[f32], num_heads: usize, sign: f64) -> Vec<f64> {
    let size = 2 * frequencies.len();
    let mut y = vec![0.0; x.len()];
    for (token, &position) in positions.iter().enumerate() {
        for head in 0..num_heads {
            for (pair, &frequency) in frequencies.iter().enumerate() {
                let at = (token * num_heads + head) * size + 2 * pair;
                let angle = sign * f64::from(position as f32 * frequency);
                y[at] = x[at] * angle.cos() - x[at + 1] * angle.sin();
                y[at + 1] = x[at] * angle.sin() + x[at + 1] * angle.cos();
            }
        }
    }
    y
}

/// Each run of `size` divided by the root of its mean square, and the factors.
pub(super) fn normalise(x: &[f64], size: usize, epsilon: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut inverse_rms) = (Vec::new(), Vec::new());
    for x in x.chunks(size) {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / size as f64 + epsilon).sqrt();
        y.extend(x.iter().map(|x| x * r));
        inverse_rms.push(r);
    }
    (y, inverse_rms)
}

/// From the result, not the input.
pub(super) fn backward_of_normalise(dy: &[f64], y: &[f64], inverse_rms: &[f64]) -> Vec<f64> {
    let size = y.len() / inverse_rms.len().max(1);
    let mut dx = Vec::new();
    for (head, &r) in inverse_rms.iter().enumerate() {
        let (dy, y) = (&dy[head * size..][..size], &y[head * size..][..size]);
        let mean = dy.iter().zip(y).map(|(dy, y)| dy * y).sum::<f64>() / size as f64;
        dx.extend(dy.iter().zip(y).map(|(dy, y)| r * (dy - y * mean)));
    }
    dx
}

pub(super) fn temperature(position: u32, attn_scale: f64, floor_scale: f64) -> f64 {
    1.0 + attn_scale * (1.0 + ((f64::from(position) + 1.0) / floor_scale).floor()).ln()
}
