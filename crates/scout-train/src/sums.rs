//! Single numbers of all ranks added up: losses, counts, squares of norms.

use scout_comm::Communicator;
use scout_core::DType;
use scout_device::Buffer;

use crate::error::Result;

/// Adds up f64 values of all ranks, in rank order, exactly alike on every rank.
pub fn sum_over_ranks<const N: usize>(comm: &dyn Communicator, values: [f64; N]) -> Result<[f64; N]> {
    let sums = sums_over_ranks(comm, &values)?;
    Ok(std::array::from_fn(|index| sums[index]))
}

/// The same for any number of values, equal on all ranks.
pub fn sums_over_ranks(comm: &dyn Communicator, values: &[f64]) -> Result<Vec<f64>> {
    let own: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let all = Buffer::zeros(DType::U8, own.len() * comm.mesh().size())?;
    let all = comm.all_gather(&Buffer::from_u8(own), all)?.wait()?;
    let mut sums = vec![0.0; values.len()];
    for (index, bytes) in all.u8s()?.chunks_exact(8).enumerate() {
        sums[index % values.len()] += f64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    Ok(sums)
}
