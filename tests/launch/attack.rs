//! Strangers at the door of a job that trains: wrong tokens, noise, and connections that say nothing change neither a
//! bit of its losses nor, by much, its memory.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use scout_comm::{Approach, Ending, Introduction, Limits, MeetingPlace, Through, meet};
use scout_core::{Mesh, Rank, Token, Whereabouts};

use crate::dice::Dice;
use crate::started::{LIMIT, Started, turn};
use crate::toy::Toy;

const WRONG_TOKENS: u64 = 10_000;
const GARBAGE_FRAMES: u64 = 1_000_000;
/// Open at the same time, saying nothing.
const SILENT: usize = 1_000;
const MAX_GROWTH_KIB: u64 = 16 << 10;

/// Noise that one connection sends in one go. The door may be closed at the first wrong byte.
const FRAMES_AT_ONCE: u64 = 500;
const MAX_FRAME_BYTES: u64 = 64;

#[test]
fn strangers_change_no_bit_and_cost_no_memory() {
    let _turn = turn();
    let toy = Toy::new();
    let run = |name: &str| {
        let output = format!("output_dir={name}");
        toy.launch(4, &["--tcp"], &["max_steps=500", "logging_steps=10", &output])
    };
    Started::one(run("quiet")).end_within(LIMIT).expect_success();

    let job = Started::one(run("attacked"));
    let address = job.wait_until("the job says where it meets", LIMIT, || address(&job));
    let rank_0 = job.wait_for_ranks(4).remove(&0).expect("rank 0 is one of four");
    // Its memory has its full size once it trains.
    let log = toy.path("attacked/trainer_log.jsonl");
    job.wait_until("it trains", LIMIT, || log.metadata().is_ok_and(|log| log.len() > 0).then_some(()));
    let before = rank_0.memory("VmHWM").expect("rank 0 lives");
    let begun = Instant::now();
    attack(&address);
    let took = begun.elapsed();
    let after = rank_0.memory("VmHWM");
    let ended = job.end_within(LIMIT);
    ended.expect_success();
    let after = after.unwrap_or_else(|| panic!("the job ended before the attack did, and proves nothing\n{ended}"));
    assert_eq!(toy.loss_bits("attacked"), toy.loss_bits("quiet"));
    // Past the test harness, which would keep the words of a test that passes to itself.
    let told = format!("an attack of {took:.1?} took rank 0 from {before} to {after} KiB\n");
    std::io::stderr().write_all(told.as_bytes()).unwrap();
    assert!(after - before <= MAX_GROWTH_KIB, "{told}");
}

/// `127.0.0.1:PORT`, as the job's own log names it.
fn address(job: &Started) -> Option<String> {
    let said = job.said();
    let line = said.stderr.lines().chain(said.stdout.lines()).find_map(|line| line.split_once("meeting at "))?.1;
    // The line may not have arrived whole.
    let address = line.split_whitespace().next()?;
    (said.stderr.contains(&format!("{address}\n")) || said.stdout.contains(&format!("{address}\n")))
        .then(|| address.to_string())
}

/// Returns when everything has been sent, and fails where somebody was let in.
fn attack(address: &str) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a limit may be raised to its maximum");
    let silent: Vec<TcpStream> = (0..SILENT).filter_map(|_| TcpStream::connect(address).ok()).collect();
    assert_eq!(silent.len(), SILENT, "the door is open, if only to refuse");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..WRONG_TOKENS / 4).for_each(|_| knock_with_a_wrong_token(address)));
        }
        scope.spawn(|| {
            let mut dice = Dice::new(18);
            (0..GARBAGE_FRAMES / FRAMES_AT_ONCE).for_each(|_| send_noise(address, &mut dice));
        });
    });
    drop(silent);
}

/// As a rank of the job would come, with everything right but the secret.
fn knock_with_a_wrong_token(address: &str) {
    let place = MeetingPlace::Tcp { address: address.to_string(), token: Token::generate().unwrap() };
    let introduction = Introduction {
        version: env!("CARGO_PKG_VERSION").to_string(),
        config_digest: [0; 32],
        model_digest: [0; 32],
        host: "stranger".to_string(),
        pid: std::process::id(),
    };
    let limits = Limits {
        init_timeout: Duration::from_secs(5),
        hang_limit: Some(Duration::from_secs(5)),
        ending: Ending::calling(|_| {}, |_| {}),
    };
    let mesh = Mesh::new(Rank(1), 4).unwrap();
    let approach = Approach { place, mesh, introduction, limits, through: Through::Streams };
    let seat = meet(&approach, Arc::new(Whereabouts::new(None)));
    assert!(seat.is_err(), "a stranger got a seat");
}

/// Frames of random length with random bytes in them, and every eighth with a random length in front of it too.
fn send_noise(address: &str, dice: &mut Dice) {
    let mut bytes = Vec::new();
    for _ in 0..FRAMES_AT_ONCE {
        let len = dice.below(MAX_FRAME_BYTES);
        let said_len = if dice.below(8) == 0 { dice.below(1 << 32) } else { len };
        bytes.extend((said_len as u32).to_le_bytes());
        bytes.extend((0..len).map(|_| dice.below(256) as u8));
    }
    let mut stream = TcpStream::connect(address).expect("the door is open, if only to refuse");
    // It may be closed in the middle of the noise.
    let _ = stream.write_all(&bytes);
}
