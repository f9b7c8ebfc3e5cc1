//! Cross entropy, row by row, with all logits at once.

/// The loss of each row.
pub(super) fn losses(x: &[f64], weight: &[f64], targets: &[u32], width: usize) -> Vec<f64> {
    let rows = x.chunks(width).zip(targets);
    rows.map(|(x, &target)| -probabilities(x, weight, width)[target as usize].ln()).collect()
}

/// The gradient of Σ weight · loss.
pub(super) fn dx(x: &[f64], weight: &[f64], targets: &[u32], weights: &[f64], width: usize) -> Vec<f64> {
    let mut dx = vec![0.0; x.len()];
    for (row, &target) in targets.iter().enumerate() {
        let probabilities = probabilities(&x[row * width..][..width], weight, width);
        for (word, probability) in probabilities.into_iter().enumerate() {
            let dlogit = weights[row] * (probability - f64::from(word == target as usize));
            for i in 0..width {
                dx[row * width + i] += dlogit * weight[word * width + i];
            }
        }
    }
    dx
}

/// The gradient of Σ weight · loss by the head.
pub(super) fn dweight(x: &[f64], weight: &[f64], targets: &[u32], weights: &[f64], width: usize) -> Vec<f64> {
    let mut dweight = vec![0.0; weight.len()];
    for (row, &target) in targets.iter().enumerate() {
        let x = &x[row * width..][..width];
        for (word, probability) in probabilities(x, weight, width).into_iter().enumerate() {
            let dlogit = weights[row] * (probability - f64::from(word == target as usize));
            for i in 0..width {
                dweight[word * width + i] += dlogit * x[i];
            }
        }
    }
    dweight
}

fn probabilities(x: &[f64], weight: &[f64], width: usize) -> Vec<f64> {
    let logits: Vec<f64> = weight.chunks(width).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect();
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    logits.iter().map(|logit| (logit - largest).exp() / sum).collect()
}
