//! Reads the sentences in which a job says which rank it lost. The forms are promises to people and scripts.

use scout_core::{Phase, Place};

/// What a sentence says about a rank.
#[derive(Debug, PartialEq, Eq)]
pub struct Told<'a> {
    pub rank: usize,
    pub world: usize,
    pub host: &'a str,
    pub pid: u32,
    /// What happened to it.
    pub fate: &'a str,
}

impl<'a> Told<'a> {
    /// `… rank 3 of 8 (host h, pid p) FATE`, wherever in the line it begins.
    pub fn read(line: &'a str) -> Option<Told<'a>> {
        // A launcher puts `[rank N]` in front of a line, which is no sentence about that rank.
        let (_, line) = line.split_once("error: rank ")?;
        let (rank, rest) = line.split_once(" of ")?;
        let (world, rest) = rest.split_once(" (host ")?;
        let (host, rest) = rest.split_once(", pid ")?;
        let (pid, fate) = rest.split_once(") ")?;
        Some(Told { rank: rank.parse().ok()?, world: world.parse().ok()?, host, pid: pid.parse().ok()?, fate })
    }
}

/// `backward of step 17`, or `load` before the first step.
pub fn place(text: &str) -> Option<Place> {
    let (phase, step) = match text.split_once(" of step ") {
        Some((phase, step)) => (phase, step.parse().ok().filter(|step| *step > 0)?),
        None => (text, 0),
    };
    Place::from_line(&format!("{phase} {step}"))
}

/// The host's name as the sentences give it.
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_string()
}

#[test]
fn the_promised_sentences_are_read_and_others_are_not() {
    let line = "[rank 0] error: rank 3 of 8 (host node-1, pid 77) was lost in backward of step 17: connection lost";
    let fate = "was lost in backward of step 17: connection lost";
    assert_eq!(Told::read(line), Some(Told { rank: 3, world: 8, host: "node-1", pid: 77, fate }));
    for line in ["", "[rank 3] of 8", "error: rank 3 of 8 was lost", "error: rank x of 8 (host h, pid 1) was lost"] {
        assert_eq!(Told::read(line), None, "{line}");
    }
    assert_eq!(place("backward of step 17"), Some(Place { phase: Phase::Backward, step: 17 }));
    assert_eq!(place("load"), Some(Place { phase: Phase::Load, step: 0 }));
    for text in ["sleep", "backward of step 0", "backward of step x", "backward 3"] {
        assert_eq!(place(text), None, "{text}");
    }
}
