//! RMS norm, element by element.

/// `y` and the inverse rms of each row.
pub(super) fn forward(x: &[f64], weight: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut inverse_rms) = (Vec::new(), Vec::new());
    for x in x.chunks(weight.len()) {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + epsilon).sqrt();
        inverse_rms.push(r);
        y.extend(x.iter().zip(weight).map(|(x, w)| x * r * w));
    }
    (y, inverse_rms)
}

pub(super) fn backward(dy: &[f64], x: &[f64], inverse_rms: &[f64], weight: &[f64]) -> Vec<f64> {
    let width = weight.len();
    let mut dx = vec![0.0; x.len()];
    for (row, &r) in inverse_rms.iter().enumerate() {
        let at = |column: usize| row * width + column;
        let mean = (0..width).map(|c| dy[at(c)] * weight[c] * x[at(c)]).sum::<f64>() / width as f64;
        for c in 0..width {
            dx[at(c)] = r * (dy[at(c)] * weight[c] - x[at(c)] * r * r * mean);
        }
    }
    dx
}

pub(super) fn weight_gradient(dy: &[f64], x: &[f64], inverse_rms: &[f64], width: usize) -> Vec<f64> {
    let mut dweight = vec![0.0; width];
    for (row, &r) in inverse_rms.iter().enumerate() {
        for (column, dweight) in dweight.iter_mut().enumerate() {
            *dweight += dy[row * width + column] * x[row * width + column] * r;
        }
    }
    dweight
}
