//! A shaped, read-only look at memory on one device. On the host the memory is candle's, so its matrix products run
//! on it without a copy. Cloning a tensor, or taking rows of it, shares the memory.

use std::ops::Deref;

use candle_core as candle;
use scout_core::{DType, Shape};

use crate::error::InOperation;
use crate::{DeviceError, Result};

#[derive(Debug, Clone)]
pub struct Tensor {
    // Invariant: always contiguous and row-major, so that a slice of its elements is the tensor.
    host: candle::Tensor,
    shape: Shape,
    dtype: DType,
}

impl Tensor {
    /// Takes over `values`. Fails when their number is not that of the shape.
    pub fn from_f32(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
        Tensor::from_values(values, shape.into(), DType::F32)
    }

    pub fn from_u32(values: Vec<u32>, shape: impl Into<Shape>) -> Result<Tensor> {
        Tensor::from_values(values, shape.into(), DType::U32)
    }

    fn from_values<E: candle::WithDType>(values: Vec<E>, shape: Shape, dtype: DType) -> Result<Tensor> {
        if values.len() != shape.num_elements() {
            return Err(DeviceError::Shape {
                what: "tensor from values",
                expected: format!("{} elements", values.len()),
                found: shape,
            });
        }
        let host = candle::Tensor::from_vec(values, shape.dims(), &candle::Device::Cpu).during("tensor from values")?;
        Ok(Tensor { host, shape, dtype })
    }

    pub fn zeros_f32(shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        Tensor::from_f32(vec![0.0; shape.num_elements()], shape)
    }

    /// Wraps the result of host arithmetic; makes it contiguous if it is a strided view.
    pub fn from_host(host: candle::Tensor) -> Result<Tensor> {
        let dtype = match host.dtype() {
            candle::DType::F32 => DType::F32,
            candle::DType::U32 => DType::U32,
            other => {
                return Err(DeviceError::Host {
                    what: "tensor from host arithmetic",
                    cause: candle::Error::Msg(format!("element type {other:?} is not used here")),
                });
            }
        };
        let host = host.contiguous().during("tensor from host arithmetic")?;
        let shape = Shape::from(host.dims());
        Ok(Tensor { host, shape, dtype })
    }

    /// The tensor as candle sees it, for host arithmetic.
    pub fn host(&self) -> &candle::Tensor {
        &self.host
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn num_elements(&self) -> usize {
        self.shape.num_elements()
    }

    /// Rows and columns; fails for anything but two dimensions.
    pub fn dims2(&self, what: &'static str) -> Result<(usize, usize)> {
        match *self.dims() {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(DeviceError::Shape { what, found: self.shape.clone(), expected: "two dimensions".to_string() }),
        }
    }

    pub fn dims3(&self, what: &'static str) -> Result<(usize, usize, usize)> {
        match *self.dims() {
            [a, b, c] => Ok((a, b, c)),
            _ => Err(DeviceError::Shape { what, found: self.shape.clone(), expected: "three dimensions".to_string() }),
        }
    }

    /// Fails unless the shape is exactly `expected`.
    pub fn expect_dims(&self, what: &'static str, expected: &[usize]) -> Result<()> {
        if self.dims() == expected {
            return Ok(());
        }
        Err(DeviceError::Shape { what, found: self.shape.clone(), expected: format!("{expected:?}") })
    }

    /// The same elements under another shape, sharing the memory.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.num_elements() != self.num_elements() {
            return Err(DeviceError::Shape {
                what: "reshape",
                expected: format!("{} elements", self.num_elements()),
                found: shape,
            });
        }
        let host = self.host.reshape(shape.dims()).during("reshape")?;
        Ok(Tensor { host, shape, dtype: self.dtype })
    }

    /// `count` entries of the first dimension from `start`, sharing the memory.
    pub fn rows(&self, start: usize, count: usize) -> Result<Tensor> {
        let host = self.host.narrow(0, start, count).during("rows of a tensor")?;
        let shape = Shape::from(host.dims());
        Ok(Tensor { host, shape, dtype: self.dtype })
    }

    /// The elements, row by row, without a copy. Fails when they are not f32.
    pub fn f32s(&self) -> Result<impl Deref<Target = [f32]> + '_> {
        let (storage, layout) = self.host.storage_and_layout();
        let (start, len) = (layout.start_offset(), self.num_elements());
        let is_f32 = matches!(&*storage, candle::Storage::Cpu(candle::CpuStorage::F32(_)));
        if !is_f32 {
            return Err(DeviceError::DType { what: "elements of a tensor", found: self.dtype, expected: DType::F32 });
        }
        Ok(Elements { storage, start, len, select: select_f32 })
    }

    /// The elements, row by row, without a copy. Fails when they are not u32.
    pub fn u32s(&self) -> Result<impl Deref<Target = [u32]> + '_> {
        let (storage, layout) = self.host.storage_and_layout();
        let (start, len) = (layout.start_offset(), self.num_elements());
        let is_u32 = matches!(&*storage, candle::Storage::Cpu(candle::CpuStorage::U32(_)));
        if !is_u32 {
            return Err(DeviceError::DType { what: "elements of a tensor", found: self.dtype, expected: DType::U32 });
        }
        Ok(Elements { storage, start, len, select: select_u32 })
    }

    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Ok(self.f32s()?.to_vec())
    }
}

/// A read lock on candle's storage together with the part of it that belongs to one tensor.
struct Elements<G, E> {
    storage: G,
    start: usize,
    len: usize,
    select: fn(&candle::Storage) -> &[E],
}

impl<G: Deref<Target = candle::Storage>, E> Deref for Elements<G, E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &(self.select)(&self.storage)[self.start..self.start + self.len]
    }
}

fn select_f32(storage: &candle::Storage) -> &[f32] {
    match storage {
        candle::Storage::Cpu(candle::CpuStorage::F32(values)) => values,
        _ => &[],
    }
}

fn select_u32(storage: &candle::Storage) -> &[u32] {
    match storage {
        candle::Storage::Cpu(candle::CpuStorage::U32(values)) => values,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_reshapes_share_memory_and_read_the_right_elements() {
        let x = Tensor::from_f32((0..12).map(|i| i as f32).collect(), [4, 3]).unwrap();
        let middle = x.rows(1, 2).unwrap();
        assert_eq!(&*middle.f32s().unwrap(), &[3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let flat = middle.reshape([6]).unwrap();
        assert_eq!(&*flat.f32s().unwrap(), &*middle.f32s().unwrap());
        assert!(x.rows(3, 2).is_err());
        assert!(x.reshape([5]).is_err());
        assert!(x.u32s().is_err());
        assert!(Tensor::from_f32(vec![0.0; 5], [2, 3]).is_err());
    }
}
