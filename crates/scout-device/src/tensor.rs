//! A shaped, read-only look at memory on one device. On the host the memory is candle's, so its matrix products run
//! on it without a copy. Cloning a tensor, or taking rows of it, shares the memory. Nothing moves between devices but
//! by `to_host`, and what `cuda/transfers.rs` adds.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use candle_core as candle;
use half::bf16;
use scout_core::{ByteCount, DType, Shape};

use crate::cuda::device::CudaDevice;
use crate::cuda::region::{Region, read};
use crate::device::Device;
use crate::error::InOperation;
use crate::{DeviceError, Result};

#[derive(Debug, Clone)]
pub struct Tensor {
    // Invariant: always contiguous and row-major, so that a slice of its elements is the tensor.
    storage: Storage,
    shape: Shape,
    dtype: DType,
}

#[derive(Clone)]
enum Storage {
    Host(candle::Tensor),
    Device(Region),
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Host(host) => host.fmt(f),
            Storage::Device(region) => write!(f, "on {:?}", region.device),
        }
    }
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
        Ok(Tensor { storage: Storage::Host(host), shape, dtype })
    }

    /// `region` holds as many elements as the shape has.
    pub(crate) fn on_device(region: Region, shape: Shape, dtype: DType) -> Tensor {
        Tensor { storage: Storage::Device(region), shape, dtype }
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
        Ok(Tensor { storage: Storage::Host(host), shape, dtype })
    }

    /// The tensor as candle sees it, for host arithmetic. Fails when it lies on a GPU.
    pub fn host(&self) -> Result<&candle::Tensor> {
        match &self.storage {
            Storage::Host(host) => Ok(host),
            Storage::Device(region) => Err(elsewhere("host arithmetic", "the host", &region.device)),
        }
    }

    /// The GPU on which the elements lie, or none when they lie on the host.
    pub fn cuda(&self) -> Option<&Arc<CudaDevice>> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Device(region) => Some(&region.device),
        }
    }

    pub fn device(&self) -> Device {
        self.cuda().map_or(Device::Cpu, |device| Device::Cuda(device.clone()))
    }

    pub(crate) fn region(&self, what: &'static str) -> Result<&Region> {
        match &self.storage {
            Storage::Device(region) => Ok(region),
            Storage::Host(_) => Err(on_host(what)),
        }
    }

    pub(crate) fn into_region(self, what: &'static str) -> Result<Region> {
        match self.storage {
            Storage::Device(region) => Ok(region),
            Storage::Host(_) => Err(on_host(what)),
        }
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

    pub fn bytes(&self) -> ByteCount {
        self.dtype.size() * self.num_elements() as u64
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
        let storage = match &self.storage {
            Storage::Host(host) => Storage::Host(host.reshape(shape.dims()).during("reshape")?),
            Storage::Device(region) => Storage::Device(region.clone()),
        };
        Ok(Tensor { storage, shape, dtype: self.dtype })
    }

    /// `count` entries of the first dimension from `start`, sharing the memory.
    pub fn rows(&self, start: usize, count: usize) -> Result<Tensor> {
        let (&num_rows, others) = self.dims().split_first().ok_or_else(|| self.no_rows(start, count))?;
        if start.checked_add(count).is_none_or(|end| end > num_rows) {
            return Err(self.no_rows(start, count));
        }
        let storage = match &self.storage {
            Storage::Host(host) => Storage::Host(host.narrow(0, start, count).during("rows of a tensor")?),
            Storage::Device(region) => {
                let before = self.dtype.size() * (start * others.iter().product::<usize>()) as u64;
                Storage::Device(Region { start: region.start + before.0, ..region.clone() })
            }
        };
        let shape = Shape([&[count], others].concat());
        Ok(Tensor { storage, shape, dtype: self.dtype })
    }

    fn no_rows(&self, start: usize, count: usize) -> DeviceError {
        let expected = format!("at least {count} rows from row {start}");
        DeviceError::Shape { what: "rows of a tensor", found: self.shape.clone(), expected }
    }

    /// The elements, row by row, without a copy. Fails when they are not f32, or lie on a GPU.
    pub fn f32s(&self) -> Result<impl Deref<Target = [f32]> + '_> {
        let (storage, layout) = self.host()?.storage_and_layout();
        let (start, len) = (layout.start_offset(), self.num_elements());
        let is_f32 = matches!(&*storage, candle::Storage::Cpu(candle::CpuStorage::F32(_)));
        if !is_f32 {
            return Err(DeviceError::DType { what: "elements of a tensor", found: self.dtype, expected: DType::F32 });
        }
        Ok(Elements { storage, start, len, select: select_f32 })
    }

    /// The elements, row by row, without a copy. Fails when they are not u32, or lie on a GPU.
    pub fn u32s(&self) -> Result<impl Deref<Target = [u32]> + '_> {
        let (storage, layout) = self.host()?.storage_and_layout();
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

    /// The same elements on the host; bf16 becomes f32, in which the host computes. Waits for the GPU until everything
    /// queued before is done. A tensor that is there already shares its memory.
    pub fn to_host(&self) -> Result<Tensor> {
        let region = match &self.storage {
            Storage::Host(_) => return Ok(self.clone()),
            Storage::Device(region) => region,
        };
        let (len, shape) = (self.num_elements(), self.shape.clone());
        match self.dtype {
            DType::F32 => Tensor::from_f32(read(region, len)?, shape),
            DType::U32 => Tensor::from_u32(read(region, len)?, shape),
            DType::BF16 => Tensor::from_f32(read(region, len)?.into_iter().map(bf16::to_f32).collect(), shape),
            found => Err(DeviceError::DType { what: "tensor to the host", found, expected: DType::F32 }),
        }
    }
}

fn on_host(what: &'static str) -> DeviceError {
    DeviceError::Place { what, found: "the host".to_string(), expected: "a GPU".to_string() }
}

/// The error for a tensor that lies on `found`.
pub(crate) fn elsewhere(what: &'static str, expected: &str, found: &CudaDevice) -> DeviceError {
    DeviceError::Place { what, found: format!("{found:?}"), expected: expected.to_string() }
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
