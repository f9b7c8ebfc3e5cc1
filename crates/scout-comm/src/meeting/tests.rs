//! Ranks as threads that meet, or do not.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scout_core::{ExitCode, Mesh, Rank, Token};

use super::*;
use crate::control::{Ending, Limits};
use crate::door::hello::{CHALLENGE_LEN, Challenge, HELLO_LEN};
use crate::peer::Introduction;

/// No test waits that long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn guest(place: &MeetingPlace, rank: usize, size: usize) -> Approach {
    let introduction = Introduction {
        version: "1.2.3".to_string(),
        config_digest: [1; 32],
        model_digest: [2; 32],
        host: "here".to_string(),
        pid: 1000 + rank as u32,
    };
    let ending = Ending::calling(|_| {}, |_| {});
    let limits = Limits { init_timeout: PATIENCE, hang_limit: Some(PATIENCE), ending };
    let mesh = Mesh::new(Rank(rank), size).unwrap();
    Approach { place: place.clone(), mesh, introduction, limits, through: Through::Streams }
}

fn come(guest: Approach) -> Result<Seat> {
    meet(&guest, Arc::new(Whereabouts::new(None)))
}

/// What became of all guests, each on a thread of its own, once all of them know.
pub(crate) fn gather(guests: Vec<Approach>) -> Vec<Result<Seat>> {
    let threads: Vec<_> = guests.into_iter().map(|guest| std::thread::spawn(move || come(guest))).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

pub(crate) fn places(folder: &Path) -> [MeetingPlace; 2] {
    let token = Token::generate().unwrap();
    let publish = folder.join("address");
    [MeetingPlace::Unix { socket: folder.join("job/meet.sock") }, MeetingPlace::Loopback { publish, token }]
}

/// Lets ranks of a job of `size` come, changed by `change`, and compares what each of them is told.
fn check(size: usize, ranks: &[usize], change: impl Fn(usize, &mut Approach), expected: &str, code: ExitCode) {
    let folder = tempfile::tempdir().unwrap();
    for place in places(folder.path()) {
        let begun = Instant::now();
        let guest = |(position, rank): (usize, &usize)| {
            let mut guest = guest(&place, *rank, size);
            change(position, &mut guest);
            guest
        };
        let outcomes = gather(ranks.iter().enumerate().map(guest).collect());
        for (rank, outcome) in ranks.iter().zip(outcomes) {
            let Err(error) = outcome else { panic!("rank {rank} has a seat in a job that must not begin") };
            assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, code), "rank {rank}, {place:?}");
            let is_told = matches!(&error, CommError::Ended { verdict } if verdict.speaker == Rank(0));
            assert!(*rank == 0 || is_told, "only rank 0 speaks: {error:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[test]
fn ranks_that_do_not_come_are_named_by_number() {
    let soon = |_, guest: &mut Approach| guest.limits.init_timeout = Duration::from_secs(1);
    let expected = "ranks 1 and 3 of 5 did not come within 1 s";
    check(5, &[0, 2, 4], soon, expected, ExitCode::PeerLost);
    check(2, &[0], soon, "rank 1 of 2 did not come within 1 s", ExitCode::PeerLost);
}

#[test]
fn a_rank_of_another_version_configuration_model_or_world_is_named_at_once() {
    // Rank 3 never comes: nobody waits for it when a rank that came cannot belong to the job.
    let ranks = [0, 2];
    let version = |at: usize, guest: &mut Approach| guest.introduction.version = ["1.2.3", "1.3.0"][at].to_string();
    check(4, &ranks, version, "rank 2 runs version 1.3.0, rank 0 version 1.2.3", ExitCode::BadConfig);
    let config = |at: usize, guest: &mut Approach| guest.introduction.config_digest = [at as u8; 32];
    check(4, &ranks, config, "rank 2 has another configuration than rank 0", ExitCode::BadConfig);
    let model = |at: usize, guest: &mut Approach| guest.introduction.model_digest[31] = at as u8;
    check(4, &ranks, model, "rank 2 has another model than rank 0", ExitCode::BadData);
    let world = |at: usize, guest: &mut Approach| guest.mesh = Mesh::new(Rank(2 * at), 4 + at).unwrap();
    check(4, &ranks, world, "rank 2 was started as one of 5 ranks, rank 0 as one of 4", ExitCode::BadConfig);
}

#[test]
fn two_processes_with_one_number_are_both_named() {
    // Their order is up to the system, so both are the same but for that.
    let same = |_, guest: &mut Approach| guest.introduction.pid = 7;
    let expected = "two processes are rank 2: host here, pid 7 and host here, pid 7";
    check(4, &[0, 2, 2], same, expected, ExitCode::BadConfig);
}

#[test]
fn without_rank_0_the_others_say_where_they_looked_for_it() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(folder.path()) {
        let mut guest = guest(&place, 1, 2);
        guest.limits.init_timeout = Duration::from_millis(300);
        let error = come(guest).err().unwrap();
        assert!(matches!(error, CommError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().starts_with("rank 0 did not answer at `/"), "{error}");
        assert_eq!(error.exit_code(), ExitCode::PeerLost);
    }
}

#[test]
fn a_rank_that_is_gone_before_all_have_come_is_lost_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(folder.path()) {
        let rank_0 = guest(&place, 0, 3);
        let host = std::thread::spawn(move || come(rank_0));
        drop(guest::reach_rank_0(&guest(&place, 1, 3)).unwrap());
        let error = host.join().unwrap().err().unwrap();
        assert_eq!(error.to_string(), "rank 1 of 3 (host here, pid 1001) was lost in start: connection lost");
    }
}

#[test]
fn a_wrong_token_is_refused_and_the_right_one_still_comes_in() {
    let folder = tempfile::tempdir().unwrap();
    let [_, place] = places(folder.path());
    let MeetingPlace::Loopback { publish, token } = &place else { unreachable!() };
    let rank_0 = guest(&place, 0, 2);
    let host = std::thread::spawn(move || come(rank_0));
    let wrong = MeetingPlace::Loopback { publish: publish.clone(), token: Token::generate().unwrap() };
    let error = come(guest(&wrong, 1, 2)).err().unwrap();
    assert!(matches!(error, CommError::TokenRefused { .. }), "{error:?}");
    assert_eq!(error.exit_code(), ExitCode::PermissionDenied);
    let shown = format!("{error} {error:?} {wrong:?} {:?}", error.hint());
    assert!(!shown.contains(&token.to_hex()[..16]), "{shown}");
    let seat = come(guest(&place, 1, 2)).unwrap();
    assert_eq!(host.join().unwrap().unwrap().control.num_refused(), 1);
    seat.control.leave();
}

#[test]
fn a_rank_0_that_does_not_know_the_token_gets_no_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let [_, place] = places(folder.path());
    let MeetingPlace::Loopback { publish, .. } = &place else { unreachable!() };
    // It says all that can be said without the token.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    tcp::publish(&listener.local_addr().unwrap().to_string(), publish).unwrap();
    let impostor = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(Challenge::new().unwrap().words()).unwrap();
        stream.read_exact(&mut [0; HELLO_LEN]).unwrap();
        let mut welcome = [0; CHALLENGE_LEN];
        welcome[..12].copy_from_slice(b"scoutjob\x01\0\0\0");
        stream.write_all(&welcome).unwrap();
    });
    let error = come(guest(&place, 1, 2)).err().unwrap();
    assert!(matches!(error, CommError::NotOurJob { .. }), "{error:?}");
    impostor.join().unwrap();
}

