//! One rank fails or dies: all ranks leave with the code of the cause, and one sentence says which rank it was.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scout_tests::program;
use serde_json::Value;

use crate::sentence::{Told, host, place};
use crate::slurm::Slurm;
use crate::started::{Ended, LIMIT, Started, turn};
use crate::toy::Toy;

/// From the death of one rank to the end of all others.
pub const ALL_GONE: Duration = Duration::from_secs(2);

/// Long enough to be still running whenever the test strikes.
pub const ENDLESS: [&str; 2] = ["max_steps=1000000", "logging_steps=5"];

pub const OPEN_MPI: [&str; 5] = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", "4"];
pub const SRUN: [&str; 6] = ["srun", "-N1", "--overcommit", "-n", "4", "--mpi=none"];

#[test]
fn a_damaged_weight_that_one_rank_reads_ends_every_rank_with_the_code_for_bad_data() {
    let _turn = turn();
    let toy = Toy::new();
    let tensor = damage_one_number(&toy);
    let slurm = Slurm::start();
    let under = |starter: &[&str]| {
        let mut command = toy.command(starter[0], &starter[1..]);
        command.arg(program()).args(["train", "run.yaml"]);
        command
    };
    for (name, command) in
        [("launch", toy.launch(4, &[], &[])), ("mpirun", under(&OPEN_MPI)), ("srun", slurm.point(under(&SRUN)))]
    {
        let ended = Started::one(command).end_within(LIMIT);
        assert_eq!(ended.code(), Some(65), "{name}\n{ended}");
        // Whoever found it says it, once; the others leave without a word of their own.
        assert_eq!(ended.lines_with(&tensor).len(), 1, "{name}\n{ended}");
    }
}

/// Makes the last number of the largest tensor a NaN and returns the tensor's name. A rank reads only its own part of a
/// tensor, so one rank meets it.
fn damage_one_number(toy: &Toy) -> String {
    let path = toy.path("toy/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len as usize]).unwrap();
    let mut tensors = header.as_object().unwrap().iter().filter(|(name, _)| name.contains("experts.gate_up_proj"));
    let (name, tensor) = tensors.next_back().expect("the toy has routed experts");
    let end = 8 + header_len + tensor["data_offsets"][1].as_u64().unwrap();
    let nan: &[u8] = match tensor["dtype"].as_str().unwrap() {
        "F32" => &[0, 0, 0xc0, 0x7f],
        "BF16" => &[0xc0, 0x7f],
        other => panic!("the toy holds {other}"),
    };
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(nan, end - nan.len() as u64).unwrap();
    name.clone()
}

#[test]
fn a_rank_that_dies_under_mpirun_or_srun_is_named_by_the_others_with_its_place() {
    let _turn = turn();
    let toy = Toy::new();
    let slurm = Slurm::start();
    for (name, starter) in [("mpirun", &OPEN_MPI[..]), ("srun", &SRUN)] {
        for victim in [0, 2] {
            let mut command = slurm.point(toy.command(starter[0], &starter[1..]));
            command.arg(program()).args(["train", "run.yaml"]).args(ENDLESS);
            let job = Started::one(command);
            let ranks = job.wait_for_ranks(4);
            wait_for_step(&job, 5);
            let killed = Instant::now();
            ranks[&victim].send(Signal::KILL);
            let pids: Vec<u32> = ranks.values().map(|rank| rank.pid).collect();
            let gone = job.wait_until("no rank lives", LIMIT, || {
                let is_gone = job.processes().iter().all(|process| !pids.contains(&process.pid));
                is_gone.then(|| killed.elapsed())
            });
            assert!(gone <= ALL_GONE, "{name}: rank {victim} was killed, the others lived on for {gone:?}");
            let ended = job.end_within(LIMIT);
            // mpirun and srun answer with the signal of the victim or with the code of the others.
            assert!(matches!(ended.code(), Some(76 | 137)), "{name}\n{ended}");
            expect_survivors_word(&ended, victim, 4, ranks[&victim].pid);
        }
    }
}

/// Waits until the job has logged that it trains: rank 0 says `step N/…` from time to time.
pub fn wait_for_step(job: &Started, step: u64) {
    let wanted = |line: &str| {
        let number = line.split_once("step ").and_then(|(_, rest)| rest.split_once('/')?.0.parse::<u64>().ok());
        number.is_some_and(|number| number >= step)
    };
    job.wait_until(&format!("step {step} is logged"), LIMIT, || {
        let said = job.said();
        said.stderr.lines().chain(said.stdout.lines()).any(wanted).then_some(())
    });
}

/// One survivor, and only one, speaks for all: which rank was lost, and where it was last heard of.
pub fn expect_survivors_word(ended: &Ended, victim: usize, world: usize, pid: u32) {
    let told: Vec<Told> = ended.stderr.lines().filter_map(Told::read).collect();
    let lost: Vec<&Told> = told.iter().filter(|told| told.fate.starts_with("was lost in ")).collect();
    assert_eq!(lost.len(), 1, "{ended}");
    let Told { rank, world: of, host: on, pid: number, fate } = lost[0];
    assert_eq!((*rank, *of, *on, *number), (victim, world, host().as_str(), pid), "{ended}");
    let last = fate.strip_prefix("was lost in ").and_then(|rest| rest.strip_suffix(": connection lost"));
    assert!(last.and_then(place).is_some(), "{ended}");
}
