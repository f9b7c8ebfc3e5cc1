//! Where a rank is in its work: the phase and the step. The thread that trains says so; whoever must explain why a rank
//! is missing reads it, from another thread or, after the rank's death, from its file. Nobody waits for anybody here.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a rank is doing, in the order in which a step comes to it. The names are those of the code, the logs and the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Before anything else: command line, configuration, meeting the other ranks.
    Start,
    /// Data to tokens.
    Data,
    /// Weights from files to memory.
    Load,
    Gather,
    Forward,
    Loss,
    Backward,
    Reduce,
    Update,
    Evaluate,
    Save,
}

const PHASES: [Phase; 11] = [
    Phase::Start,
    Phase::Data,
    Phase::Load,
    Phase::Gather,
    Phase::Forward,
    Phase::Loss,
    Phase::Backward,
    Phase::Reduce,
    Phase::Update,
    Phase::Evaluate,
    Phase::Save,
];

/// A phase and, once training has begun, the step it belongs to, counted from 1 as in the log; 0 before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub phase: Phase,
    pub step: u64,
}

/// The present place of one rank. Saying it is cheap enough for every block of the model.
#[derive(Debug)]
pub struct Whereabouts {
    // Invariant: always `Place::to_bits` of some place, so that phase and step are never seen apart.
    place: AtomicU64,
    /// How often the rank went on to another place: one that does not change may hang.
    changes: AtomicU64,
    /// Outlives the process, however it dies.
    file: Option<File>,
    steps: Mutex<Steps>,
    /// Every change with its time, while somebody wants them.
    diary: Mutex<Option<Diary>>,
}

/// Places in the order in which they were entered.
pub type Diary = Vec<(Instant, Place)>;

/// How long steps take, between their own phases alone: saving or scoring in between is nobody's step.
#[derive(Debug, Default)]
struct Steps {
    begun: Option<Instant>,
    ended: Vec<Duration>,
}

/// Times that nobody asks for are not kept.
const MOST_STEPS_KEPT: usize = 256;

/// Bytes of a place in a file: one line of fixed length, so that each write replaces the last one whole.
const LINE_LEN: usize = 32;

impl Whereabouts {
    /// In `Phase::Start`. With `file`, every change is also written there, at its beginning.
    pub fn new(file: Option<File>) -> Whereabouts {
        let whereabouts = Whereabouts {
            place: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            file,
            steps: Mutex::default(),
            diary: Mutex::default(),
        };
        whereabouts.put(Place { phase: Phase::Start, step: 0 });
        whereabouts
    }

    /// Goes on to another phase of the same step.
    pub fn enter(&self, phase: Phase) {
        self.put(Place { phase, ..self.place() });
    }

    /// In `phase` as long as `work` takes, and then where it was. An error leaves it in the phase in which it came about.
    pub fn during<T, E>(&self, phase: Phase, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let before = self.place().phase;
        self.enter(phase);
        let value = work()?;
        self.enter(before);
        Ok(value)
    }

    /// Goes on to `phase` of `step`, counted from 1.
    pub fn enter_step(&self, phase: Phase, step: u64) {
        self.put(Place { phase, step });
    }

    pub fn place(&self) -> Place {
        Place::from_bits(self.place.load(Ordering::Relaxed)).expect("only places are stored")
    }

    pub fn num_changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// The times of the steps that have ended since this was last asked.
    pub fn take_step_times(&self) -> Vec<Duration> {
        std::mem::take(&mut self.steps().ended)
    }

    /// From now on every change is kept with its time, until [`Whereabouts::end_diary`].
    pub fn begin_diary(&self) {
        *self.diary() = Some(Diary::new());
    }

    pub fn end_diary(&self) -> Diary {
        self.diary().take().unwrap_or_default()
    }

    fn diary(&self) -> MutexGuard<'_, Option<Diary>> {
        self.diary.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn note_step(&self, from: Place, to: Place) {
        let goes_on = from.step == to.step && to.phase.is_of_a_step();
        if goes_on {
            return;
        }
        let now = Instant::now();
        let mut steps = self.steps();
        if let Some(begun) = steps.begun.take()
            && steps.ended.len() < MOST_STEPS_KEPT
        {
            steps.ended.push(now - begun);
        }
        if to.phase.is_of_a_step() {
            steps.begun = Some(now);
        }
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        // Every change is whole before the lock is given back.
        self.steps.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn put(&self, place: Place) {
        self.note_step(self.place(), place);
        if let Some(diary) = &mut *self.diary() {
            diary.push((Instant::now(), place));
        }
        self.place.store(place.to_bits(), Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::Relaxed);
        if let Some(file) = &self.file {
            // The file serves a message about a rank that died. A rank that lives has no use for an error about it.
            let _ = file.write_all_at(place.to_line().as_bytes(), 0);
        }
    }
}

impl Place {
    /// One number for both, as heartbeats carry it.
    pub fn to_bits(self) -> u64 {
        (self.phase as u64) << 56 | (self.step & ((1 << 56) - 1))
    }

