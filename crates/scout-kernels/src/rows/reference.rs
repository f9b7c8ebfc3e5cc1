//! Rows, one by one.

pub(crate) fn gather(x: &[f32], index: &[u32], width: usize) -> Vec<f32> {
    index.iter().flat_map(|&row| x[row as usize * width..][..width].to_vec()).collect()
}

pub(super) fn scatter(dx: &[f32], index: &[u32], width: usize, num_rows: usize) -> Vec<f32> {
    let mut y = vec![0.0; num_rows * width];
    for (row, &target) in index.iter().enumerate() {
        for column in 0..width {
            y[target as usize * width + column] = dx[row * width + column];
        }
    }
    y
}
