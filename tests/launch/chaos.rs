//! Sudden deaths, many of them: a rank of eight is killed somewhere in its work, all others are gone within two seconds,
//! and the job says which rank it was and where it was. Victims and moments come from a number that is printed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scout_core::env::{TEST_CHAOS_POINTS, TEST_CHAOS_SEED};
use scout_core::{Phase, Place};

use crate::dice::Dice;
use crate::faults::{ALL_GONE, expect_survivors_word};
use crate::processes::Process;
use crate::sentence::{Told, host, place};
use crate::started::{Ended, LIMIT, Started, turn};
use crate::toy::Toy;

const WORLD: usize = 8;
const POINTS: u64 = 50;
const SEED: u64 = 1;

/// Phases in which a rank of this job can be met.
const PHASES: [Phase; 9] = [
    Phase::Start,
    Phase::Data,
    Phase::Load,
    Phase::Gather,
    Phase::Forward,
    Phase::Backward,
    Phase::Reduce,
    Phase::Update,
    Phase::Save,
];

/// A phase that has not been met after so long is passed by too quickly: the victim is killed wherever it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Some moments are short and come once; then another job is tried.
const ATTEMPTS: usize = 20;

#[derive(Debug, Clone, Copy)]
enum Moment {
    /// In this phase; where it is one of those that come back, of this step or a later one.
    In(Phase, u64),
    /// So long after the rank has begun.
    After(Duration),
}

struct Strike {
    place: Place,
    killed: Instant,
}

#[test]
fn a_rank_may_die_anywhere_and_the_others_end_in_time_with_its_name_and_place() {
    let _turn = turn();
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, expected a number")),
        Err(_) => default,
    };
    let (points, seed) = (number(TEST_CHAOS_POINTS, POINTS), number(TEST_CHAOS_SEED, SEED));
    let toy = Toy::new();
    let mut dice = Dice::new(seed);
    let mut table = Table(format!("{TEST_CHAOS_POINTS}={points} {TEST_CHAOS_SEED}={seed}\n"));
    for point in 0..points {
        let victim = dice.below(WORLD as u64) as usize;
        // One in ten strikes by the clock, the others by the phase.
        let moment = match PHASES.get(dice.below(PHASES.len() as u64 + 1) as usize) {
            Some(phase) => Moment::In(*phase, 1 + dice.below(8)),
            None => Moment::After(Duration::from_millis(dice.below(1_500))),
        };
        let (place, gone) = check(&toy, victim, moment);
        let wish = match moment {
            Moment::In(phase, _) => phase.to_string(),
            Moment::After(delay) => format!("{} ms", delay.as_millis()),
        };
        writeln!(
            table.0,
            "{point:>4}  rank {victim}  wanted {wish:<8}  met {place:<24}  gone after {:>4} ms",
            gone.as_millis()
        )
        .unwrap();
    }
}

/// Says at the end what was done, also when a point has failed.
struct Table(String);

impl Drop for Table {
    fn drop(&mut self) {
        // Past the test harness, which would keep the words of a test that passes to itself.
        let _ = std::io::stderr().write_all(self.0.as_bytes());
    }
}

/// Kills one rank of a job and returns where that was and how long the others lived on.
fn check(toy: &Toy, victim: usize, moment: Moment) -> (String, Duration) {
    // Only the end of a job saves; all other moments want a job that does not end by itself.
    let steps = if matches!(moment, Moment::In(Phase::Save, _)) { "max_steps=4" } else { "max_steps=1000000" };
    for _ in 0..ATTEMPTS {
        if let Some(met) = check_once(toy, victim, moment, steps) {
            return met;
        }
    }
    panic!("{moment:?} of rank {victim} was over too soon, {ATTEMPTS} times");
}

