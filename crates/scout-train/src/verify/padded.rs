//! The padded batches of recorded files, and the way between them and flat runs: in by dropping padding, out by putting
//! rows back where they stood and blanking the rest, as the recorder did.

use scout_core::{DType, ExitCode, Mesh};
use scout_device::Tensor;
use scout_model::{Batch, Document, Target};

use super::compare::Numbers;
use crate::error::{Result, TrainError};

const IGNORED: i64 = -100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Padded {
    pub num_rows: usize,
    pub seq_len: usize,
    pub ids: Vec<i64>,
    pub labels: Vec<i64>,
    // Invariant: `lengths[row]` tokens of a row are real and come first.
    lengths: Vec<usize>,
}

fn wrong(problem: &str) -> TrainError {
    TrainError::Input { path: "recorded batch".to_string(), problem: problem.to_string(), code: ExitCode::BadData }
}

impl Padded {
    /// Fails unless all three are `[rows, seq_len]` and padding stands on the right.
    pub fn new(shape: &[usize], ids: Vec<i64>, labels: Vec<i64>, mask: Vec<i64>) -> Result<Padded> {
        let &[num_rows, seq_len] = shape else { return Err(wrong("does not have two dimensions")) };
        let num_entries = num_rows * seq_len;
        if seq_len == 0 || [ids.len(), labels.len(), mask.len()] != [num_entries; 3] {
            return Err(wrong("has ids, labels and mask of different shapes"));
        }
        if ids.iter().any(|id| u32::try_from(*id).is_err()) {
            return Err(wrong("holds a negative token id"));
        }
        let lengths: Vec<usize> =
            mask.chunks(seq_len).map(|row| row.iter().take_while(|&&real| real == 1).count()).collect();
        if mask.chunks(seq_len).zip(&lengths).any(|(row, &length)| row[length..].iter().any(|&real| real != 0)) {
            return Err(wrong("is padded elsewhere than on the right"));
        }
        Ok(Padded { num_rows, seq_len, ids, labels, lengths })
    }

    /// Fails unless every token is one of the vocabulary. Asked on all ranks about all rows: one that found out while it
    /// computes would leave the others waiting.
    pub fn inside_vocabulary(self, vocab_size: usize) -> Result<Padded> {
        let is_token = |&id: &i64| usize::try_from(id).is_ok_and(|id| id < vocab_size);
        match self.ids.iter().all(is_token) && self.labels.iter().all(|label| *label == IGNORED || is_token(label)) {
            true => Ok(self),
            false => Err(wrong(&format!("holds ids outside of the vocabulary of {vocab_size}"))),
        }
    }

    /// The rows that a rank works on: row i belongs to rank i modulo their number.
    pub fn rows_of(&self, mesh: Mesh) -> Vec<usize> {
        (mesh.rank().0..self.num_rows).step_by(mesh.size()).collect()
    }

    pub fn num_targets_of(&self, row: usize) -> usize {
        self.targets_of(row).count()
    }

    pub fn num_targets(&self) -> usize {
        (0..self.num_rows).map(|row| self.num_targets_of(row)).sum()
    }

    /// Rows `rows` as one flat batch, each target with the same weight.
    pub fn batch(&self, rows: &[usize], weight: f32, chunk_size: usize) -> Result<Batch> {
        let mut documents = Vec::new();
        let mut targets = Vec::new();
        let mut start = 0;
        for &row in rows {
            let tokens = &self.ids[row * self.seq_len..][..self.lengths[row]];
            let tokens: Vec<u32> = tokens.iter().map(|&id| id as u32).collect();
            let of_row = self.targets_of(row);
            targets.extend(of_row.map(|(t, token)| Target { row: (start + t) as u32, token, weight }));
            start += tokens.len();
            documents.push(Document { sample_id: row as u64, tokens });
        }
        Ok(Batch::new(&documents, &targets, chunk_size)?)
    }

