//! What ranks of a benchmark tell each other: whether they go on, and what each of them found.

use scout_comm::{Job, Pending};
use scout_core::{DType, Rank};
use scout_device::Buffer;
use scout_train::TrainError;

/// Why reading what another rank told cannot fail.
pub const OWN_WORDS: &str = "ranks of one version write what they read";

/// What the first rank wants to do: ranks that step together must also stop together.
pub fn goes_on(job: &Job, wants: bool) -> Result<bool, TrainError> {
    Ok(of_first_rank(job, [u8::from(wants)])? == [1])
}

/// What the first rank gave.
pub fn of_first_rank<const N: usize>(job: &Job, own: [u8; N]) -> Result<[u8; N], TrainError> {
    let told = job.comm.broadcast(Rank(0), Buffer::from_u8(own.to_vec())).and_then(Pending::wait)?;
    Ok(told.u8s()?.try_into().expect("as many bytes as were given"))
}

/// What every rank tells, by rank.
pub fn by_rank(job: &Job, own: &str) -> Result<Vec<String>, TrainError> {
    let lens = all_bytes(job, (own.len() as u64).to_le_bytes().to_vec())?;
    let lens: Vec<usize> =
        lens.chunks_exact(8).map(|len| u64::from_le_bytes(len.try_into().expect("chunks of eight")) as usize).collect();
    // A gather takes equally much from all; nobody may have nothing to give.
    let room = lens.iter().copied().max().unwrap_or(0).max(1);
    let mut told = own.as_bytes().to_vec();
    told.resize(room, 0);
    let all = all_bytes(job, told)?;
    let text = |(told, &len): (&[u8], &usize)| String::from_utf8_lossy(&told[..len]).into_owned();
    Ok(all.chunks_exact(room).zip(&lens).map(text).collect())
}

fn all_bytes(job: &Job, own: Vec<u8>) -> Result<Vec<u8>, TrainError> {
    let all = Buffer::zeros(DType::U8, own.len() * job.mesh().size())?;
    let all = job.comm.all_gather(&Buffer::from_u8(own), all).and_then(Pending::wait)?;
    Ok(all.u8s()?.to_vec())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scout_comm::local_group;

    use super::*;

    #[test]
    fn texts_of_any_length_arrive_whole_in_the_order_of_the_ranks() {
        let words = ["", "ä", "a longer one"];
        std::thread::scope(|scope| {
            for comm in local_group(words.len(), Duration::from_secs(20)) {
                scope.spawn(move || {
                    let job = Job::over(comm);
                    let own = words[job.mesh().rank().0];
                    assert_eq!(by_rank(&job, own).unwrap(), words);
                    assert_eq!(by_rank(&job, "").unwrap(), ["", "", ""]);
                    // Only what the first rank wants counts.
                    assert!(goes_on(&job, job.mesh().is_first()).unwrap());
                    assert!(!goes_on(&job, !job.mesh().is_first()).unwrap());
                });
            }
        });
    }
}
