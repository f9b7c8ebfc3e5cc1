//! Ranks that cannot work together learn it before the first batch: one is missing, or one has something else in mind.

use std::fs;
use std::time::{Duration, Instant};

use scout_tests::program;

use crate::elastic::Agent;
use crate::started::{LIMIT, turn};
use crate::toy::Toy;

/// A rank with another job in mind is named at the meeting, not at a timeout.
const AT_THE_MEETING: Duration = Duration::from_secs(5);

#[test]
fn missing_ranks_are_listed_when_the_time_to_meet_is_over() {
    let _turn = turn();
    let toy = Toy::new();
    let command = |_| toy.command(program(), &["train", "run.yaml", "init_timeout=2"]);
    let begun = Instant::now();
    let ended = Agent::new().start(5, &[0, 2, 4], command).end_within(LIMIT);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(2) + AT_THE_MEETING, "{took:?}\n{ended}");
    assert!(ended.codes.iter().all(|code| *code == Some(76)), "{ended}");
    let named = ended.stderr.lines().any(|line| line.contains("error: ") && line.contains("1, 3"));
    assert!(named, "{ended}");
}

#[test]
fn a_rank_with_another_configuration_or_another_model_is_named_at_once() {
    let _turn = turn();
    let toy = Toy::new();
    let text = fs::read_to_string(toy.path("toy/config.json")).unwrap();
    let copied = std::process::Command::new("cp").args(["-r", "toy", "other"]).current_dir(toy.path("")).status();
    assert!(copied.unwrap().success());
    fs::write(toy.path("other/config.json"), text.replace("\"rope_theta\": ", "\"rope_theta\": 1")).unwrap();
    for (change, word) in [("learning_rate=2.0e-2", "config"), ("model_name_or_path=other", "model")] {
        let command = |rank| {
            let change = if rank == 3 { change } else { "init_timeout=60" };
            toy.command(program(), &["train", "run.yaml", "init_timeout=60", change])
        };
        let begun = Instant::now();
        let ended = Agent::new().start(4, &[0, 1, 2, 3], command).end_within(LIMIT);
        assert!(begun.elapsed() < AT_THE_MEETING, "{:?}\n{ended}", begun.elapsed());
        assert!(ended.codes.iter().all(|code| code.is_some_and(|code| code != 0)), "{ended}");
        let named = ended.stderr.lines().any(|line| line.contains("rank 3") && line.contains(word));
        assert!(named, "{change}\n{ended}");
    }
}
