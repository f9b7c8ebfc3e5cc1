//! Single numbers of all ranks added up: losses, counts, squares of norms.

use scout_comm::{Communicator, words};

use crate::error::Result;

/// Adds up f64 values of all ranks, in rank order, exactly alike on every rank.
pub fn sum_over_ranks<const N: usize>(comm: &dyn Communicator, values: [f64; N]) -> Result<[f64; N]> {
    let sums = each_summed_over_ranks(comm, &values)?;
    Ok(std::array::from_fn(|index| sums[index]))
}

/// The same for any number of values, equal on all ranks.
pub fn each_summed_over_ranks(comm: &dyn Communicator, values: &[f64]) -> Result<Vec<f64>> {
    let all = words::end_to_end(comm, values.iter().flat_map(|value| value.to_le_bytes()).collect())?;
    let mut sums = vec![0.0; values.len()];
    for (index, bytes) in all.as_chunks().0.iter().enumerate() {
        sums[index % values.len()] += f64::from_le_bytes(*bytes);
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scout_comm::local_group;

    use super::*;

    #[test]
    fn numbers_are_added_in_the_order_of_the_ranks_on_all_of_them() {
        // Had the large ones met first, the one beside them would survive.
        let values = [[1.0, 5.0], [1e16, 6.0], [-1e16, 7.0]];
        std::thread::scope(|scope| {
            for comm in local_group(values.len(), Duration::from_secs(20)) {
                scope.spawn(move || {
                    let own = values[comm.mesh().rank().0];
                    assert_eq!(sum_over_ranks(&comm, own).unwrap(), [0.0, 18.0]);
                    assert!(each_summed_over_ranks(&comm, &[]).unwrap().is_empty());
                });
            }
        });
    }
}
