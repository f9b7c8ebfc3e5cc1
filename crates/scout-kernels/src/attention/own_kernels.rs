//! What our own kernels have in common, plain ones and those on matrix units.

use scout_device::cuda::Argument;
use scout_device::{DeviceError, Tensor};

use super::heads::Heads;
use crate::Result;
use crate::cuda::count;

/// The widest head of our own kernels.
const WIDEST: usize = 128;

/// Columns of a kernel's tiles for heads of `size`.
pub(super) fn columns(size: usize) -> Result<u32> {
    match size {
        0..=16 => Ok(16),
        17..=64 => Ok(64),
        65..=WIDEST => Ok(128),
        _ => {
            let problem = format!("found heads of {size}, expected at most {WIDEST} on a GPU");
            Err(DeviceError::Value { what: "attention", problem })
        }
    }
}

/// The last arguments of every kernel.
pub(super) fn shape_arguments(heads: Heads) -> Result<[Argument<'static>; 4]> {
    let count = |number| count("attention: heads", number).map(Argument::U32);
    Ok([count(heads.query)?, count(heads.kv)?, count(heads.size)?, Argument::F32(heads.scale)])
}

/// How many tiles there are.
pub(super) fn num_tiles(tiles: &Tensor) -> Result<u32> {
    count("attention: tiles", tiles.dims()[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_go_to_the_narrowest_tiles_that_hold_them() {
        for (size, expected) in
            [(1, Some(16)), (16, Some(16)), (17, Some(64)), (65, Some(128)), (128, Some(128)), (129, None)]
        {
            assert_eq!(columns(size).ok(), expected, "{size}");
        }
    }
}
