//! Some columns of a matrix with all their rows, read where they lie: a factor of a product need not be copied out.

use candle_core as candle;
use scout_device::cuda::{Factor, Window};
use scout_device::error::InOperation;
use scout_device::{DeviceError, Tensor};

use crate::Result;

/// `count` columns from `start` on.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    pub tensor: &'a Tensor,
    pub start: usize,
    pub count: usize,
}

/// All columns.
impl<'a> From<&'a Tensor> for Columns<'a> {
    fn from(tensor: &'a Tensor) -> Columns<'a> {
        Columns { tensor, start: 0, count: tensor.dims().last().copied().unwrap_or(0) }
    }
}

impl<'a> Columns<'a> {
    /// Rows and columns; fails unless the tensor is a matrix that has these columns.
    pub(crate) fn dims(&self, what: &'static str) -> Result<(usize, usize)> {
        let (num_rows, width) = self.tensor.dims2(what)?;
        if self.start.checked_add(self.count).is_none_or(|end| end > width) {
            let expected = format!("at least {} columns from column {}", self.count, self.start);
            return Err(DeviceError::Shape { what, found: self.tensor.shape().clone(), expected });
        }
        Ok((num_rows, self.count))
    }

    /// As candle sees them: a view.
    pub(crate) fn on_host(&self) -> Result<candle::Tensor> {
        self.tensor.host()?.narrow(1, self.start, self.count).during("columns of a matrix")
    }

    /// As cuBLASLt sees them.
    pub(crate) fn on_gpu(&self, transposed: bool) -> Factor<'a> {
        let (rows, leading) = (self.tensor.dims()[0], self.tensor.dims()[1]);
        Factor {
            tensor: self.tensor,
            window: Window { start: self.start, rows, columns: self.count, leading },
            transposed,
        }
    }
}
