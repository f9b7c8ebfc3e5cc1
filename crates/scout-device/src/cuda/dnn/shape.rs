//! What a plan is made for, and how tensors of that shape lie in memory.

use super::graph::{BF16, F32, Form, TensorId};
use crate::{DeviceError, Result};

/// Whether sums over many blocks may be added up in the order in which the blocks happen to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SumOrder {
    Any,
    /// The same bits every time; takes `slots · heads · max_length²` more elements of memory.
    Fixed,
}

/// Heads of one attention. Query head `i` uses key and value head `i / (query / kv)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heads {
    pub query: usize,
    pub kv: usize,
    pub size: usize,
}

/// The key of a plan. Documents lie one behind the other, each `[tokens, heads, size]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    heads: Heads,
    slots: usize,
    max_length: usize,
    sum_order: SumOrder,
}

/// Lengths below this share one plan: it is the height of a tile.
const SHORTEST: usize = 128;

impl AttentionShape {
    /// For up to `documents` documents of up to `longest` tokens; both are rounded up, so that few plans serve all
    /// batches. What a document does not fill costs almost nothing.
    pub fn new(heads: Heads, documents: usize, longest: usize, sum_order: SumOrder) -> Result<AttentionShape> {
        if heads.kv == 0 || heads.query == 0 || !heads.query.is_multiple_of(heads.kv) {
            let problem = format!("found {} query heads and {} key heads, expected a multiple", heads.query, heads.kv);
            return Err(DeviceError::Value { what: "attention heads", problem });
        }
        if !matches!(heads.size, 64 | 128) {
            let problem = format!("found head size {}, expected 64 or 128", heads.size);
            return Err(DeviceError::Value { what: "attention heads", problem });
        }
        let slots = documents.max(1).next_power_of_two();
        let max_length = longest.max(SHORTEST).next_power_of_two();
        Ok(AttentionShape { heads, slots, max_length, sum_order })
    }

    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// How many documents there is room for.
    pub fn num_slots(&self) -> usize {
        self.slots
    }

    /// How many tokens the longest document may have.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    pub fn sum_order(&self) -> SumOrder {
        self.sum_order
    }

    pub(super) fn slots(&self) -> i64 {
        self.slots as i64
    }

    pub(super) fn shares_keys(&self) -> bool {
        self.heads.query != self.heads.kv
    }

    pub(super) fn query_dims(&self) -> [i64; 4] {
        self.dims(self.heads.query)
    }

    pub(super) fn score_dims(&self) -> [i64; 4] {
        let length = self.max_length as i64;
        [self.slots(), self.heads.query as i64, length, length]
    }

    pub(super) fn row_dims(&self) -> [i64; 4] {
        [self.slots(), self.heads.query as i64, self.max_length as i64, 1]
    }

    /// Scores with rows and columns exchanged, in place.
    pub(super) fn transposed_score_form(&self) -> Form {
        Form::dense(BF16, self.score_dims()).transposed()
    }

    pub(super) fn query_form(&self, starts: TensorId) -> Form {
        self.packed(self.heads.query, starts)
    }

    pub(super) fn kv_form(&self, starts: TensorId) -> Form {
        self.packed(self.heads.kv, starts)
    }

    /// As many heads as queries have, started by the starts of k and v: cuDNN multiplies those by the ratio of the
    /// row strides.
    pub(super) fn kv_form_of_query_heads(&self, kv_starts: TensorId) -> Form {
        self.packed(self.heads.query, kv_starts)
    }

    /// One f32 for each token and query head.
    pub(super) fn row_form(&self, starts: TensorId) -> Form {
        let heads = self.heads.query as i64;
        let strides = [heads * self.max_length as i64, 1, heads, 1];
        Form { element: F32, dims: self.row_dims(), strides, starts: Some(starts) }
    }

    fn packed(&self, heads: usize, starts: TensorId) -> Form {
        let (size, width) = (self.heads.size as i64, (heads * self.heads.size) as i64);
        let strides = [self.max_length as i64 * width, size, width, 1];
        Form { element: BF16, dims: self.dims(heads), strides, starts: Some(starts) }
    }

    fn dims(&self, heads: usize) -> [i64; 4] {
        [self.slots(), heads as i64, self.max_length as i64, self.heads.size as i64]
    }
}
