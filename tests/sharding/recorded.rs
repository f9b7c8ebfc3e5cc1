//! Recorded reference numbers, computed sharded by any number of ranks: the same rows, all of them within their
//! tolerances, and every rank with no more of the weights than its shard.

use std::sync::LazyLock;

use scout_core::ByteCount;
use scout_tests::fixtures;
use scout_train::verify::{Holding, Row, Status, Verdict, verify_on_threads};
use scout_train::ways::Experts;

const WORLDS: [usize; 5] = [1, 2, 3, 4, 8];

fn names(rows: &[Row]) -> Vec<(String, String, Status)> {
    rows.iter().map(|row| (row.group.clone(), row.quantity.clone(), row.status)).collect()
}

static TEXT: LazyLock<Vec<(usize, Verdict)>> = LazyLock::new(|| verdicts("tiny-scout"));

fn verdicts(folder: &str) -> Vec<(usize, Verdict)> {
    let folder = fixtures().join(folder);
    WORLDS
        .iter()
        .map(|&world_size| (world_size, verify_on_threads(&folder, world_size, Holding::default()).unwrap()))
        .collect()
}

#[test]
fn every_number_of_ranks_passes_the_same_rows() {
    for (folder, num_ok, verdicts) in
        [("tiny-scout", 414, &*TEXT), ("tiny-scout-vision", 4, &verdicts("tiny-scout-vision"))]
    {
        let alone = names(&verdicts[0].1.all_rows());
        let count = |status| alone.iter().filter(|(.., found)| *found == status).count();
        assert!(count(Status::Ok) >= num_ok && count(Status::Fail) == 0, "{folder}: {alone:?}");
        for (world_size, verdict) in verdicts {
            assert_eq!(names(&verdict.all_rows()), alone, "{folder} on {world_size}");
            assert_eq!(verdict.ranks.len(), *world_size);
            let read: ByteCount = verdict.ranks.iter().map(|rank| rank.read).sum();
            assert_eq!(read, verdicts[0].1.ranks[0].read, "{folder} on {world_size}: all ranks together read it once");
            let whole = verdicts[0].1.ranks[0].shard.as_f64();
            for rank in &verdict.ranks {
                let share = rank.shard.as_f64() / whole * *world_size as f64;
                assert!((1.0..1.02).contains(&share), "{folder} on {world_size}: {rank:?}");
                assert_eq!(rank.gathered.0 > 0, *world_size > 1, "{folder} on {world_size}: {rank:?}");
                assert!(rank.gathered.as_f64() < whole / 2.0, "{folder} on {world_size}: {rank:?}");
            }
        }
    }
}

#[test]
fn rows_that_go_to_experts_of_other_ranks_pass_the_same_rows() {
    let (folder, holding) = (fixtures().join("tiny-scout"), Holding { experts: Experts::Stay, ..Holding::default() });
    for (world_size, gathered) in TEXT.iter().filter(|(world_size, _)| [1, 2, 4].contains(world_size)) {
        let verdict = verify_on_threads(&folder, *world_size, holding).unwrap();
        assert_eq!(names(&verdict.all_rows()), names(&gathered.all_rows()), "{world_size} ranks");
        let most = |of: &Verdict| of.ranks.iter().map(|rank| rank.gathered).max().unwrap();
        assert!(*world_size == 1 || most(&verdict) < most(gathered), "experts are not gathered");
    }
    let refused = verify_on_threads(&folder, 3, holding).unwrap().all_rows();
    let why = refused.iter().find(|row| row.status == Status::Fail).unwrap();
    assert!(why.detail.contains("which 3 ranks cannot share equally"), "{why:?}");
}

#[test]
fn what_ranks_compute_together_is_not_what_one_computed_alone() {
    // Sums over ranks are taken in another order than sums over rows: equal bits everywhere would mean that somebody
    // computed all rows.
    let numbers = |verdict: &Verdict| -> Vec<_> {
        let training = verdict.groups.iter().filter(|group| group.name.starts_with("training"));
        training.map(|group| group.computed.clone()).collect()
    };
    let [(_, alone), (_, two), ..] = &TEXT[..] else { panic!("two verdicts at least") };
    assert_eq!(numbers(alone).len(), 3);
    assert_ne!(numbers(alone), numbers(two));
}
