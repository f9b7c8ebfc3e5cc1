//! What ranks of a benchmark tell each other: whether they go on, and what each of them found.

use scout_comm::{Job, words};
use scout_train::TrainError;

/// Why reading what another rank told cannot fail.
pub const OWN_WORDS: &str = "ranks of one version write what they read";

/// What the first rank wants to do: ranks that step together must also stop together.
pub fn goes_on(job: &Job, wants: bool) -> Result<bool, TrainError> {
    Ok(words::of_first_rank(&*job.comm, [u8::from(wants)])? == [1])
}

/// What every rank tells, by rank.
pub fn by_rank(job: &Job, own: &str) -> Result<Vec<String>, TrainError> {
    let told = words::of_any_length(&*job.comm, own.as_bytes().to_vec())?;
    Ok(told.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect())
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
