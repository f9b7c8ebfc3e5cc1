//! The forward pass as cuDNN's attention engines recognise it: `softmax(scale · q·kᵀ)·v`, where a row sees the columns
//! up to its own that belong to its document. Which operations there are, their order and their element types are a
//! pattern that the engines look for; arithmetic that means the same but is written otherwise is refused.

use cudarc::cudnn::sys;
use sys::cudnnPointwiseMode_t as Mode;
use sys::cudnnReduceTensorOp_t as Reduce;

use super::api::Api;
use super::graph::{BF16, Extents, F32, Form, GraphBuilder, Place, TensorId};
use super::inputs::Inputs;
use super::masks::{hide_later_columns, hide_padding};
use super::shape::AttentionShape;
use crate::Result;

/// What must be bound to an address when the graph runs.
pub(super) struct ForwardTensors {
    pub inputs: Inputs,
    pub q: TensorId,
    pub k: TensorId,
    pub v: TensorId,
    pub context: TensorId,
    pub log_sum_exp: TensorId,
}

pub(super) fn build(api: Api, shape: &AttentionShape) -> Result<(GraphBuilder, ForwardTensors)> {
    let mut graph = GraphBuilder::new(api, "the forward graph");
    let tensors = declare(&mut graph, shape)?;
    let rows_by_columns = Form::dense(F32, shape.score_dims());
    let one_per_row = Form::dense(F32, shape.row_dims());
    let lengths = tensors.inputs.lengths;

    let products = graph.inside("q·kᵀ", rows_by_columns)?;
    let extents = Extents { rows: Some(lengths), columns: Some(lengths), inner: None };
    graph.matmul("q·kᵀ", tensors.q, tensors.k, products, extents)?;
    let scores = graph.binary("scores", Mode::CUDNN_POINTWISE_MUL, products, tensors.inputs.scale)?;
    let scores = hide_padding(&mut graph, scores, tensors.inputs)?;
    let scores = hide_later_columns(&mut graph, scores, tensors.inputs)?;

    let largest = graph.inside("largest score", one_per_row)?;
    graph.reduce("largest score", Reduce::CUDNN_REDUCE_TENSOR_MAX, scores, largest)?;
    let lowered = graph.binary("scores under the largest", Mode::CUDNN_POINTWISE_SUB, scores, largest)?;
    let powers = graph.unary("powers", Mode::CUDNN_POINTWISE_EXP, lowered)?;
    let sum = graph.inside("sum of powers", one_per_row)?;
    graph.reduce("sum of powers", Reduce::CUDNN_REDUCE_TENSOR_ADD, powers, sum)?;
    let logarithm = graph.unary("logarithm of the sum", Mode::CUDNN_POINTWISE_LOG, sum)?;
    let operands = [Some(largest), Some(logarithm), None];
    graph.pointwise("log sum exp", Mode::CUDNN_POINTWISE_ADD, operands, tensors.log_sum_exp)?;
    let probabilities = graph.inside("probabilities", rows_by_columns.of(BF16))?;
    graph.pointwise("probabilities", Mode::CUDNN_POINTWISE_DIV, [Some(powers), Some(sum), None], probabilities)?;

    let extents = Extents { rows: Some(lengths), columns: None, inner: Some(lengths) };
    graph.matmul("probabilities·v", probabilities, tensors.v, tensors.context, extents)?;
    Ok((graph, tensors))
}

fn declare(graph: &mut GraphBuilder, shape: &AttentionShape) -> Result<ForwardTensors> {
    let inputs = Inputs::declare(graph, shape)?;
    let query = shape.query_form(inputs.query_starts);
    let kv = shape.kv_form(inputs.kv_starts);
    let row = shape.row_form(inputs.row_starts);
    Ok(ForwardTensors {
        inputs,
        q: graph.tensor("q", Place::Memory, query)?,
        k: graph.tensor("k", Place::Memory, kv.transposed())?,
        v: graph.tensor("v", Place::Memory, kv)?,
        log_sum_exp: graph.tensor("log sum exp", Place::Memory, row)?,
        context: graph.tensor("context", Place::Memory, query)?,
    })
}