#[test]
fn a_hello_heard_on_the_wire_opens_no_door_again() {
    let folder = tempfile::tempdir().unwrap();
    let [_, place] = places(folder.path());
    let MeetingPlace::Loopback { publish, token } = &place else { unreachable!() };
    let rank_0 = guest(&place, 0, 2);
    let host = std::thread::spawn(move || come(rank_0));
    // Somebody in between passes everything on and keeps a copy of what the guest says.
    let middle = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let through = MeetingPlace::Tcp { address: middle.local_addr().unwrap().to_string(), token: token.clone() };
    let begun = Instant::now();
    let address = loop {
        match tcp::published(publish) {
            Ok(address) => break address,
            Err(_) => assert!(begun.elapsed() < PATIENCE),
        }
    };
    let mut deceived = guest(&through, 1, 2);
    deceived.limits.init_timeout = Duration::from_secs(2);
    let visit = std::thread::spawn(move || come(deceived).err().map(|error| error.to_string()));
    let (mut from_guest, _) = middle.accept().unwrap();
    let mut to_host = TcpStream::connect(&address).unwrap();
    let (mut challenge, mut hello) = ([0; CHALLENGE_LEN], [0; HELLO_LEN]);
    to_host.read_exact(&mut challenge).unwrap();
    from_guest.write_all(&challenge).unwrap();
    from_guest.read_exact(&mut hello).unwrap();
    drop((from_guest, middle));
    // Shown to another challenge, it proves nothing.
    let mut replay = TcpStream::connect(&address).unwrap();
    replay.read_exact(&mut challenge).unwrap();
    replay.write_all(&hello).unwrap();
    let mut answer = [0; CHALLENGE_LEN];
    replay.read_exact(&mut answer).unwrap();
    assert_eq!(answer[8], 2, "refused");
    assert_eq!(replay.read(&mut answer).unwrap(), 0, "and shown out");
    drop((to_host, replay));
    assert!(visit.join().unwrap().is_some());
    let seat = come(guest(&place, 1, 2)).unwrap();
    drop((host.join().unwrap().unwrap(), seat));
}

