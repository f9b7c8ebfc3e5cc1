//! Memory of a training on every number of ranks: what the account saw beside what the plan said before.

use scout_core::{ByteCount, DType};

use crate::backends::Backend;
use crate::rig::{Held, Recipe, Toy};

fn assert_within_two_percent(what: &str, found: ByteCount, planned: ByteCount) {
    let share = found.as_f64() / planned.as_f64();
    assert!((0.98..=1.02).contains(&share), "{what}: {found}, planned {planned}");
}

#[test]
fn peaks_of_a_training_are_those_of_its_plan() {
    let toy = Toy::new(DType::F32);
    for weights in ["zero3", "resident"] {
        let config = toy.config(&[&format!("weights={weights}")]);
        for world_size in 1..=8 {
            let recipe = Recipe { config: &config, world_size, num_steps: 2, lookahead: None };
            let plan = recipe.prepare(&config).plan;
            let planned = plan.memory;
            let is_gathered = weights == "zero3" && world_size > 1;
            assert_eq!(planned.gathered > ByteCount(0), is_gathered, "{weights} on {world_size}");
            let model: u64 = plan.units.units().iter().map(|unit| unit.bytes(DType::F32).0).sum();
            let share = if is_gathered { model / world_size as u64 } else { model };
            assert_within_two_percent("a fair share of the model", planned.shard, ByteCount(share));
            for (rank, trained) in recipe.train_on(Backend::Local).iter().enumerate() {
                let what = format!("{weights}, rank {rank} of {world_size}");
                let Held { shard, gathered, trained: adapter } = trained.peak;
                assert_eq!((shard, adapter), (planned.shard, planned.trained), "{what}");
                assert_within_two_percent(&what, shard + gathered, planned.shard + planned.gathered);
                assert!(gathered <= planned.gathered, "{what}: {gathered} gathered, planned {}", planned.gathered);
                let all = planned.shard + planned.gathered + planned.trained;
                assert_within_two_percent(&what, trained.peak_total, all);
                assert_eq!(trained.left_gathered, ByteCount(0), "{what}");
            }
        }
    }
}

#[test]
fn what_is_gathered_ahead_is_all_that_lookahead_costs() {
    let toy = Toy::new(DType::F32);
    let config = toy.config(&[]);
    let mut peaks = Vec::new();
    for lookahead in [0, 1, 2, 5] {
        let recipe = Recipe { config: &config, world_size: 3, num_steps: 1, lookahead: Some(lookahead) };
        let plan = recipe.prepare(&config).plan;
        let planned = plan.shards.gathered_peak(&plan.schedules.train);
        for trained in recipe.train_on(Backend::Local) {
            assert_eq!(trained.peak.gathered, planned, "{lookahead} ahead");
        }
        peaks.push(planned);
    }
    assert!(peaks.is_sorted() && peaks[0] < peaks[3], "{peaks:?}");
}