    pub fn from_bits(bits: u64) -> Option<Place> {
        let phase = *PHASES.get((bits >> 56) as usize)?;
        Some(Place { phase, step: bits & ((1 << 56) - 1) })
    }

    fn to_line(self) -> String {
        let Place { phase, step } = self;
        format!("{:<width$}\n", format!("{phase} {step}"), width = LINE_LEN - 1)
    }

    /// Reads what [`Whereabouts`] wrote to its file.
    pub fn from_line(line: &str) -> Option<Place> {
        let (phase, step) = line.trim().split_once(' ')?;
        let phase = PHASES.into_iter().find(|known| known.name() == phase)?;
        Some(Place { phase, step: step.parse().ok()? })
    }
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Start => "start",
            Phase::Data => "data",
            Phase::Load => "load",
            Phase::Gather => "gather",
            Phase::Forward => "forward",
            Phase::Loss => "loss",
            Phase::Backward => "backward",
            Phase::Reduce => "reduce",
            Phase::Update => "update",
            Phase::Evaluate => "evaluate",
            Phase::Save => "save",
        }
    }

    /// Phases that come back in every step; the others happen a few times and may take long.
    pub fn is_of_a_step(self) -> bool {
        !matches!(self, Phase::Start | Phase::Data | Phase::Load | Phase::Evaluate | Phase::Save)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// `backward of step 17`, or `load` before the first step.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            0 => write!(f, "{}", self.phase),
            step => write!(f, "{} of step {step}", self.phase),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_bits_and_lines() {
        for (index, phase) in PHASES.into_iter().enumerate() {
            assert_eq!(phase as usize, index);
            for step in [0, 1, 17, 123_456_789] {
                let place = Place { phase, step };
                assert_eq!(Place::from_bits(place.to_bits()), Some(place));
                assert_eq!(Place::from_line(&place.to_line()), Some(place));
                assert_eq!(place.to_line().len(), LINE_LEN);
            }
        }
        assert_eq!(Place::from_bits(u64::MAX), None);
        for broken in ["", "backward", "backward x", "sleep 3"] {
            assert_eq!(Place::from_line(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn the_time_of_a_step_is_the_time_in_its_own_phases() {
        let whereabouts = Whereabouts::new(None);
        whereabouts.enter(Phase::Load);
        let begun = Instant::now();
        whereabouts.enter_step(Phase::Forward, 1);
        whereabouts.enter(Phase::Backward);
        assert_eq!(whereabouts.take_step_times(), [], "the first step goes on");
        std::thread::sleep(Duration::from_millis(2));
        whereabouts.enter_step(Phase::Forward, 2);
        let first = whereabouts.take_step_times();
        assert!(first.len() == 1 && first[0] >= Duration::from_millis(2) && first[0] <= begun.elapsed(), "{first:?}");
        whereabouts.enter(Phase::Evaluate); // ends the second
        std::thread::sleep(Duration::from_millis(20));
        let resumed = Instant::now();
        whereabouts.enter_step(Phase::Forward, 3); // after an evaluation that belongs to no step
        whereabouts.enter(Phase::Save);
        let later = whereabouts.take_step_times();
        assert!(later.len() == 2 && later[1] <= resumed.elapsed(), "{later:?}");
    }

    #[test]
    fn a_diary_holds_the_changes_between_its_two_ends() {
        let whereabouts = Whereabouts::new(None);
        whereabouts.enter_step(Phase::Forward, 3);
        let begun = Instant::now();
        whereabouts.begin_diary();
        whereabouts.enter(Phase::Backward);
        whereabouts.enter(Phase::Reduce);
        let diary = whereabouts.end_diary();
        whereabouts.enter(Phase::Update);
        let phases: Vec<Phase> = diary.iter().map(|(_, place)| place.phase).collect();
        assert_eq!(phases, [Phase::Backward, Phase::Reduce]);
        assert!(diary[0].0 >= begun && diary.is_sorted_by_key(|(at, _)| *at));
        assert_eq!(whereabouts.end_diary(), [], "nobody keeps one");
    }

    #[test]
    fn the_file_holds_the_last_place_whole() {
        let mut path = std::env::temp_dir();
        path.push(format!("scout-whereabouts-{}", std::process::id()));
        let whereabouts = Whereabouts::new(Some(File::create(&path).unwrap()));
        let read = || Place::from_line(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read(), Place { phase: Phase::Start, step: 0 });
        whereabouts.enter_step(Phase::Backward, 1_234_567);
        assert_eq!(read().to_string(), "backward of step 1234567");
        whereabouts.enter(Phase::Reduce);
        assert_eq!(read(), whereabouts.place());
        whereabouts.enter_step(Phase::Load, 0);
        assert_eq!(read().to_string(), "load");
        assert_eq!(whereabouts.num_changes(), 4);
        std::fs::remove_file(&path).unwrap();
    }
}