#[test]
fn a_rank_that_comes_when_the_job_has_begun_is_told_so_and_disturbs_nobody() {
    let folder = tempfile::tempdir().unwrap();
    for place in places(folder.path()) {
        let seats: Vec<Seat> =
            gather((0..2).map(|rank| guest(&place, rank, 2)).collect()).into_iter().map(Result::unwrap).collect();
        let mut late = guest(&place, 1, 2);
        late.introduction.pid = 99;
        let error = come(late).err().unwrap();
        let expected = "rank 1 (host here, pid 99) came when the job had begun with rank 1 of 2 (host here, pid 1001)";
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.exit_code(), ExitCode::BadConfig);
        std::thread::scope(|scope| {
            seats.iter().for_each(|seat| drop(scope.spawn(|| seat.job.comm.barrier().unwrap())))
        });
        assert!(seats.iter().all(|seat| seat.control.verdict().is_none()));
    }
}

#[test]
fn a_place_that_others_can_reach_or_that_is_taken_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let place = MeetingPlace::Unix { socket: open.join("meet.sock") };
    for rank in 0..2 {
        let error = come(guest(&place, rank, 2)).err().unwrap();
        assert_eq!(error.to_string(), format!("`{}` is open to other users (mode 755), expected 700", open.display()));
        assert_eq!(error.exit_code(), ExitCode::PermissionDenied);
        assert!(error.hint().unwrap().contains("chmod 700"));
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = MeetingPlace::Tcp { address: address.clone(), token: Token::generate().unwrap() };
    let error = come(guest(&place, 0, 2)).err().unwrap();
    assert_eq!(error.to_string(), format!("`{address}` is in use by another process"));
}

#[test]
fn a_job_leaves_nothing_behind_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let place = MeetingPlace::Unix { socket: folder.path().join("job/meet.sock") };
    drop(gather((0..3).map(|rank| guest(&place, rank, 3)).collect()));
    assert_eq!(fs::read_dir(folder.path().join("job")).unwrap().count(), 0);
}
