//! Ranks that cannot work together learn it before the first batch: one is missing, or one has something else in mind.

use std::fs;
use std::process::Command;
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
    assert!(!ended.lines_with("error: ranks 1 and 3 of 5 did not come within 2 s").is_empty(), "{ended}");
}

#[test]
fn a_rank_with_another_configuration_or_another_model_is_named_at_once() {
    let _turn = turn();
    let toy = Toy::new();
    // The same words in another folder mean another model there.
    let elsewhere = toy.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let copied = Command::new("cp").args(["-r", "toy", "run.yaml", "elsewhere"]).current_dir(toy.path("")).status();
    assert!(copied.unwrap().success());
    let config = fs::read_to_string(elsewhere.join("toy/config.json")).unwrap();
    let changed = config.replace("\"rope_theta\": ", "\"rope_theta\": 1");
    assert_ne!(changed, config);
    fs::write(elsewhere.join("toy/config.json"), changed).unwrap();
    let here = toy.path("");
    for (folder, change, what) in
        [(&here, "learning_rate=2.0e-2", "configuration"), (&elsewhere, "learning_rate=1.0e-2", "model")]
    {
        let command = |rank| {
            let (folder, change) = if rank == 3 { (folder, change) } else { (&here, "learning_rate=1.0e-2") };
            let mut command = toy.command(program(), &["train", "run.yaml", "init_timeout=60", change]);
            command.current_dir(folder);
            command
        };
        let begun = Instant::now();
        let ended = Agent::new().start(4, &[0, 1, 2, 3], command).end_within(LIMIT);
        assert!(begun.elapsed() < AT_THE_MEETING, "{:?}\n{ended}", begun.elapsed());
        assert!(ended.codes.iter().all(|code| code.is_some_and(|code| code != 0)), "{ended}");
        let named = format!("error: rank 3 has another {what} than rank 0");
        assert!(!ended.lines_with(&named).is_empty(), "{named}\n{ended}");
    }
}
