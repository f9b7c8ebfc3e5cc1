//! The same list over MPI. A test starts copies of itself under the `mpirun` of the library that is linked here; each
//! copy is a rank, runs the case, and leaves what it saw in a folder. MPI begins once in a process, so every end has
//! a job of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use scout_comm::mpi::library;
use scout_comm::{Approach, Communicator, MeetingPlace, MpiCommunicator, Seat, Through, meet};
use scout_core::env::TEST_MPI_FOLDER;
use scout_core::{ExitCode, Mesh, Rank, Whereabouts};

use super::backends::{Member, introduction, limits};
use super::ends::{self, End};
use super::{CASES, PATIENT, WORLDS, cases};

/// Longer than any wait of a rank inside.
const KILL_TIME: Duration = Duration::from_secs(180);
/// How long a job may take whose ranks sleep for a minute if nobody ends them.
const LONG_BEFORE_THEY_WAKE: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);
/// Jobs one after the other: side by side they would compete for cores and come late to their own deadlines.
static ONE_JOB: Mutex<()> = Mutex::new(());

/// How a job under `mpirun` ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    after: Duration,
    /// What each rank left, in rank order; a rank that was ended left nothing.
    seen: Vec<Option<String>>,
    stderr: String,
}

/// Runs `role` on each of `world` ranks of a job. `None` in a process that is such a rank itself: its part is done.
fn on_ranks(test: &str, world: usize, role: impl FnOnce(&Path) -> (Rank, String)) -> Option<Ended> {
    let Some(folder) = std::env::var_os(TEST_MPI_FOLDER) else { return Some(start(test, world)) };
    let folder = PathBuf::from(folder);
    let (rank, seen) = role(&folder);
    fs::write(folder.join(rank.to_string()), seen).unwrap();
    None
}

/// The same for roles that need nothing but MPI.
fn on_ranks_of_mpi(
    test: &str,
    world: usize,
    deadline: Duration,
    role: impl FnOnce(MpiCommunicator) -> String,
) -> Option<Ended> {
    on_ranks(test, world, |_| {
        let comm = MpiCommunicator::init(deadline).unwrap();
        (comm.mesh().rank(), role(comm))
    })
}

