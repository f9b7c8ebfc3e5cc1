//! Small runs of bytes that all ranks tell each other. What they mean, numbers or text, is known by who asks; weights and
//! gradients do not travel here.

use scout_core::{DType, Rank};
use scout_device::Buffer;

use crate::communicator::Communicator;
use crate::error::Result;

/// What every rank gave, by rank.
pub fn of_all_ranks<const N: usize>(comm: &dyn Communicator, own: [u8; N]) -> Result<Vec<[u8; N]>> {
    Ok(end_to_end(comm, own.to_vec())?.as_chunks().0.to_vec())
}

/// What the first rank gave.
pub fn of_first_rank<const N: usize>(comm: &dyn Communicator, own: [u8; N]) -> Result<[u8; N]> {
    let first = comm.broadcast(Rank(0), Buffer::from_u8(own.to_vec()))?.wait()?;
    Ok(first.u8s()?.try_into().expect("as many as were given"))
}

/// What every rank gave, by rank; lengths may differ.
pub fn of_any_length(comm: &dyn Communicator, mut own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    let lens = of_all_ranks(comm, (own.len() as u64).to_le_bytes())?;
    let lens: Vec<usize> = lens.into_iter().map(|len| u64::from_le_bytes(len) as usize).collect();
    // Collectives take equal parts, so all are as long as the longest.
    let longest = lens.iter().copied().max().unwrap_or(0);
    if longest == 0 {
        return Ok(vec![Vec::new(); lens.len()]);
    }
    own.resize(longest, 0);
    let all = end_to_end(comm, own)?;
    Ok(all.chunks_exact(longest).zip(lens).map(|(part, len)| part[..len].to_vec()).collect())
}

/// What all ranks gave, one behind the other in their order. All must give equally much.
pub fn end_to_end(comm: &dyn Communicator, own: Vec<u8>) -> Result<Vec<u8>> {
    let all = Buffer::zeros(DType::U8, own.len() * comm.mesh().size())?;
    let all = comm.all_gather(&Buffer::from_u8(own), all)?.wait()?;
    Ok(all.u8s()?.to_vec())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::local::{LocalCommunicator, local_group};

    /// What each of three ranks returns.
    pub(crate) fn on_ranks<T: Send>(of_rank: impl Fn(&LocalCommunicator) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let group = local_group(3, Duration::from_secs(20));
            let ranks: Vec<_> = group.into_iter().map(|comm| scope.spawn(|| of_rank(&{ comm }))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_hears_what_all_ranks_told() {
        let told = on_ranks(|comm| {
            let rank = comm.mesh().rank().0 as u8;
            (
                of_all_ranks(comm, [rank, 7]).unwrap(),
                of_first_rank(comm, [rank + 40]).unwrap(),
                end_to_end(comm, vec![rank, 9]).unwrap(),
            )
        });
        let expected = (vec![[0, 7], [1, 7], [2, 7]], [40], vec![0, 9, 1, 9, 2, 9]);
        assert!(told.iter().all(|told| *told == expected), "{told:?}");
    }

    #[test]
    fn words_of_different_lengths_arrive_as_they_were_given() {
        let told = on_ranks(|comm| {
            let rank = comm.mesh().rank().0;
            (of_any_length(comm, vec![7; 2 * rank]).unwrap(), of_any_length(comm, Vec::new()).unwrap())
        });
        for (words, nothing) in told {
            assert_eq!(words, [vec![], vec![7; 2], vec![7; 4]]);
            assert_eq!(nothing, vec![Vec::<u8>::new(); 3]);
        }
    }
}
