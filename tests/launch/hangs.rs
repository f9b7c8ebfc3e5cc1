//! A rank stands still without dying: the job ends at the hang limit and says which rank it was.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scout_core::env;
use scout_tests::program;

use crate::faults::{ALL_GONE, ENDLESS, wait_for_step};
use crate::sentence::{Told, host, place};
use crate::started::{Ended, LIMIT, Started, turn};
use crate::toy::Toy;

/// A heartbeat every second, and a moment to judge it.
const TO_NOTICE: Duration = Duration::from_secs(2);

#[test]
fn a_stopped_rank_is_named_at_the_hang_limit() {
    let _turn = turn();
    let toy = Toy::new();
    // Rank 0 judges the others; when it is the one that stands still, they judge it.
    for victim in [5, 0] {
        check_stopped(&toy, victim, Duration::from_secs(3), &[]);
    }
}

#[test]
fn without_a_wish_a_stopped_rank_is_named_after_thirty_seconds() {
    let _turn = turn();
    check_stopped(&Toy::new(), 3, Duration::from_secs(30), &["hang_limit=null"]);
}

fn check_stopped(toy: &Toy, victim: usize, limit: Duration, changes: &[&str]) {
    let job = Started::one(toy.launch(8, &[], &[&ENDLESS[..], changes].concat()));
    let ranks = job.wait_for_ranks(8);
    wait_for_step(&job, 5);
    let stopped = Instant::now();
    ranks[&victim].send(Signal::STOP);
    let gone = job.time_until_gone(stopped, limit + LIMIT);
    let ended = job.end_within(LIMIT);
    assert!(gone >= limit, "a rank may stand still for {limit:?}, and was given up after {gone:?}\n{ended}");
    assert!(gone <= limit + TO_NOTICE + ALL_GONE, "rank {victim} was found after {gone:?}\n{ended}");
    assert_eq!(ended.code(), Some(76), "{ended}");
    let fate = fate_of_one(&ended, victim, ranks[&victim].pid);
    let expected = format!("does not answer since {} s, last seen in ", limit.as_secs());
    assert!(fate.strip_prefix(&expected).and_then(place).is_some(), "{ended}");
}

#[test]
fn a_rank_whose_work_stands_still_is_named_with_the_collective_that_the_others_wait_in() {
    let _turn = turn();
    let toy = Toy::new();
    const VICTIM: usize = 2;
    // Ranks meet only in a folder that nobody else can enter.
    let private = std::fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().permissions(private).tempdir().unwrap();
    let rank = |rank: usize| -> Command {
        let train = ["train", "run.yaml", ENDLESS[0], ENDLESS[1]];
        // The thread that trains writes its place to a file with this call, so after some hundred places it stands
        // still for ten minutes, while all other threads of its process go on: a hang that the program has no part in.
        let still = "inject=pwrite64:delay_enter=600000000:when=300";
        let strace = ["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", still];
        let mut command = match rank {
            VICTIM => toy.command("strace", &strace),
            _ => toy.command("env", &[]),
        };
        command.arg(program()).args(train);
        // What our launcher says to its ranks; it would start all of them alike, and one is to be traced here.
        command
            .env(env::RANK, rank.to_string())
            .env(env::LOCAL_RANK, rank.to_string())
            .env(env::WORLD_SIZE, "4")
            .env(env::JOB_FOLDER, folder.path())
            .env(env::LAUNCHER_PID, std::process::id().to_string());
        command
    };
    let job = Started::several((0..4).map(rank).collect());
    let ranks = job.wait_for_ranks(4);
    job.wait_until("only the rank that stands still lives", LIMIT, || {
        job.ranks().keys().all(|rank| *rank == VICTIM).then_some(())
    });
    // strace keeps a thread that it holds even from ending; without it the rank leaves by itself, as all others did.
    let freed = Instant::now();
    job.processes().iter().filter(|process| process.name == "strace").for_each(|strace| strace.send(Signal::KILL));
    assert!(job.time_until_gone(freed, LIMIT) <= ALL_GONE);
    let ended = job.end_within(LIMIT);
    assert!(ended.codes.iter().all(|code| *code == Some(76)), "{ended}");
    let fate = fate_of_one(&ended, VICTIM, ranks[&VICTIM].pid);
    let (hangs, waits) = fate.split_once("; the others wait for it in ").unwrap_or_else(|| panic!("{ended}"));
    assert!(hangs.strip_prefix("hangs in ").and_then(place).is_some(), "{ended}");
    let (collective, number) = waits.split_once(" #").unwrap_or_else(|| panic!("{ended}"));
    assert!(["all_gather", "all_reduce", "reduce_scatter", "broadcast", "barrier"].contains(&collective), "{ended}");
    assert!(number.parse::<u64>().is_ok(), "{ended}");
}

/// What the one sentence of the job says about this rank.
fn fate_of_one(ended: &Ended, victim: usize, pid: u32) -> &str {
    let told: Vec<Told> = ended.stderr.lines().filter_map(Told::read).collect();
    assert_eq!(told.len(), 1, "{ended}");
    assert_eq!((told[0].rank, told[0].host, told[0].pid), (victim, host().as_str(), pid), "{ended}");
    told[0].fate
}