impl Ended {
    /// What the ranks saw, when all of them must have returned it.
    fn seen_by_all(self) -> Vec<String> {
        assert!(self.code == Some(0), "{self:#?}");
        self.seen.into_iter().map(|seen| seen.expect("every rank returned")).collect()
    }
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // It has ended already, or the test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(test: &str, world: usize) -> Ended {
    let _turn = ONE_JOB.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    let mut command = if library().starts_with("MPICH") {
        Command::new("mpirun.mpich")
    } else {
        let mut command = Command::new("mpirun.openmpi");
        command.args(["--allow-run-as-root", "--oversubscribe"]);
        command
    };
    command.args(["-n", &world.to_string()]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(TEST_MPI_FOLDER, folder.path());
    // What a job leaves behind that did not end in order goes with the folder.
    command.env("TMPDIR", folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&output).unwrap());
    let begun = Instant::now();
    let mut job = KilledOnDrop(command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}")));
    let status = loop {
        match job.0.try_wait().unwrap() {
            Some(status) => break status,
            None if begun.elapsed() > KILL_TIME => panic!("{command:?} did not end within {KILL_TIME:?}"),
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    let seen = (0..world).map(|rank| fs::read_to_string(folder.path().join(rank.to_string())).ok()).collect();
    let stderr = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
    Ended { code: status.code(), after: begun.elapsed(), seen, stderr }
}

#[test]
fn every_case_of_the_list_holds_under_mpirun() {
    for world in WORLDS {
        let ended = on_ranks_of_mpi("mpi::every_case_of_the_list_holds_under_mpirun", world, PATIENT, |comm| {
            for (name, case) in CASES {
                eprintln!("rank {}: {name}", comm.mesh().rank());
                case(&comm);
            }
            comm.mesh().size().to_string()
        });
        let Some(ended) = ended else { return };
        assert!(ended.code == Some(0), "{world} ranks: {ended:#?}");
        assert_eq!(ended.seen, vec![Some(world.to_string()); world], "{}", ended.stderr);
    }
}

fn check(test: &str, end: &End) {
    let Some(ended) = on_ranks_of_mpi(test, end.world, PATIENT, |comm| end.at_once(&comm)) else { return };
    (end.check)(&library(), &ended.seen_by_all());
}

#[test]
fn a_rank_that_does_something_else_is_named_on_every_rank_at_once() {
    check("mpi::a_rank_that_does_something_else_is_named_on_every_rank_at_once", &ends::SOMETHING_ELSE);
}

#[test]
fn a_rank_with_a_longer_buffer_is_named_on_every_rank_at_once() {
    check("mpi::a_rank_with_a_longer_buffer_is_named_on_every_rank_at_once", &ends::ANOTHER_LENGTH);
}

#[test]
fn an_abort_ends_every_wait_with_its_reason() {
    check("mpi::an_abort_ends_every_wait_with_its_reason", &ends::ABORT);
}

#[test]
fn a_rank_that_does_nothing_is_named_at_the_deadline() {
    const TEST: &str = "mpi::a_rank_that_does_nothing_is_named_at_the_deadline";
    // The two that give up wait as long again for the third to leave with them, which it does half way.
    let deadline = Duration::from_secs(3);
    let Some(ended) = on_ranks_of_mpi(TEST, 3, deadline, |comm| match comm.mesh().rank().0 {
        2 => {
            thread::sleep(Duration::from_millis(4500));
            String::new()
        }
        _ => comm.barrier().unwrap_err().to_string(),
    }) else {
        return;
    };
    let seen = ended.seen_by_all();
    for error in &seen[..2] {
        assert!(error.starts_with("barrier #0 waited 3.") && error.ends_with("for rank 2"), "{seen:?}");
    }
}

#[test]
fn a_rank_that_leaves_too_early_is_named_and_means_requeue() {
    const TEST: &str = "mpi::a_rank_that_leaves_too_early_is_named_and_means_requeue";
    let Some(ended) = on_ranks_of_mpi(TEST, 3, PATIENT, |comm| match comm.mesh().rank().0 {
        2 => String::new(),
        _ => {
            let error = comm.barrier().unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::PeerLost);
            error.to_string()
        }
    }) else {
        return;
    };
    let told = "rank 2 was lost: it left while it was waited for";
    assert_eq!(ended.seen_by_all(), [told, told, ""]);
}

fn leave(code: ExitCode) -> ! {
    std::process::exit(code.code().into())
}

#[test]
fn a_rank_that_gives_up_leaves_with_its_code_while_mpi_still_waits() {
    const TEST: &str = "mpi::a_rank_that_gives_up_leaves_with_its_code_while_mpi_still_waits";
    let ended = on_ranks_of_mpi(TEST, 3, Duration::from_secs(1), |comm| {
        if comm.mesh().rank().0 == 2 {
            thread::sleep(MINUTE);
            return "woke up".to_string();
        }
        let error = comm.barrier().unwrap_err();
        comm.abort(&error.to_string());
        // In one piece: two ranks say it at once, and mpirun mixes their pieces.
        let line = format!("error: {error}\n");
        eprint!("{line}");
        drop(comm);
        leave(error.exit_code())
    });
    let Some(ended) = ended else { return };
    assert!(ended.code == Some(76) && ended.after < LONG_BEFORE_THEY_WAKE, "{ended:#?}");
    assert!(ended.stderr.contains("error: barrier #0 waited"), "{ended:#?}");
    assert_eq!(ended.seen, [None, None, None]);
}

#[test]
fn a_world_that_does_not_hear_of_its_end_is_ended_by_mpi() {
    const TEST: &str = "mpi::a_world_that_does_not_hear_of_its_end_is_ended_by_mpi";
    let ended = on_ranks_of_mpi(TEST, 3, PATIENT, |comm| {
        if comm.mesh().rank().0 == 1 {
            comm.abort("the disk is full");
            eprintln!("error: the disk is full");
        }
        // All of them compute on, the one that gave up too.
        thread::sleep(MINUTE);
        "woke up".to_string()
    });
    let Some(ended) = ended else { return };
    assert!(ended.code == Some(76) && ended.after < LONG_BEFORE_THEY_WAKE, "{ended:#?}");
    assert!(ended.stderr.contains("error: the disk is full"), "{ended:#?}");
    assert_eq!(ended.seen, [None, None, None]);
}

/// What the starter says, before MPI begins.
fn started_as() -> (usize, usize) {
    let number = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap();
    (number(["OMPI_COMM_WORLD_RANK", "PMI_RANK"]), number(["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]))
}

fn meet_in(folder: &Path, mesh: Mesh) -> scout_comm::Result<Seat> {
    let place = MeetingPlace::Unix { socket: folder.join("job").join("meet.sock") };
    let through = Through::Mpi;
    let approach = Approach { place, mesh, introduction: introduction(mesh), limits: limits(PATIENT), through };
    meet(&approach, Arc::new(Whereabouts::new(None)))
}

#[test]
fn ranks_that_have_met_move_their_buffers_through_mpi_and_end_with_one_verdict() {
    const TEST: &str = "mpi::ranks_that_have_met_move_their_buffers_through_mpi_and_end_with_one_verdict";
    const SENTENCE: &str = "`rows.json` line 3 is empty";
    let Some(ended) = on_ranks(TEST, 4, |folder| {
        let (rank, world) = started_as();
        let member = Member::seated(meet_in(folder, Mesh::new(Rank(rank), world).unwrap()).unwrap());
        cases::sums_are_taken_in_rank_order_to_the_last_bit(&*member);
        let verdict = match rank {
            2 => member.control().fail(ExitCode::BadData, SENTENCE),
            _ => {
                let error = member.barrier().unwrap_err();
                assert!(error.is_an_echo(), "{error}");
                member.control().wait_for_verdict(PATIENT).unwrap()
            }
        };
        (Rank(rank), format!("{} ({})", verdict.sentence, verdict.code.code()))
    }) else {
        return;
    };
    assert_eq!(ended.seen_by_all(), [format!("{SENTENCE} (65)").as_str(); 4]);
}

#[test]
fn a_world_that_mpi_counts_in_another_way_does_not_begin() {
    const TEST: &str = "mpi::a_world_that_mpi_counts_in_another_way_does_not_begin";
    let Some(ended) = on_ranks(TEST, 2, |folder| {
        let (rank, world) = started_as();
        let rank = Rank(world - 1 - rank);
        let met = meet_in(folder, Mesh::new(rank, world).unwrap());
        (rank, met.err().expect("the numbers differ").to_string())
    }) else {
        return;
    };
    for error in ended.seen_by_all() {
        assert!(error.starts_with("MPI cannot be used: this process was started as rank "), "{error}");
        assert!(error.contains(&library()), "{error}");
    }
}
