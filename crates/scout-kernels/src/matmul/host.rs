//! Products by candle. Transposing is a change of strides; no factor is copied.

use candle_core as candle;
use scout_device::Tensor;
use scout_device::error::InOperation;

use crate::Result;

pub(crate) fn nn(a: &candle::Tensor, b: &candle::Tensor) -> Result<Tensor> {
    Tensor::from_host(a.matmul(b).during("matmul")?)
}

pub(crate) fn nt(a: &candle::Tensor, b: &candle::Tensor) -> Result<Tensor> {
    nn(a, &b.t().during("matmul")?)
}

pub(crate) fn tn(a: &candle::Tensor, b: &candle::Tensor) -> Result<Tensor> {
    nn(&a.t().during("matmul")?, b)
}
