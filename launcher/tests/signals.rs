//! A signal to the launcher reaches every rank, and begins the end only if it is one to end. One test in a process of
//! its own, because a signal reaches the whole process.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use scout_launch::{Launch, Lines};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

#[test]
fn a_signal_to_the_launcher_ends_all_ranks_and_their_answer_is_returned() {
    for (on_signal, signal, expected) in [
        // A rank that saves its state on the signal says so with its code.
        ("trap 'exit 75' TERM;", SIGTERM, 75),
        ("trap 'exit 75' USR1;", SIGUSR1, 75),
        // One has saved long before the other, which gets the time it needs. One that cannot save is the cause.
        ("trap 'sleep $((3 * SCOUT_DIST_RANK)); exit 75' USR2;", SIGUSR2, 75),
        ("trap 'sleep $((3 * SCOUT_DIST_RANK)); exit $((75 - SCOUT_DIST_RANK))' USR2;", SIGUSR2, 74),
        ("trap 'exit $((76 - SCOUT_DIST_RANK))' TERM;", SIGTERM, 76),
        ("", SIGTERM, 143),
        ("", SIGINT, 130),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let ready = |rank: usize| folder.path().join(format!("ready-{rank}"));
        let script =
            format!("{on_signal} : > {}/ready-$SCOUT_DIST_RANK; while :; do sleep 0.05; done", folder.path().display());
        let launch = Launch {
            program: PathBuf::from("/bin/sh"),
            arguments: ["-c".to_string(), script].map(OsString::from).to_vec(),
            num_ranks: 2,
            variables: Vec::new(),
            lines: Lines::Labelled,
        };
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(scout_launch::launch(&launch)));
        let deadline = Instant::now() + Duration::from_secs(30);
        while !(ready(0).exists() && ready(1).exists()) {
            assert!(Instant::now() < deadline, "the ranks did not start");
            thread::sleep(Duration::from_millis(5));
        }
        signal_hook::low_level::raise(signal).unwrap();
        let code = receiver.recv_timeout(Duration::from_secs(30)).expect("the launcher came back").unwrap();
        assert_eq!(code, expected, "signal {signal}, ranks with `{on_signal}`");
    }
}
