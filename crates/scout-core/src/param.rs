//! What is stored: element types, shapes, one parameter, and the unit in which parameters travel together.

use std::fmt;

use crate::bytes::ByteCount;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    BF16,
    F16,
    U8,
    U32,
    I64,
}

impl DType {
    pub fn size(self) -> ByteCount {
        ByteCount(match self {
            DType::U8 => 1,
            DType::BF16 | DType::F16 => 2,
            DType::F32 | DType::U32 => 4,
            DType::I64 => 8,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::U8 => "u8",
            DType::U32 => "u32",
            DType::I64 => "i64",
        })
    }
}

/// Extents of a dense row-major tensor; the empty shape is a scalar.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape(pub Vec<usize>);

impl Shape {
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    pub fn num_elements(&self) -> usize {
        self.0.iter().product()
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Shape {
        Shape(dims.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Shape {
        Shape(dims.to_vec())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// One parameter of the model: its name in the checkpoint and the shape it has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    pub name: String,
    pub shape: Shape,
}

impl ParamSpec {
    pub fn new(name: impl Into<String>, shape: impl Into<Shape>) -> ParamSpec {
        ParamSpec { name: name.into(), shape: shape.into() }
    }

    pub fn num_elements(&self) -> usize {
        self.shape.num_elements()
    }
}

/// Position of a unit in the model's list of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub usize);

/// Parameters that are gathered, used and released together: a part of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitSpec {
    pub id: UnitId,
    /// Short name for tables and messages: `layers.17.gate_up`.
    pub name: String,
    pub params: Vec<ParamSpec>,
}

impl UnitSpec {
    pub fn num_elements(&self) -> usize {
        self.params.iter().map(ParamSpec::num_elements).sum()
    }

    pub fn bytes(&self, dtype: DType) -> ByteCount {
        dtype.size() * self.num_elements() as u64
    }
}
