//! By cuDNN where it takes the element type and the heads, else by our own kernels.

use std::sync::Arc;

use scout_core::DType;
use scout_device::Tensor;
use scout_device::cuda::{CudaDevice, attention, dnn};

use super::heads::Heads;
use super::results::{Attended, QkvGradients};
use super::segments::Segments;
use super::{matrix_units, plain};
use crate::Result;
use crate::cuda::{expect_dtype, same_dtype};

/// cuDNN, where it is there and takes such heads.
fn by_cudnn(device: &CudaDevice, dtype: DType, size: usize) -> Option<&dnn::Attention> {
    if suits_cudnn(dtype, size) { device.attention().ok() } else { None }
}

pub(super) fn suits_cudnn(dtype: DType, size: usize) -> bool {
    dtype == DType::BF16 && matches!(size, 64 | 128)
}

impl Heads {
    fn of_cudnn(self) -> dnn::Heads {
        dnn::Heads { query: self.query, kv: self.kv, size: self.size }
    }
}

pub(super) fn forward(
    device: &Arc<CudaDevice>,
    qkv: [&Tensor; 3],
    segments: &Segments,
    heads: Heads,
) -> Result<Attended> {
    const WHAT: &str = "attention";
    let dtype = same_dtype(WHAT, &qkv)?;
    if let Some(attention) = by_cudnn(device, dtype, heads.size) {
        let documents = segments.documents(device, heads.of_cudnn())?;
        let attention::Attended { context, log_sum_exp } = attention.forward(qkv, &documents, heads.scale)?;
        return Ok(Attended { context, log_sum_exp });
    }
    own_forward(device, qkv, segments, heads)
}

/// By our own kernels, whatever cuDNN could do.
pub(super) fn own_forward(
    device: &Arc<CudaDevice>,
    qkv: [&Tensor; 3],
    segments: &Segments,
    heads: Heads,
) -> Result<Attended> {
    const WHAT: &str = "attention";
    if same_dtype(WHAT, &qkv)? == DType::BF16 {
        return matrix_units::forward(device, qkv, segments, heads);
    }
    expect_dtype(WHAT, qkv[0], DType::F32)?;
    plain::forward(device, qkv, segments, heads)
}

pub(super) fn backward(
    device: &Arc<CudaDevice>,
    dcontext: &Tensor,
    qkv: [&Tensor; 3],
    attended: &Attended,
    (segments, heads): (&Segments, Heads),
) -> Result<QkvGradients> {
    if let Some(attention) = by_cudnn(device, qkv[0].dtype(), heads.size) {
        must_fit(dcontext, qkv, attended)?;
        let documents = segments.documents(device, heads.of_cudnn())?;
        let scratch = dnn::backward_scratch(documents.shape(), documents.num_tokens());
        if scratch <= dnn::most_scratch(device.sum_order()) {
            let attended =
                attention::Attended { context: attended.context.clone(), log_sum_exp: attended.log_sum_exp.clone() };
            let found = attention.backward(dcontext, qkv, &attended, &documents, heads.scale)?;
            return Ok(QkvGradients { dq: found.dq, dk: found.dk, dv: found.dv });
        }
    }
    own_backward(device, dcontext, qkv, attended, (segments, heads))
}

/// By our own kernels, whatever cuDNN could do.
pub(super) fn own_backward(
    device: &Arc<CudaDevice>,
    dcontext: &Tensor,
    qkv: [&Tensor; 3],
    attended: &Attended,
    (segments, heads): (&Segments, Heads),
) -> Result<QkvGradients> {
    if must_fit(dcontext, qkv, attended)? == DType::BF16 {
        return matrix_units::backward(device, dcontext, qkv, attended, (segments, heads));
    }
    expect_dtype("attention backward", dcontext, DType::F32)?;
    plain::backward(device, dcontext, qkv, attended, (segments, heads))
}

/// The element type of all but one.
fn must_fit(dcontext: &Tensor, [q, k, v]: [&Tensor; 3], attended: &Attended) -> Result<DType> {
    const WHAT: &str = "attention backward";
    expect_dtype(WHAT, &attended.log_sum_exp, DType::F32)?;
    same_dtype(WHAT, &[dcontext, q, k, v, &attended.context])
}
