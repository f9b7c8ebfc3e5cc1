//! SwiGLU, element by element.

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn forward(gate_up: &[f64], width: usize) -> Vec<f64> {
    let mut h = Vec::new();
    for row in gate_up.chunks(2 * width) {
        h.extend((0..width).map(|i| row[i] * sigmoid(row[i]) * row[width + i]));
    }
    h
}

pub(super) fn backward(dh: &[f64], gate_up: &[f64], width: usize) -> Vec<f64> {
    let mut gradient = Vec::new();
    for (row, dh) in gate_up.chunks(2 * width).zip(dh.chunks(width)) {
        let (gate, up) = row.split_at(width);
        let slope = |g: f64| sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g)));
        gradient.extend((0..width).map(|i| dh[i] * up[i] * slope(gate[i])));
        gradient.extend((0..width).map(|i| dh[i] * gate[i] * sigmoid(gate[i])));
    }
    gradient
}
