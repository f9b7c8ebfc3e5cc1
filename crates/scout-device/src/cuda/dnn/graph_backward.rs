//! The backward pass as cuDNN's attention engines recognise it. The probabilities are made again from the scores and
//! their log sum exp; like the forward pass, this is a pattern and not free arithmetic.

use cudarc::cudnn::sys;
use sys::cudnnPointwiseMode_t as Mode;
use sys::cudnnReduceTensorOp_t as Reduce;

use super::api::Api;
use super::graph::{Extents, F32, Form, GraphBuilder, Place, TensorId};
use super::inputs::Inputs;
use super::masks::{hide_later_columns, hide_padding};
use super::shape::{AttentionShape, SumOrder};
use crate::Result;

/// What must be bound to an address when the graph runs.
pub(super) struct BackwardTensors {
    pub inputs: Inputs,
    pub q: TensorId,
    pub k: TensorId,
    pub v: TensorId,
    pub context: TensorId,
    pub log_sum_exp: TensorId,
    pub dcontext: TensorId,
    pub one: TensorId,
    pub dq: TensorId,
    pub dk: TensorId,
    pub dv: TensorId,
    /// `dcontext · context` of each row, handed from the first kernel to the second.
    pub row_sums: TensorId,
    /// Sums of dq in f32, added to by many blocks at once; absent where the order of sums must not change.
    pub dq_sums: Option<TensorId>,
    /// dk and dv of every query head, before those that share a key head are added up; absent where none do.
    pub dk_per_query_head: Option<TensorId>,
    pub dv_per_query_head: Option<TensorId>,
}

pub(super) fn build(api: Api, shape: &AttentionShape) -> Result<(GraphBuilder, BackwardTensors)> {
    let mut graph = GraphBuilder::new(api, "the backward graph");
    let tensors = declare(&mut graph, shape)?;
    sum_rows(&mut graph, shape, &tensors)?;
    let probabilities = probabilities(&mut graph, shape, &tensors)?;
    value_gradients(&mut graph, shape, &tensors, probabilities)?;
    let dscores = score_gradients(&mut graph, shape, &tensors, probabilities)?;
    key_gradients(&mut graph, shape, &tensors, dscores)?;
    query_gradients(&mut graph, &tensors, dscores)?;
    Ok((graph, tensors))
}

fn declare(graph: &mut GraphBuilder, shape: &AttentionShape) -> Result<BackwardTensors> {
    let inputs = Inputs::declare(graph, shape)?;
    let query = shape.query_form(inputs.query_starts);
    let kv = shape.kv_form(inputs.kv_starts);
    let row = shape.row_form(inputs.row_starts);
    let per_query_head = shape.kv_form_of_query_heads(inputs.kv_starts);
    let mut shared = |name| shape.shares_keys().then(|| graph.tensor(name, Place::Memory, per_query_head)).transpose();
    let dk_per_query_head = shared("dk of query heads")?;
    let dv_per_query_head = shared("dv of query heads")?;
    let mut memory = |name, form| graph.tensor(name, Place::Memory, form);
    let dq_sums = match shape.sum_order() {
        SumOrder::Any => Some(memory("sums of dq", query.of(F32))?),
        SumOrder::Fixed => None,
    };
    Ok(BackwardTensors {
        inputs,
        log_sum_exp: memory("log sum exp", row)?,
        dcontext: memory("dcontext", query)?,
        context: memory("context", query)?,
        v: memory("v", kv.transposed())?,
        k: memory("k", kv.transposed())?,
        q: memory("q", query)?,
        dv: memory("dv", kv)?,
        dk: memory("dk", kv)?,
        dq: memory("dq", query)?,
        row_sums: memory("row sums", row)?,
        one: graph.tensor("one", Place::Value, Form::one(F32))?,
        dq_sums,
        dk_per_query_head,
        dv_per_query_head,
    })
}

/// `dcontext · context`, which is what the softmax takes off every gradient of a row.
fn sum_rows(graph: &mut GraphBuilder, shape: &AttentionShape, tensors: &BackwardTensors) -> Result<()> {
    let [slots, heads, rows, size] = shape.query_dims();
    let interleaved = [heads * rows * size, rows * size, heads * size, 1];
    let form = Form { strides: interleaved, ..Form::dense(F32, shape.query_dims()) };
    let products = graph.inside("dcontext × context", form)?;
    let operands = [Some(tensors.dcontext), Some(tensors.context), None];
    graph.pointwise("dcontext × context", Mode::CUDNN_POINTWISE_MUL, operands, products)?;
    let sums = graph.inside("dcontext · context", Form::dense(F32, [slots, heads, rows, 1]))?;
    graph.reduce("dcontext · context", Reduce::CUDNN_REDUCE_TENSOR_ADD, products, sums)?;
    // Where dropout would be undone; there is none.
    graph.pointwise("row sums", Mode::CUDNN_POINTWISE_MUL, [Some(sums), Some(tensors.one), None], tensors.row_sums)
}

