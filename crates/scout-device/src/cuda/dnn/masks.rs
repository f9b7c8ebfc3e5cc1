//! Scores that do not count: those past the end of a document, and those of columns after the row's own.

use cudarc::cudnn::sys;
use sys::cudnnPointwiseMode_t as Mode;

use super::graph::{GraphBuilder, TensorId};
use super::inputs::Inputs;
use crate::Result;

const ROWS: i64 = 2;
const COLUMNS: i64 = 3;

/// Hides rows and columns past the end of each document.
pub(super) fn hide_padding(graph: &mut GraphBuilder, scores: TensorId, inputs: Inputs) -> Result<TensorId> {
    let row = graph.position("row", ROWS, scores)?;
    let column = graph.position("column", COLUMNS, scores)?;
    let row_exists = graph.binary("row exists", Mode::CUDNN_POINTWISE_CMP_LT, row, inputs.lengths)?;
    let column_exists = graph.binary("column exists", Mode::CUDNN_POINTWISE_CMP_LT, column, inputs.lengths)?;
    let both = graph.binary("row and column exist", Mode::CUDNN_POINTWISE_LOGICAL_AND, row_exists, column_exists)?;
    graph.select("scores without padding", both, scores, inputs.hidden)
}

/// Hides the columns after each row's own.
pub(super) fn hide_later_columns(graph: &mut GraphBuilder, scores: TensorId, inputs: Inputs) -> Result<TensorId> {
    let row = graph.position("row again", ROWS, scores)?;
    let column = graph.position("column again", COLUMNS, scores)?;
    let seen = graph.binary("column is not later", Mode::CUDNN_POINTWISE_CMP_GE, row, column)?;
    graph.select("scores without later columns", seen, scores, inputs.hidden)
}
