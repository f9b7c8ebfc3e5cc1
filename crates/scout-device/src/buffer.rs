//! Owned, flat, writable memory of one element type: what shards, optimizer states and messages are made of.
//! It has no shape; a [`Tensor`] is a shaped look at memory that nobody writes any more.

use std::ops::Range;

use half::bf16;
use scout_core::{ByteCount, DType, Shape};

use crate::tensor::Tensor;
use crate::{DeviceError, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    memory: Memory,
}

#[derive(Debug, Clone, PartialEq)]
enum Memory {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    U8(Vec<u8>),
}

impl Buffer {
    /// `len` zeros on the host. Fails for an element type that buffers do not hold.
    pub fn zeros(dtype: DType, len: usize) -> Result<Buffer> {
        let memory = match dtype {
            DType::F32 => Memory::F32(vec![0.0; len]),
            DType::BF16 => Memory::BF16(vec![bf16::ZERO; len]),
            DType::U8 => Memory::U8(vec![0; len]),
            found => return Err(DeviceError::DType { what: "buffer", found, expected: DType::F32 }),
        };
        Ok(Buffer { memory })
    }

    pub fn from_f32(values: Vec<f32>) -> Buffer {
        Buffer { memory: Memory::F32(values) }
    }

    pub fn from_u8(values: Vec<u8>) -> Buffer {
        Buffer { memory: Memory::U8(values) }
    }

    pub fn dtype(&self) -> DType {
        match &self.memory {
            Memory::F32(_) => DType::F32,
            Memory::BF16(_) => DType::BF16,
            Memory::U8(_) => DType::U8,
        }
    }

    pub fn len(&self) -> usize {
        match &self.memory {
            Memory::F32(values) => values.len(),
            Memory::BF16(values) => values.len(),
            Memory::U8(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> ByteCount {
        self.dtype().size() * self.len() as u64
    }

    pub fn f32s(&self) -> Result<&[f32]> {
        match &self.memory {
            Memory::F32(values) => Ok(values),
            _ => Err(self.not(DType::F32)),
        }
    }

    pub fn f32s_mut(&mut self) -> Result<&mut [f32]> {
        let found = self.dtype();
        match &mut self.memory {
            Memory::F32(values) => Ok(values),
            _ => Err(DeviceError::DType { what: "buffer", found, expected: DType::F32 }),
        }
    }

    pub fn u8s(&self) -> Result<&[u8]> {
        match &self.memory {
            Memory::U8(values) => Ok(values),
            _ => Err(self.not(DType::U8)),
        }
    }

    /// The memory of elements `range`, as it lies.
    pub fn bytes_of(&self, range: Range<usize>) -> &[u8] {
        match &self.memory {
            Memory::F32(values) => bytemuck::cast_slice(&values[range]),
            Memory::BF16(values) => bytemuck::cast_slice(&values[range]),
            Memory::U8(values) => &values[range],
        }
    }

    /// All of the memory, to be written as it lies: every pattern of bits is some value of these element types.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::F32(values) => bytemuck::cast_slice_mut(values),
            Memory::BF16(values) => bytemuck::cast_slice_mut(values),
            Memory::U8(values) => values,
        }
    }

    /// A copy of elements `range`.
    pub fn part(&self, range: Range<usize>) -> Result<Buffer> {
        let mut part = Buffer::zeros(self.dtype(), range.len())?;
        part.bytes_mut().copy_from_slice(self.bytes_of(range));
        Ok(part)
    }

    /// Copies `source` into `start..start + source.len()`. Both must hold the same element type.
    pub fn copy_from(&mut self, start: usize, source: &Buffer) -> Result<()> {
        let end = start + source.len();
        if end > self.len() {
            return Err(DeviceError::Shape {
                what: "copy between buffers",
                found: Shape::from([source.len()]),
                expected: format!("at most {} elements", self.len().saturating_sub(start)),
            });
        }
        match (&mut self.memory, &source.memory) {
            (Memory::F32(to), Memory::F32(from)) => to[start..end].copy_from_slice(from),
            (Memory::BF16(to), Memory::BF16(from)) => to[start..end].copy_from_slice(from),
            (Memory::U8(to), Memory::U8(from)) => to[start..end].copy_from_slice(from),
            _ => return Err(source.not(self.dtype())),
        }
        Ok(())
    }

    /// Gives the memory over to a one-dimensional tensor without copying it.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self.memory {
            Memory::F32(values) => {
                let len = values.len();
                Tensor::from_f32(values, [len])
            }
            _ => Err(self.not(DType::F32)),
        }
    }

    /// A shaped copy of `start..`, for values that go on changing after the tensor was made.
    pub fn tensor(&self, start: usize, shape: Shape) -> Result<Tensor> {
        let values = self.f32s()?;
        let end = start + shape.num_elements();
        if end > values.len() {
            return Err(DeviceError::Shape {
                what: "part of a buffer",
                found: shape,
                expected: format!("at most {} elements", values.len().saturating_sub(start)),
            });
        }
        Tensor::from_f32(values[start..end].to_vec(), shape)
    }

    fn not(&self, expected: DType) -> DeviceError {
        DeviceError::DType { what: "buffer", found: self.dtype(), expected }
    }
}
