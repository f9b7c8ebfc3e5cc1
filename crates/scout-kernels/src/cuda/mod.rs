//! What the GPU paths of all ops share: the kernels as they are built in, and small decisions about grids. How to write
//! one stands at the top of the crate.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::{CudaDevice, Kernel, KernelSource};
use scout_device::{DeviceError, Tensor};

use crate::Result;

/// Every `kernel.cu` under the name of its folder, every `other.cu` under both names, and `ALL` of them; written by the
/// build script.
pub(crate) mod sources {
    use scout_device::cuda::{Image, KernelSource};

    const HEADERS: &[(&str, &str)] =
        &[("prelude.cuh", include_str!("prelude.cuh")), ("squares.cuh", include_str!("squares.cuh"))];

    /// Machine code begins where a number of 16 bytes could.
    #[allow(dead_code, reason = "there is none where the program is built without CUDA's compiler")]
    #[repr(C, align(16))]
    struct Aligned<T: ?Sized>(T);

    #[allow(unused_macros, reason = "as above")]
    macro_rules! aligned {
        ($path:expr) => {{
            static CODE: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
            &CODE.0
        }};
    }

    include!(concat!(env!("OUT_DIR"), "/sources.rs"));
}

/// The kernel for elements of `dtype`, out of the names of the one for f32 and the one for bf16.
pub(crate) fn kernel(
    device: &CudaDevice,
    source: &'static KernelSource,
    dtype: DType,
    [for_f32, for_bf16]: [&'static str; 2],
) -> Result<Arc<Kernel>> {
    let name = match dtype {
        DType::F32 => for_f32,
        DType::BF16 => for_bf16,
        found => return Err(DeviceError::DType { what: for_f32, found, expected: DType::BF16 }),
    };
    device.kernel(source, name)
}

/// Fails unless all have the element type of the first.
pub(crate) fn same_dtype(what: &'static str, tensors: &[&Tensor]) -> Result<DType> {
    let expected = tensors[0].dtype();
    match tensors.iter().find(|tensor| tensor.dtype() != expected) {
        None => Ok(expected),
        Some(other) => Err(DeviceError::DType { what, found: other.dtype(), expected }),
    }
}

pub(crate) fn expect_dtype(what: &'static str, tensor: &Tensor, expected: DType) -> Result<()> {
    match tensor.dtype() {
        found if found == expected => Ok(()),
        found => Err(DeviceError::DType { what, found, expected }),
    }
}

/// A number for a kernel that counts rows or columns in 32 bits.
pub(crate) fn count(what: &'static str, number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| DeviceError::Value {
        what,
        problem: format!("found {number} rows or columns, expected fewer than 2³²"),
    })
}

/// One block for each row: how many threads, if each is to move `vectors` of 16 bytes of a row. Whole warps.
pub(crate) fn threads_for_row(width: usize, dtype: DType, vectors: usize) -> u32 {
    let num_vectors = (width * dtype.size().0 as usize).div_ceil(16);
    let threads = num_vectors.div_ceil(vectors).next_multiple_of(32);
    threads.clamp(32, 512) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_for_rows_are_whole_warps_that_share_the_row() {
        for (width, dtype, vectors, expected) in [
            (5120, DType::BF16, 2, 320),
            (5120, DType::F32, 2, 512),
            (8192, DType::BF16, 4, 256),
            (1, DType::BF16, 2, 32),
            (0, DType::F32, 2, 32),
            (130, DType::F32, 1, 64),
            (1 << 20, DType::BF16, 2, 512),
        ] {
            assert_eq!(threads_for_row(width, dtype, vectors), expected, "{width} {dtype} {vectors}");
        }
    }

    #[test]
    fn every_kernel_is_built_in_with_its_text() {
        for source in sources::ALL {
            assert!(source.text.starts_with("//"), "{}", source.name);
            assert_eq!(source.headers.len(), 2);
            for image in source.images {
                assert_eq!(&image.code[..4], b"\x7fELF", "{}", source.name);
                assert_eq!(image.code.as_ptr().align_offset(16), 0);
            }
        }
    }
}
