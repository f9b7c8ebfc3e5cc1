//! Launches of real `/bin/sh` children. Every wait is bounded by a deadline far above what the case needs.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
    took: Duration,
}

fn shell(script: &str, num_ranks: usize) -> Launch {
    let arguments = ["-c", script].map(OsString::from).to_vec();
    Launch {
        program: PathBuf::from("/bin/sh"),
        arguments,
        num_ranks,
        variables: vec![("GREETING", "hello".to_string())],
        lines: Lines::Labelled,
    }
}

/// Runs `script` as every rank, in a thread of its own so that a launcher that hangs fails the test.
fn run(script: &str, num_ranks: usize) -> Outcome {
    let (stdout, stderr) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let output = Output { stdout: stdout.clone(), stderr: stderr.clone() };
    let (sender, receiver) = std::sync::mpsc::channel();
    let started = Instant::now();
    let launch = shell(script, num_ranks);
    std::thread::spawn(move || sender.send(launch_into(&launch, &output)));
    let code = receiver.recv_timeout(Duration::from_secs(60)).expect("the launcher came back").unwrap();
    let text = |sink: Arc<Mutex<Vec<u8>>>| String::from_utf8(sink.lock().unwrap().clone()).unwrap();
    Outcome { code, stdout: text(stdout), stderr: text(stderr), took: started.elapsed() }
}

#[test]
fn every_rank_learns_its_place_and_its_lines_carry_its_number() {
    let outcome = run("echo $SCOUT_DIST_RANK $SCOUT_DIST_LOCAL_RANK $SCOUT_DIST_WORLD_SIZE; printf unfinished >&2", 3);
    let mut lines: Vec<&str> = outcome.stdout.lines().collect();
    lines.sort();
    assert_eq!(lines, ["[rank 0] 0 0 3", "[rank 1] 1 1 3", "[rank 2] 2 2 3"]);
    let mut lines: Vec<&str> = outcome.stderr.lines().collect();
    lines.sort();
    assert_eq!(lines, ["[rank 0] unfinished", "[rank 1] unfinished", "[rank 2] unfinished"]);
    assert_eq!(outcome.code, 0);
}

#[test]
fn the_code_of_the_rank_that_failed_first_is_returned() {
    for (script, expected, said) in [
        ("[ $SCOUT_DIST_RANK = 1 ] && exit 65; exec sleep 100", 65, "rank 1 of 3 (host "),
        ("[ $SCOUT_DIST_RANK = 2 ] && kill -9 $$; exec sleep 100", 76, "was killed by signal 9 (SIGKILL)"),
        // Rank 0 only reports the loss, and is first to do so.
        ("case $SCOUT_DIST_RANK in 0) exit 76;; 1) sleep 0.2; exit 79;; *) exec sleep 100;; esac", 79, "exit code 79"),
        ("[ $SCOUT_DIST_RANK = 0 ] && exit 76; exec sleep 100", 76, "ended because it lost another rank, exit code 76"),
        // Both only report the loss, before the killed one is noticed.
        ("[ $SCOUT_DIST_RANK = 1 ] || exit 76; sleep 0.3; kill -9 $$", 76, "error: rank 1 of 3 (host "),
    ] {
        let outcome = run(script, 3);
        assert_eq!(outcome.code, expected, "{script}\n{}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(outcome.took < Duration::from_secs(30), "{script} took {:?}", outcome.took);
    }
}

#[test]
fn a_group_that_agreed_on_a_code_has_said_why_itself() {
    let outcome = run("[ $SCOUT_DIST_RANK = 1 ] && echo reason >&2; exit 79", 3);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (79, "[rank 1] reason\n"));
}