    /// Whether the row holds exactly these tokens and labels, and nothing is scored behind them.
    pub fn row_equals(&self, row: usize, ids: &[u32], labels: &[i64]) -> bool {
        let length = self.lengths[row];
        let (row_ids, row_labels) = (&self.ids[row * self.seq_len..], &self.labels[row * self.seq_len..]);
        row_ids[..length].iter().copied().eq(ids.iter().map(|&id| i64::from(id)))
            && row_labels[..length] == *labels
            && row_labels[length..self.seq_len].iter().all(|&label| label == IGNORED)
    }

    /// Positions of a row that are scored, with the token each predicts.
    fn targets_of(&self, row: usize) -> impl Iterator<Item = (usize, u32)> {
        let labels = &self.labels[row * self.seq_len..][..self.lengths[row]];
        labels
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, label)| **label != IGNORED)
            .map(|(t, &label)| (t - 1, label as u32))
    }

    /// The other way round, for whole numbers: what stands where `rows` have tokens.
    pub fn flat(&self, rows: &[usize], padded: &[i64]) -> Result<Tensor> {
        let mut flat = Vec::new();
        self.each_token(rows, |_, padded_row| flat.push(padded.get(padded_row).copied().unwrap_or(-1)));
        let flat: Vec<u32> = flat
            .into_iter()
            .map(u32::try_from)
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| wrong("has no whole number of at least 0 for each of its tokens"))?;
        let len = flat.len();
        Ok(Tensor::from_u32(flat, [len])?)
    }

    /// Puts a flat tensor over `rows` back to `[rows, seq_len, …]`; heads come before positions, as recorded. Padding and
    /// the rows of others become 0, or -1 for whole numbers.
    pub fn spread(&self, rows: &[usize], flat: &Tensor) -> Result<Numbers> {
        let flat = flat.to_host()?;
        let dims = flat.dims();
        let width: usize = dims[1..].iter().product();
        if flat.dtype() == DType::U32 {
            let values = flat.u32s()?;
            let mut out = vec![-1; self.num_rows * self.seq_len];
            self.each_token(rows, |flat_row, padded_row| out[padded_row] = i64::from(values[flat_row]));
            return Ok(Numbers::integers(&[self.num_rows, self.seq_len], out));
        }
        let values = flat.f32s()?;
        let mut out = vec![0.0; self.num_rows * self.seq_len * width];
        if let &[_, num_heads, head_dim] = dims {
            self.each_token(rows, |flat_row, padded_row| {
                let (row, t) = (padded_row / self.seq_len, padded_row % self.seq_len);
                for head in 0..num_heads {
                    let to = ((row * num_heads + head) * self.seq_len + t) * head_dim;
                    let from = (flat_row * num_heads + head) * head_dim;
                    out[to..to + head_dim].copy_from_slice(&values[from..from + head_dim]);
                }
            });
            return Ok(Numbers::floats(&[self.num_rows, num_heads, self.seq_len, head_dim], out));
        }
        self.each_token(rows, |flat_row, padded_row| {
            out[padded_row * width..][..width].copy_from_slice(&values[flat_row * width..][..width]);
        });
        let mut shape = vec![self.num_rows, self.seq_len];
        shape.extend(&dims[1..]);
        Ok(Numbers::floats(&shape, out))
    }

    /// Token losses as recorded: `[rows, seq_len - 1]`, 0 where nothing is scored.
    pub fn spread_losses(&self, rows: &[usize], token_loss: &Tensor) -> Result<Numbers> {
        let losses = token_loss.to_host()?;
        let losses = losses.f32s()?;
        let mut out = vec![0.0; self.num_rows * (self.seq_len - 1)];
        let places = rows.iter().flat_map(|&row| self.targets_of(row).map(move |(t, _)| row * (self.seq_len - 1) + t));
        for (place, &loss) in places.zip(losses.iter()) {
            out[place] = loss;
        }
        Ok(Numbers::floats(&[self.num_rows, self.seq_len - 1], out))
    }

    fn each_token(&self, rows: &[usize], mut visit: impl FnMut(usize, usize)) {
        let mut flat_row = 0;
        for &row in rows {
            for t in 0..self.lengths[row] {
                visit(flat_row, row * self.seq_len + t);
                flat_row += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use scout_core::Rank;

    use super::*;

    #[test]
    fn padding_goes_out_and_comes_back_in_the_same_places() {
        let ids = vec![5, 6, 7, 8, 9, 0];
        let labels = vec![5, -100, 7, -100, 9, -100];
        let padded = Padded::new(&[2, 3], ids.clone(), labels.clone(), vec![1, 1, 1, 1, 1, 0]).unwrap();
        assert_eq!(padded.num_targets(), 2, "the first label of a row has no position that predicts it");
        let batch = padded.batch(&[0, 1], 0.5, 8).unwrap();
        assert_eq!(&*batch.ids.u32s().unwrap(), &[5, 6, 7, 8, 9]);
        assert_eq!(&*batch.target_rows.u32s().unwrap(), &[1, 3]);
        assert_eq!(&*batch.target_tokens.u32s().unwrap(), &[7, 9]);
        let flat = Tensor::from_f32(vec![1.0, 2.0, 3.0, 4.0, 5.0], [5, 1]).unwrap();
        assert_eq!(
            padded.spread(&[0, 1], &flat).unwrap(),
            Numbers::floats(&[2, 3, 1], vec![1.0, 2.0, 3.0, 4.0, 5.0, 0.0])
        );
        let losses = Tensor::from_f32(vec![0.25, 0.75], [2]).unwrap();
        assert_eq!(
            padded.spread_losses(&[0, 1], &losses).unwrap(),
            Numbers::floats(&[2, 2], vec![0.0, 0.25, 0.75, 0.0])
        );
        let second = Tensor::from_f32(vec![4.0, 5.0], [2, 1]).unwrap();
        assert_eq!(
            padded.spread(&[1], &second).unwrap(),
            Numbers::floats(&[2, 3, 1], vec![0.0, 0.0, 0.0, 4.0, 5.0, 0.0])
        );
        let last = Tensor::from_f32(vec![0.75], [1]).unwrap();
        assert_eq!(padded.spread_losses(&[1], &last).unwrap(), Numbers::floats(&[2, 2], vec![0.0, 0.0, 0.75, 0.0]));
        assert!(Padded::new(&[2, 3], ids.clone(), labels.clone(), vec![0, 1, 1, 1, 1, 0]).is_err());
        assert!(Padded::new(&[2, 3], ids, labels, vec![1; 5]).is_err());
    }
    #[test]
    fn ids_and_labels_outside_of_the_vocabulary_are_refused() {
        let inside = |ids: [i64; 2], labels: [i64; 2]| {
            let padded = Padded::new(&[1, 2], ids.to_vec(), labels.to_vec(), vec![1, 1]).unwrap();
            padded.inside_vocabulary(10).is_ok()
        };
        assert!(inside([9, 0], [-100, 9]));
        assert!(!inside([10, 0], [-100, 9]));
        assert!(!inside([9, 0], [-100, 10]));
        assert!(!inside([9, 0], [-100, -1]));
    }

    #[test]
    fn rows_are_dealt_one_by_one() {
        let padded = Padded::new(&[3, 1], vec![1, 2, 3], vec![1, 2, 3], vec![1, 1, 1]).unwrap();
        let of = |rank, size| padded.rows_of(Mesh::new(Rank(rank), size).unwrap());
        assert_eq!([of(0, 1), of(0, 2), of(1, 2), of(2, 3)], [vec![0, 1, 2], vec![0, 2], vec![1], vec![2]]);
        assert!(of(3, 4).is_empty());
    }
}