/// Nothing when the moment had gone by before the victim could be struck.
fn check_once(toy: &Toy, victim: usize, moment: Moment, steps: &str) -> Option<(String, Duration)> {
    let job = Started::one(toy.launch(WORLD, &[], &["output_dir=chaos", "logging_steps=100", steps]));
    let rank = job.wait_until("the victim lives", LIMIT, || job.ranks().remove(&victim));
    let file = rank.job_folder().expect("the launcher names the job's folder").join(format!("rank-{victim}.place"));
    // Opened now, because the launcher removes the folder: what is written last can be read here all the same.
    let file = job.wait_until("the victim says where it is", LIMIT, || {
        File::open(&file).ok().filter(|file| read(file).is_some())
    });
    let strike = strike(&job, &rank, &file, moment)?;
    let gone = job.time_until_gone(strike.killed, LIMIT);
    let ended = job.end_within(LIMIT);
    let context = format!("{moment:?}, rank {victim} in {}\n{ended}", strike.place);
    assert!(gone <= ALL_GONE, "the others lived on for {gone:?}: {context}");
    assert_eq!(ended.code(), Some(76), "{context}");
    expect_launchers_word(&ended, victim, rank.pid, strike.place);
    // Before its data it has not met the others, and while it saves they may be done: nobody need miss it then.
    if !matches!(strike.place.phase, Phase::Start | Phase::Save) {
        expect_survivors_word(&ended, victim, WORLD, rank.pid);
    }
    Some((strike.place.to_string(), gone))
}

fn expect_launchers_word(ended: &Ended, victim: usize, pid: u32, last: Place) {
    const KILLED: &str = "was killed by signal 9 (SIGKILL)";
    let lines = ended.lines_with(KILLED);
    assert_eq!(lines.len(), 1, "{ended}");
    let told = Told::read(lines[0]).unwrap_or_else(|| panic!("{ended}"));
    assert_eq!((told.rank, told.world, told.host, told.pid), (victim, WORLD, host().as_str(), pid), "{ended}");
    let said = told.fate.strip_prefix(KILLED).and_then(|rest| place(rest.strip_prefix(" in ")?));
    assert_eq!(said, Some(last), "{ended}");
}

/// Kills the victim and returns the last place it gave; nothing if the moment went by, or the victim ended by itself.
fn strike(job: &Started, victim: &Process, file: &File, moment: Moment) -> Option<Strike> {
    let begun = Instant::now();
    match moment {
        Moment::After(delay) => std::thread::sleep(delay),
        Moment::In(phase, step) => {
            let is_met = || {
                read(file).is_some_and(|place| place.phase == phase && (place.step >= step || !phase.is_of_a_step()))
            };
            // A phase may last some microseconds, so the look costs no more than that, and is repeated while the
            // victim stands still and cannot leave it.
            while begun.elapsed() < PATIENCE {
                if !is_met() {
                    if is_past(phase, file) {
                        return None;
                    }
                    continue;
                }
                victim.send(Signal::STOP);
                job.wait_until("the victim stands still", LIMIT, || {
                    (victim.is_stopped() || !victim.lives()).then_some(())
                });
                if is_met() {
                    break;
                }
                victim.send(Signal::CONT);
            }
            if !victim.lives() {
                return None;
            }
        }
    }
    let killed = Instant::now();
    victim.send(Signal::KILL);
    job.wait_until("the victim is dead", LIMIT, || (!victim.lives()).then_some(()));
    Some(Strike { place: read(file).expect("a rank gives its place when it begins"), killed })
}

/// Whether a phase that comes once has gone by unseen.
fn is_past(phase: Phase, file: &File) -> bool {
    let begins_a_job = matches!(phase, Phase::Start | Phase::Data | Phase::Load);
    begins_a_job && read(file).is_some_and(|place| place.step > 0)
}

fn read(file: &File) -> Option<Place> {
    let mut line = [0; 32];
    let count = file.read_at(&mut line, 0).ok()?;
    Place::from_line(std::str::from_utf8(&line[..count]).ok()?)
}
