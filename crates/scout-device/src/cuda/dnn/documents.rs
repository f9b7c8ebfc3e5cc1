//! Where the documents of a batch begin and how long they are, as attention's kernels read it: one run of numbers that
//! is made on the host and copied to the device once per batch.

use super::graph::ALIGNMENT;
use super::shape::{AttentionShape, Heads, SumOrder};
use crate::{DeviceError, Result};

const WHAT: &str = "documents of a batch";

/// The numbers, still on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentIndex {
    shape: AttentionShape,
    num_tokens: usize,
    values: Vec<u32>,
}

/// At which of the numbers each part begins. A part begins where a kernel may read it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexLayout {
    pub lengths: usize,
    pub query_starts: usize,
    pub kv_starts: usize,
    pub row_starts: usize,
    pub end: usize,
}

impl IndexLayout {
    pub fn of(shape: &AttentionShape) -> IndexLayout {
        let numbers_per_line = ALIGNMENT / size_of::<u32>();
        let part = |len: usize| len.next_multiple_of(numbers_per_line);
        let (lengths, starts) = (part(shape.num_slots()), part(shape.num_slots() + 1));
        IndexLayout {
            lengths: 0,
            query_starts: lengths,
            kv_starts: lengths + starts,
            row_starts: lengths + 2 * starts,
            end: lengths + 3 * starts,
        }
    }
}

impl DocumentIndex {
    /// Tokens `borders[i]..borders[i + 1]` form a document; empty ones are left out. The plan that serves them has room
    /// for more and longer documents, so that few plans serve all batches.
    pub fn new(borders: &[u32], heads: Heads, sum_order: SumOrder) -> Result<DocumentIndex> {
        let refuse = |problem: String| Err(DeviceError::Value { what: WHAT, problem });
        let (Some(&first), Some(&last)) = (borders.first(), borders.last()) else {
            return refuse("found no borders, expected at least one".to_string());
        };
        if first != 0 || !borders.is_sorted() {
            return refuse("found borders that fall or do not begin at 0, expected ascending ones".to_string());
        }
        let documents: Vec<[u32; 2]> =
            borders.windows(2).map(|pair| [pair[0], pair[1]]).filter(|[start, end]| start < end).collect();
        let longest = documents.iter().map(|[start, end]| end - start).max().unwrap_or(0);
        let shape = AttentionShape::new(heads, documents.len(), longest as usize, sum_order)?;
        let width = (heads.query * heads.size) as u64;
        if u64::from(last) * width > i32::MAX as u64 {
            let most = i32::MAX as u64 / width;
            return refuse(format!("found {last} tokens, expected at most {most}: elements are counted in 31 bits"));
        }
        let layout = IndexLayout::of(&shape);
        let mut values = vec![0; layout.end];
        for (slot, [start, end]) in documents.iter().enumerate() {
            values[layout.lengths + slot] = end - start;
        }
        let widths = [heads.query * heads.size, heads.kv * heads.size, heads.query];
        for (at, width) in [layout.query_starts, layout.kv_starts, layout.row_starts].into_iter().zip(widths) {
            for slot in 0..=shape.num_slots() {
                let start = documents.get(slot).map_or(last, |[start, _]| *start);
                values[at + slot] = start * width as u32;
            }
        }
        Ok(DocumentIndex { shape, num_tokens: last as usize, values })
    }

    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// To be copied to the device as they are.
    pub fn values(&self) -> &[u32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { query: 10, kv: 2, size: 64 };

    #[test]
    fn an_index_counts_elements_and_leaves_room_for_documents_that_are_not_there() {
        let index = DocumentIndex::new(&[0, 3, 3, 10, 300], HEADS, SumOrder::Any).unwrap();
        let layout = IndexLayout::of(index.shape());
        assert_eq!((index.shape().num_slots(), index.shape().max_length()), (4, 512));
        let part = |at: usize, len: usize| &index.values()[at..at + len];
        assert_eq!(part(layout.lengths, 4), [3, 7, 290, 0]);
        assert_eq!(part(layout.query_starts, 5), [0, 3 * 640, 10 * 640, 300 * 640, 300 * 640]);
        assert_eq!(part(layout.kv_starts, 5), [0, 3 * 128, 10 * 128, 300 * 128, 300 * 128]);
        assert_eq!(part(layout.row_starts, 5), [0, 30, 100, 3000, 3000]);
        assert_eq!((layout.query_starts % 4, layout.kv_starts % 4, layout.row_starts % 4), (0, 0, 0));
    }

    #[test]
    fn batches_of_like_size_share_a_shape() {
        let shape = |borders: &[u32]| *DocumentIndex::new(borders, HEADS, SumOrder::Any).unwrap().shape();
        assert_eq!(shape(&[0, 100, 220, 340]), shape(&[0, 1, 2, 3, 120]));
        assert_ne!(shape(&[0, 100, 220, 340]), shape(&[0, 100, 229, 340]));
        assert_eq!(shape(&[0]), shape(&[0, 128]));
    }

    #[test]
    fn borders_that_mean_nothing_are_refused() {
        for borders in [vec![], vec![1, 2], vec![0, 5, 4], vec![0, 4_000_000]] {
            assert!(DocumentIndex::new(&borders, HEADS, SumOrder::Any).is_err(), "{borders:?}");
        }
    }
}