fn probabilities(graph: &mut GraphBuilder, shape: &AttentionShape, tensors: &BackwardTensors) -> Result<TensorId> {
    let lengths = tensors.inputs.lengths;
    let products = graph.inside("q·kᵀ", Form::dense(F32, shape.score_dims()))?;
    let extents = Extents { rows: Some(lengths), columns: Some(lengths), inner: None };
    graph.matmul("q·kᵀ", tensors.q, tensors.k, products, extents)?;
    let scores = graph.binary("scores", Mode::CUDNN_POINTWISE_MUL, products, tensors.inputs.scale)?;
    let scores = hide_padding(graph, scores, tensors.inputs)?;
    let lowered = graph.binary("scores under log sum exp", Mode::CUDNN_POINTWISE_SUB, scores, tensors.log_sum_exp)?;
    let lowered = hide_later_columns(graph, lowered, tensors.inputs)?;
    graph.unary("probabilities", Mode::CUDNN_POINTWISE_EXP, lowered)
}

fn value_gradients(
    graph: &mut GraphBuilder,
    shape: &AttentionShape,
    tensors: &BackwardTensors,
    probabilities: TensorId,
) -> Result<()> {
    let transposed = graph.reshape("probabilitiesᵀ", probabilities, shape.transposed_score_form())?;
    let product = tensors.dv_per_query_head.unwrap_or(tensors.dv);
    graph.matmul("probabilitiesᵀ·dcontext", transposed, tensors.dcontext, product, over_rows(tensors))?;
    match tensors.dv_per_query_head {
        Some(heads) => graph.reduce("dv", Reduce::CUDNN_REDUCE_TENSOR_ADD, heads, tensors.dv),
        None => Ok(()),
    }
}

fn score_gradients(
    graph: &mut GraphBuilder,
    shape: &AttentionShape,
    tensors: &BackwardTensors,
    probabilities: TensorId,
) -> Result<TensorId> {
    let lengths = tensors.inputs.lengths;
    let dprobabilities = graph.inside("dcontext·vᵀ", Form::dense(F32, shape.score_dims()))?;
    let extents = Extents { rows: Some(lengths), columns: Some(lengths), inner: None };
    graph.matmul("dcontext·vᵀ", tensors.dcontext, tensors.v, dprobabilities, extents)?;
    let centred = graph.binary("less the row sums", Mode::CUDNN_POINTWISE_SUB, dprobabilities, tensors.row_sums)?;
    let weighted = graph.binary("times probabilities", Mode::CUDNN_POINTWISE_MUL, centred, probabilities)?;
    graph.binary("dscores", Mode::CUDNN_POINTWISE_MUL, weighted, tensors.inputs.scale)
}

fn key_gradients(
    graph: &mut GraphBuilder,
    shape: &AttentionShape,
    tensors: &BackwardTensors,
    dscores: TensorId,
) -> Result<()> {
    let transposed = graph.reshape("dscoresᵀ", dscores, shape.transposed_score_form())?;
    let product = tensors.dk_per_query_head.unwrap_or(tensors.dk);
    graph.matmul("dscoresᵀ·q", transposed, tensors.q, product, over_rows(tensors))?;
    match tensors.dk_per_query_head {
        Some(heads) => graph.reduce("dk", Reduce::CUDNN_REDUCE_TENSOR_ADD, heads, tensors.dk),
        None => Ok(()),
    }
}

fn query_gradients(graph: &mut GraphBuilder, tensors: &BackwardTensors, dscores: TensorId) -> Result<()> {
    let keys = graph.form(tensors.k).transposed().of(F32);
    let keys = graph.reshape("k, row by row", tensors.k, keys)?;
    let product = tensors.dq_sums.unwrap_or(tensors.dq);
    graph.matmul("dscores·k", dscores, keys, product, over_rows(tensors))?;
    match tensors.dq_sums {
        Some(sums) => graph.pointwise("dq", Mode::CUDNN_POINTWISE_IDENTITY, [Some(sums), None, None], tensors.dq),
        None => Ok(()),
    }
}

/// Products whose rows and inner elements are tokens of a document.
fn over_rows(tensors: &BackwardTensors) -> Extents {
    Extents { rows: Some(tensors.inputs.lengths), columns: None, inner: Some(tensors.inputs.lengths) }
}