#[test]
fn the_ranks_of_a_job_share_a_private_folder_and_a_secret_that_no_other_job_has() {
    let script = "echo $SCOUT_DIST_TOKEN $SCOUT_DIST_JOB_FOLDER $(stat -c %a $SCOUT_DIST_JOB_FOLDER) $PPID \
                  $SCOUT_DIST_LAUNCHER_PID $GREETING $SCOUT_DIST_TOKEN_FILE; : > $SCOUT_DIST_JOB_FOLDER/left-$$";
    let of_job = || {
        let outcome = run(script, 2);
        let mut lines: Vec<&str> = outcome.stdout.lines().map(|line| line.split_once("] ").unwrap().1).collect();
        lines.dedup();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let words: Vec<String> = lines[0].split(' ').map(str::to_string).collect();
        let launcher = std::process::id().to_string();
        assert_eq!(words[2..], ["700", &launcher, &launcher, "hello"]);
        assert!(words[0].len() == 64 && words[0].bytes().all(|digit| digit.is_ascii_hexdigit()), "{}", words[0]);
        assert!(!Path::new(&words[1]).exists(), "{} is left", words[1]);
        words
    };
    let (one, other) = (of_job(), of_job());
    assert_ne!(one[0], other[0]);
    assert_ne!(one[1], other[1]);
}

#[test]
fn a_killed_rank_is_named_with_the_place_where_it_last_was() {
    for (place, expected) in [
        ("backward 17", " was killed by signal 9 (SIGKILL) in backward of step 17"),
        ("load 0", " was killed by signal 9 (SIGKILL) in load"),
        ("nowhere", " was killed by signal 9 (SIGKILL)"),
    ] {
        let file = "$SCOUT_DIST_JOB_FOLDER/rank-$SCOUT_DIST_RANK.place";
        let outcome =
            run(&format!("echo '{place}' > {file}; [ $SCOUT_DIST_RANK = 1 ] && kill -9 $$; exec sleep 100"), 2);
        assert!(outcome.stderr.trim_end().ends_with(expected), "{}", outcome.stderr);
        assert!(outcome.took < Duration::from_secs(10), "{:?}", outcome.took);
    }
}

#[test]
fn the_message_names_rank_and_pid_in_one_sentence() {
    let outcome = run("echo $$; [ $SCOUT_DIST_RANK = 0 ] && kill -11 $$; exec sleep 100", 2);
    let pid = outcome.stdout.lines().find_map(|line| line.strip_prefix("[rank 0] ")).unwrap();
    let errors: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("error: rank 0 of 2 (host "), "{}", errors[0]);
    assert!(errors[0].ends_with(&format!("pid {pid}) was killed by signal 11 (SIGSEGV)")), "{}", errors[0]);
}

#[test]
fn a_rank_that_ignores_the_request_to_end_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let script = format!(
        "trap '' TERM; [ $SCOUT_DIST_RANK = 1 ] && sleep 0.3 && exit 65; sleep 100 & echo $! > {}; wait; wait",
        pid_file.display()
    );
    let outcome = run(&script, 2);
    assert_eq!(outcome.code, 65);
    assert!(outcome.took < Duration::from_secs(30), "{:?}", outcome.took);
    let grandchild = std::fs::read_to_string(pid_file).unwrap();
    let is_running = || match std::fs::read_to_string(format!("/proc/{}/stat", grandchild.trim())) {
        Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'),
        Err(_) => false,
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_running() {
        assert!(Instant::now() < deadline, "process {grandchild} outlived its rank");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_single_rank_keeps_its_own_words_and_its_code() {
    let outcome = run("exit 78", 1);
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (78, "", ""));
    let outcome = run("kill -9 $$", 1);
    assert_eq!(outcome.code, 76);
    assert!(outcome.stderr.contains("rank 0 of 1"), "{}", outcome.stderr);
}

#[test]
fn what_cannot_be_started_is_named() {
    for (program, num_ranks, expected) in [("/no/such/program", 2, 66), ("/", 1, 77), ("/bin/sh", 0, 2)] {
        let error = launch(&Launch { program: PathBuf::from(program), ..shell("", num_ranks) }).unwrap_err();
        assert_eq!(i32::from(error.exit_code().code()), expected, "{error:?}");
    }
    let error = launch(&Launch { program: PathBuf::from("/no/such/program"), ..shell("", 2) }).unwrap_err();
    assert_eq!(error.to_string(), "could not start rank 0 of `/no/such/program`");
}
