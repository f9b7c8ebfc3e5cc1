//! A tensor as the copy engine of 9.0 sees it: a kernel names a part by its place, and the engine brings it to shared
//! memory, with zeros for what lies outside.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};
use scout_core::DType;

use super::device::CudaDevice;
use crate::tensor::Tensor;
use crate::{DeviceError, Result};

const WHAT: &str = "map of a tensor for the copy engine";
/// What addresses and distances must be a multiple of.
const ALIGNMENT: u64 = 16;
const LARGEST_RANK: usize = 3;

/// A tensor of bf16, to be read in parts of one shape. A line of a part is at most 128 bytes, and lines are swizzled over
/// 128 bytes, as matrix units want them.
pub struct TensorMap<'a> {
    tensor: &'a Tensor,
    raw: CUtensorMap,
}

impl<'a> TensorMap<'a> {
    /// Whether the copy engine can read `tensor`.
    pub fn fits(tensor: &Tensor) -> bool {
        let Ok(region) = tensor.region(WHAT) else { return false };
        let dims = tensor.dims();
        let lines_fit = dims.last().is_some_and(|&width| (2 * width as u64).is_multiple_of(ALIGNMENT));
        tensor.dtype() == DType::BF16
            && (1..=LARGEST_RANK).contains(&dims.len())
            && dims.iter().all(|&extent| extent > 0 && u32::try_from(extent).is_ok())
            && lines_fit
            && region.address().is_multiple_of(ALIGNMENT)
    }

    /// `part` has the dimensions of the tensor, in the same order. Fails for what the driver does not take.
    pub fn new(device: &CudaDevice, tensor: &'a Tensor, part: &[u32]) -> Result<TensorMap<'a>> {
        let rank = part.len();
        if !TensorMap::fits(tensor) || rank != tensor.dims().len() {
            let problem = format!("found {} of {} in parts of {part:?}", tensor.shape(), tensor.dtype());
            return Err(DeviceError::Value { what: WHAT, problem });
        }
        // The driver counts dimensions from the innermost one, and distances from the second of them.
        let (mut extents, mut strides, mut parts) = ([1u64; LARGEST_RANK], [0u64; LARGEST_RANK], [1u32; LARGEST_RANK]);
        let mut stride = tensor.dtype().size().0;
        for (at, (&extent, &part)) in tensor.dims().iter().zip(part).rev().enumerate() {
            (extents[at], parts[at]) = (extent as u64, part);
            stride *= extent as u64;
            strides[at] = stride;
        }
        let steps = [1u32; LARGEST_RANK];
        let mut raw = CUtensorMap { opaque: [0; 16] };
        let context = device.context();
        let driver = context.driver()?;
        // SAFETY: writes one map; reads `rank` extents, parts and steps, and one distance less, of arrays that have more.
        // Of the address only the number is kept.
        let code = unsafe {
            (driver.cuTensorMapEncodeTiled)(
                &mut raw,
                CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                rank as u32,
                tensor.region(WHAT)?.address() as *mut c_void,
                extents.as_ptr(),
                strides.as_ptr(),
                parts.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        context.check("cuTensorMapEncodeTiled", code)?;
        Ok(TensorMap { tensor, raw })
    }

    pub(super) fn tensor(&self) -> &Tensor {
        self.tensor
    }

    /// What the kernel gets.
    pub(super) fn words(&self) -> &[u64; 16] {
        &self.raw.opaque
    }
}
