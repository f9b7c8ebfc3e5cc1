//! Checks that several contracts share. What passes them may be trusted by the code below a contract.

use std::sync::Arc;

use scout_device::cuda::CudaDevice;
use scout_device::{DeviceError, Tensor};

use crate::Result;

/// A refusal of values, where shapes and element types are right.
pub(crate) fn refusal(what: &'static str, problem: String) -> DeviceError {
    DeviceError::Value { what, problem }
}

/// Fails unless `offsets` begin at 0, never fall and end at `num_rows`.
pub(crate) fn offsets(what: &'static str, offsets: &[u32], num_rows: usize) -> Result<()> {
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
        return Err(refusal(what, "found no offsets, expected at least the 0 they begin with".to_string()));
    };
    if first != 0 || last as usize != num_rows || !offsets.is_sorted() {
        let expected = format!("offsets that rise from 0 to {num_rows}");
        return Err(refusal(
            what,
            format!("found {} offsets from {first} to {last}, expected {expected}", offsets.len()),
        ));
    }
    Ok(())
}

/// Fails when an index is not below `limit`.
pub(crate) fn indices(what: &'static str, indices: &[u32], limit: usize) -> Result<()> {
    match indices.iter().position(|&index| index as usize >= limit) {
        None => Ok(()),
        Some(at) => {
            Err(refusal(what, format!("found index {} at position {at}, expected one below {limit}", indices[at])))
        }
    }
}

/// The GPU on which all of `tensors` lie, or none when all lie on the host. Fails when they are apart.
pub(crate) fn place<'a>(what: &'static str, tensors: &[&'a Tensor]) -> Result<Option<&'a Arc<CudaDevice>>> {
    let place = tensors[0].cuda();
    for tensor in tensors {
        let is_same = match (place, tensor.cuda()) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if !is_same {
            let name = |place: Option<&Arc<CudaDevice>>| match place {
                None => "the host".to_string(),
                Some(device) => format!("{device:?}"),
            };
            return Err(DeviceError::Place { what, found: name(tensor.cuda()), expected: name(place) });
        }
    }
    Ok(place)
}

/// Fails unless both have the same shape.
pub(crate) fn same_dims(what: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    b.expect_dims(what, a.dims())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_rise_from_zero_to_the_number_of_rows() {
        for (found, num_rows, expected) in [
            (&[0u32, 2, 2, 5][..], 5, true),
            (&[0], 0, true),
            (&[0, 0], 0, true),
            (&[], 0, false),
            (&[1, 5], 5, false),
            (&[0, 4], 5, false),
            (&[0, 3, 2, 5], 5, false),
        ] {
            assert_eq!(offsets("test", found, num_rows).is_ok(), expected, "{found:?}");
        }
    }
}
