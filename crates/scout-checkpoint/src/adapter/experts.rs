//! The factors of stacked experts between file and memory. Pure rearrangement: no value changes.

// E experts · K rank · I input · O output · N whichever of the two faces factor B in the file
//
// Memory: a [E, K, O], b [E, I, K]. Files of PEFT 0.19.1 and later: A [E·K, O] with rows grouped by expert, which are
// the bytes of `a`, and B [I, K·E] with columns grouped by *rank*, the expert fastest. Files of 0.17.0 to 0.19.0 have
// the two sides exchanged: A [E·K, I], B [O, K·E].

use scout_core::LoraModule;

/// File B of the current layout from b [E, I, K].
pub(super) fn b_to_file(b: &[f32], module: &LoraModule, num_experts: usize) -> Vec<f32> {
    let rank = module.rank;
    let mut file = vec![0.0; b.len()];
    for (row_index, row) in b.chunks_exact(rank).enumerate() {
        let (expert, input) = (row_index / module.input, row_index % module.input);
        for (k, &value) in row.iter().enumerate() {
            file[(input * rank + k) * num_experts + expert] = value;
        }
    }
    file
}

/// b [E, I, K] from file B [I, K·E] of the current layout.
pub(super) fn b_from_file(file: &[f32], module: &LoraModule, num_experts: usize) -> Vec<f32> {
    by_expert(file, module.input, module.rank, num_experts)
}

/// a [E, K, O] from file B [O, K·E] of the old layout.
pub(super) fn a_from_old_b(file: &[f32], module: &LoraModule, num_experts: usize) -> Vec<f32> {
    transpose_each(&by_expert(file, module.output, module.rank, num_experts), module.output, module.rank)
}

/// b [E, I, K] from file A [E·K, I] of the old layout.
pub(super) fn b_from_old_a(file: &[f32], module: &LoraModule) -> Vec<f32> {
    transpose_each(file, module.rank, module.input)
}

/// [E, N, K] from [N, K·E].
fn by_expert(file: &[f32], num_rows: usize, rank: usize, num_experts: usize) -> Vec<f32> {
    let mut values = vec![0.0; file.len()];
    for (column_index, row_of_experts) in file.chunks_exact(num_experts).enumerate() {
        let (row, k) = (column_index / rank, column_index % rank);
        for (expert, &value) in row_of_experts.iter().enumerate() {
            values[(expert * num_rows + row) * rank + k] = value;
        }
    }
    values
}

/// Transposes every [rows, columns] matrix of a stack.
fn transpose_each(stack: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut values = vec![0.0; stack.len()];
    let matrices = stack.chunks_exact(rows * columns).zip(values.chunks_exact_mut(rows * columns));
    for (from, to) in matrices {
        for row in 0..rows {
            for column in 0..columns {
                to[column * rows + row] = from[row * columns + column];
            }
        }
    }
    values
}
