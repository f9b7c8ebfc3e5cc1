//! The element types of the format, by name.

use std::fmt;

use scout_core::DType;

/// An element type of the format. Files may hold types this program does not compute with: they can be measured and
/// skipped, and are refused only when they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ElementType {
    name: &'static str,
    pub(super) bits: u8,
    dtype: Option<DType>,
}

const fn element(name: &'static str, bits: u8, dtype: Option<DType>) -> ElementType {
    ElementType { name, bits, dtype }
}

const ELEMENT_TYPES: [ElementType; 22] = [
    element("F32", 32, Some(DType::F32)),
    element("BF16", 16, Some(DType::BF16)),
    element("F16", 16, Some(DType::F16)),
    element("U8", 8, Some(DType::U8)),
    element("U32", 32, Some(DType::U32)),
    element("I64", 64, Some(DType::I64)),
    element("BOOL", 8, None),
    element("I8", 8, None),
    element("I16", 16, None),
    element("U16", 16, None),
    element("I32", 32, None),
    element("U64", 64, None),
    element("F64", 64, None),
    element("C64", 64, None),
    element("F4", 4, None),
    element("F6_E2M3", 6, None),
    element("F6_E3M2", 6, None),
    element("F8_E5M2", 8, None),
    element("F8_E4M3", 8, None),
    element("F8_E8M0", 8, None),
    element("F8_E4M3FNUZ", 8, None),
    element("F8_E5M2FNUZ", 8, None),
];

impl ElementType {
    /// The type of that name in the format, `None` where the format knows none.
    pub fn named(name: &str) -> Option<ElementType> {
        ELEMENT_TYPES.into_iter().find(|element_type| element_type.name == name)
    }

    /// The same type among those this program computes with.
    pub fn dtype(self) -> Option<DType> {
        self.dtype
    }
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> ElementType {
        let same = |element_type: &ElementType| element_type.dtype == Some(dtype);
        ELEMENT_TYPES.into_iter().find(same).expect("the table has a line for every `DType`")
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}
