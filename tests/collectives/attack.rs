//! Strangers at the door while a job runs: they learn nothing, hold nothing up and change no bit.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_comm::{CommError, Limits, MeetingPlace, Seat, meet};
use scout_core::{Mesh, Rank, Token, Whereabouts};
use scout_device::Buffer;

use super::PATIENT;
use super::backends::{Member, approach, limits, on_threads};
use super::cases::{sum_in_rank_order, values};

const WORLD: usize = 3;
const LEN: usize = 10_007;
const NUM_WRONG_TOKENS: usize = 200;
const NUM_NOISY: usize = 1000;
const FRAMES_OF_EACH: usize = 20;

fn seat(place: &MeetingPlace, rank: usize) -> Seat {
    let mesh = Mesh::new(Rank(rank), WORLD).unwrap();
    meet(&approach(place.clone(), mesh, limits(PATIENT)), Arc::new(Whereabouts::new(None))).unwrap()
}

/// Comes as rank 1 with a token of its own.
fn come_with_a_wrong_token(address: &str) {
    let place = MeetingPlace::Tcp { address: address.to_string(), token: Token::generate().unwrap() };
    let mesh = Mesh::new(Rank(1), WORLD).unwrap();
    let limits = Limits { init_timeout: Duration::from_secs(20), ..limits(PATIENT) };
    let outcome = meet(&approach(place, mesh, limits), Arc::new(Whereabouts::new(None)));
    let error = outcome.err().expect("a wrong token opens nothing");
    assert!(matches!(error, CommError::TokenRefused { .. }), "{error:?}");
}

/// Says what no rank would say, in frames that begin like noise or like a rank's, until it is shown out.
fn make_noise(address: &str, turn: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut frame = [turn as u8; 512];
    if turn.is_multiple_of(2) {
        frame[..8].copy_from_slice(b"scoutjob");
    }
    for _ in 0..FRAMES_OF_EACH {
        if stream.write_all(&frame).is_err() {
            break;
        }
    }
    stream.set_read_timeout(Some(PATIENT)).unwrap();
    // The challenge, perhaps a refusal, and then the end.
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    assert!(heard.len() <= 96, "{} bytes for a stranger", heard.len());
}

#[test]
fn wrong_tokens_and_noise_at_the_door_change_no_bit_of_a_running_job() {
    let folder = tempfile::tempdir().unwrap();
    let token = Token::generate().unwrap();
    let place = MeetingPlace::Loopback { publish: folder.path().join("address"), token };
    let expected = sum_in_rank_order(WORLD, LEN);
    let (tell, told) = channel::<String>();
    let told = Mutex::new(told);
    let num_attackers = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        let attackers = scope.spawn(|| {
            let address = told.lock().unwrap().recv_timeout(PATIENT).unwrap();
            // Some stand at the door and say nothing at all.
            let _silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(&address).unwrap()).collect();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    (0..NUM_WRONG_TOKENS).for_each(|_| come_with_a_wrong_token(&address));
                    num_attackers.fetch_sub(1, Ordering::SeqCst);
                });
                (0..NUM_NOISY).for_each(|turn| make_noise(&address, turn));
                num_attackers.fetch_sub(1, Ordering::SeqCst);
            });
        });
        let refused = on_threads((0..WORLD).collect(), &|rank| {
            let seat = seat(&place, rank);
            if let Some(address) = &seat.listening_at {
                tell.send(address.clone()).unwrap();
            }
            let member = Member::seated(seat);
            loop {
                let sum = member.all_reduce(Buffer::from_f32(values(rank, LEN))).unwrap().wait().unwrap();
                assert_eq!(sum.f32s().unwrap(), expected);
                // All ranks must stop after the same turn: rank 0 decides for them.
                let goes_on = (num_attackers.load(Ordering::SeqCst) > 0) as usize as f32;
                let goes_on = member.broadcast(Rank(0), Buffer::from_f32(vec![goes_on])).unwrap().wait().unwrap();
                if goes_on.f32s().unwrap() == [0.0] {
                    break;
                }
            }
            assert_eq!(member.control().verdict(), None);
            member.control().num_refused()
        });
        attackers.join().unwrap();
        assert!(refused[0] >= (NUM_WRONG_TOKENS + NUM_NOISY) as u64, "{} were refused", refused[0]);
    });
}
