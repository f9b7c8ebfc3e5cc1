//! What becomes of the parts of all ranks: laid one behind the other, or summed in the order of the ranks, so that every
//! backend gives the same bits.

use std::sync::Arc;

use scout_device::Buffer;

use crate::error::Result;

/// Rank 0's part first, then rank 1's, and so on.
pub(crate) fn concatenated(given: &[Arc<Buffer>], mut full: Buffer) -> Result<Buffer> {
    let mut start = 0;
    for part in given {
        full.copy_from(start, part)?;
        start += part.len();
    }
    Ok(full)
}

/// The sum of everybody's elements from `start` on.
pub(crate) fn summed(given: &[Arc<Buffer>], start: usize, mut sum: Buffer) -> Result<Buffer> {
    let values = sum.f32s_mut()?;
    let range = start..start + values.len();
    for (rank, buffer) in given.iter().enumerate() {
        let part = &buffer.f32s()?[range.clone()];
        if rank == 0 {
            values.copy_from_slice(part);
        } else {
            values.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok(sum)
}
