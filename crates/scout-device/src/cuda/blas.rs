//! Matrix products at the level of addresses: which of cuBLASLt's algorithms computes which shape. The choice is made
//! once for each class of shapes by timing, and kept.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_core::{ByteCount, DType};

use super::arena::{Arena, Block};
use super::context::Context;
use super::product::{Algorithm, Descriptors, Handle, Operands, Problem, WIDE_TILE, Workspace};
use super::stream::Stream;
use crate::{DeviceError, Purpose, Result};

/// What cuBLASLt is recommended on this architecture; more finds no faster algorithm.
const WORKSPACE: usize = 32 << 20;
/// The library knows no more than these.
const NUM_CANDIDATES: usize = 8;
/// Written between the runs of a trial: more than the cache of any GPU holds, so that a run finds its factors in memory,
/// as it does in a step. Where they stay in the cache, other algorithms win.
const FLUSH: usize = 192 << 20;
/// Plans kept for exact shapes. Row counts change from step to step, so old ones are dropped.
const MAX_PLANS: usize = 4096;

/// How an algorithm is chosen for a class of shapes seen for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The fastest of the candidates in a trial.
    Timed,
    /// The first candidate: the same in every run, so that runs can be compared bit by bit.
    First,
}

impl Choice {
    /// Scratch memory that products take, where `largest` is the most that one of them writes: the library's own, and for a
    /// trial a second result and what is written between its runs.
    pub fn scratch(self, largest: ByteCount) -> ByteCount {
        let of_trial = match self {
            Choice::Timed => largest + ByteCount(FLUSH as u64),
            Choice::First => ByteCount(0),
        };
        ByteCount(WORKSPACE as u64) + of_trial
    }
}

/// What a trial found, for reports.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    pub class: Problem,
    pub num_candidates: usize,
    pub chosen: usize,
    pub first: Duration,
    pub best: Duration,
}

/// Products of one device.
pub(super) struct Blas {
    handle: Handle,
    /// Where it is known which candidates of long products are frugal.
    frugal: Option<Frugal>,
    arena: Arena,
    choice: Choice,
    patience: Patience,
    state: Mutex<State>,
}

/// Long products run at the power limit, where the clock follows from what an algorithm moves and switches, and slower than a
/// trial is over. On an H200 tiles of 128 rows and 256 columns did most there: with six products of Scout's of 4,096 to
/// 16,384 rows 0.6 to 1.8 % more on average than the library's first candidate. So they come first, and another must be
/// clearly faster: those that won a trial against them by 5 % and more did 0.5 to 2.2 % more at the power limit, those that won
/// by less did 2.1 % less to 1.9 % more. With 2,048 rows, where they are four rounds of tiles or less, they did up to 5 % less.
#[derive(Debug, Clone, Copy)]
struct Frugal {
    num_multiprocessors: usize,
}

impl Frugal {
    fn on(architecture: u32, num_multiprocessors: u32) -> Option<Frugal> {
        (architecture == 90).then_some(Frugal { num_multiprocessors: num_multiprocessors as usize })
    }

    /// Whether a class is bound by arithmetic, of factors of bf16, and keeps all multiprocessors busy for several rounds.
    fn is_long(self, class: &Problem) -> bool {
        // With 1,024 they took longer, and with 5,120 they did not; between these nobody looked.
        const LEAST_INNER: usize = 2048;
        const LEAST_ROUNDS: usize = 4;
        let [rows, columns] = WIDE_TILE;
        let num_tiles = class.m.div_ceil(rows) * class.n.div_ceil(columns);
        class.factors == DType::BF16 && class.k >= LEAST_INNER && num_tiles >= LEAST_ROUNDS * self.num_multiprocessors
    }
}

/// When a class is worth a trial: when its products have taken as long as so many trials of it, or at once.
struct Patience {
    trials: f64,
    at_once: AtomicBool,
}

#[derive(Default)]
struct State {
    plans: HashMap<Problem, Arc<Plan>>,
    classes: HashMap<Problem, Class>,
    trials: Vec<Trial>,
    /// One for each stream that products were queued on: two streams may not share one.
    workspaces: Vec<(Arc<Stream>, Block)>,
}

/// A product that is to be queued.
struct Asked<'a> {
    problem: &'a Problem,
    operands: Operands,
    workspace: Workspace,
    stream: &'a Arc<Stream>,
}

/// What problems of a class share.
struct Class {
    algorithm: Algorithm,
    /// About how long its products have taken, until its trial.
    took: Duration,
    /// Whether more uses may bring a trial.
    may_be_tried: bool,
}

struct Plan {
    descriptors: Mutex<Descriptors>,
    algorithm: Algorithm,
}

impl Blas {
    /// Workspaces are taken from `arena`. A class is tried when its products have taken as long as so many trials of it.
    pub(super) fn new(context: &Arc<Context>, arena: Arena, choice: Choice, trials_first: f64) -> Result<Blas> {
        let patience = Patience { trials: trials_first, at_once: AtomicBool::new(false) };
        let frugal = Frugal::on(context.properties.architecture, context.properties.num_multiprocessors);
        Ok(Blas { handle: Handle::new(context)?, frugal, arena, choice, patience, state: Mutex::default() })
    }

    /// From now on each class is tried when it is used next.
    pub(super) fn try_at_once(&self) {
        self.patience.at_once.store(true, Ordering::Relaxed);
    }

    /// Queues `c = alpha·op(a)·op(b) + beta·c` on `stream`; the scalars are `alpha` and `beta`.
    ///
    /// # Safety
    ///
    /// The matrices of `problem` lie at the addresses of `operands`, in memory that stays until `stream` is done with it,
    /// and nobody else looks at the result.
    pub(super) unsafe fn multiply(
        &self,
        problem: &Problem,
        operands: Operands,
        (alpha, beta): (f32, f32),
        stream: &Arc<Stream>,
    ) -> Result<()> {
        let asked = Asked { problem, operands, workspace: self.workspace(stream)?, stream };
        let plan = self.plan(&asked)?;
        let descriptors = plan.descriptors.lock().expect("no holder of this lock panics");
        // SAFETY: the operands are as the caller promises; the workspace is this stream's own.
        unsafe { self.handle.multiply(&descriptors, &plan.algorithm, operands, (alpha, beta), asked.workspace, stream) }
    }

    fn workspace(&self, stream: &Arc<Stream>) -> Result<Workspace> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if let Some((_, block)) = state.workspaces.iter().find(|(owner, _)| Arc::ptr_eq(owner, stream)) {
            return Ok(Workspace { address: block.address(), bytes: WORKSPACE });
        }
        let block = self.arena.take(Purpose::Workspace, WORKSPACE)?;
        if !Arc::ptr_eq(stream, self.arena.home()) {
            stream.wait_for(&self.arena.home().record()?)?;
            block.fence_when_dropped(stream);
        }
        let address = block.address();
        state.workspaces.push((stream.clone(), block));
        Ok(Workspace { address, bytes: WORKSPACE })
    }

    fn plan(&self, asked: &Asked) -> Result<Arc<Plan>> {
        let problem = asked.problem;
        let class = class_of(problem);
        let known = {
            let state = &mut *self.state.lock().expect("no holder of this lock panics");
            match state.classes.get_mut(&class) {
                Some(found) if !found.may_be_tried || !self.patience.is_over(problem, found.took) => {
                    if found.may_be_tried {
                        found.took += problem.estimate();
                    }
                    if let Some(plan) = state.plans.get(problem) {
                        return Ok(plan.clone());
                    }
                    Some(found.algorithm)
                }
                _ => None,
            }
        };
        let descriptors = self.handle.describe(problem)?;
        let known = known.and_then(|known| self.handle.adapt(&descriptors, &known, asked.workspace.bytes));
        let algorithm = match known {
            Some(known) => known,
            None => self.choose(asked, &descriptors)?,
        };
        let plan = Arc::new(Plan { descriptors: Mutex::new(descriptors), algorithm });
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if state.plans.len() >= MAX_PLANS {
            state.plans.clear();
        }
        state.plans.insert(*problem, plan.clone());
        Ok(plan)
    }

    /// Those of the library, in its order but for long products.
    fn candidates(&self, asked: &Asked, descriptors: &Descriptors) -> Result<Vec<Algorithm>> {
        let &Asked { problem, workspace, .. } = asked;
        let found = self.handle.candidates(descriptors, problem.alignment, workspace.bytes, NUM_CANDIDATES)?;
        match self.frugal.is_some_and(|frugal| frugal.is_long(&class_of(problem))) {
            true => first_those(found, |algorithm| self.handle.has_wide_tiles(algorithm)),
            false => Ok(found),
        }
    }

    /// For a problem whose class is new, or has earned a trial, or has an algorithm that does not suit this problem.
    fn choose(&self, asked: &Asked, descriptors: &Descriptors) -> Result<Algorithm> {
        let problem = asked.problem;
        let candidates = self.candidates(asked, descriptors)?;
        let Some(&first) = candidates.first() else {
            let problem = format!("found no algorithm for {problem:?}");
            return Err(DeviceError::Value { what: "matrix product on the GPU", problem });
        };
        let class = class_of(problem);
        let (took, is_settled) = {
            let state = self.state.lock().expect("no holder of this lock panics");
            state.classes.get(&class).map_or((Duration::ZERO, false), |found| (found.took, !found.may_be_tried))
        };
        let is_due = is_settled || self.patience.is_over(problem, took);
        let algorithm = match self.choice == Choice::Timed && is_due && candidates.len() > 1 {
            true => self.try_out(&candidates, asked, descriptors)?,
            false => first,
        };
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let may_be_tried = self.choice == Choice::Timed && !is_due;
        match is_due && !is_settled {
            true => {
                state.plans.retain(|other, _| class_of(other) != class);
                state.classes.insert(class, Class { algorithm, took, may_be_tried });
            }
            // What suits only this problem is kept in its plan alone.
            false => _ = state.classes.entry(class).or_insert(Class { algorithm, took, may_be_tried }),
        }
        Ok(algorithm)
    }

    /// The fastest of `candidates` on these operands.
    fn try_out(&self, candidates: &[Algorithm], asked: &Asked, descriptors: &Descriptors) -> Result<Algorithm> {
        let &Asked { problem, operands, workspace, stream } = asked;
        // The trial writes to memory of its own: the result may be added to. Without room for it there is no trial.
        let bytes = problem.result.size().0 as usize * problem.m * problem.leading;
        let scratch = (self.arena.take(Purpose::Workspace, bytes), self.arena.take(Purpose::Workspace, FLUSH));
        let (Ok(result), Ok(flush)) = scratch else { return Ok(candidates[0]) };
        stream.wait_for(&self.arena.home().record()?)?;
        result.fence_when_dropped(stream);
        let operands = Operands { c: result.address(), ..operands };
        let run = |candidate: &Algorithm| -> Result<Duration> {
            const DEADLINE: Duration = Duration::from_secs(60);
            flush.fill_on(stream, 0)?;
            let start = stream.record_time()?;
            // SAFETY: as in `multiply`; the result goes to scratch memory of the same shape.
            unsafe { self.handle.multiply(descriptors, candidate, operands, (1.0, 0.0), workspace, stream) }?;
            let end = stream.record_time()?;
            end.wait(DEADLINE)?;
            end.since(&start)
        };
        let times = trial(candidates, run);
        let chosen = clear_winner(&times);
        let outcome =
            Trial { class: *problem, num_candidates: candidates.len(), chosen, first: times[0], best: times[chosen] };
        self.state.lock().expect("no holder of this lock panics").trials.push(outcome);
        Ok(candidates[chosen])
    }

    pub(super) fn choice(&self) -> Choice {
        self.choice
    }

    pub(super) fn trials(&self) -> Vec<Trial> {
        self.state.lock().expect("no holder of this lock panics").trials.clone()
    }
}

/// The median time of each candidate. They take turns, so that a change of the clock meets all of them alike. One that fails
/// is none; it must not end the run. Neither is one that is far behind the best in the first turn, unless it is the
/// first, which the others are measured by.
fn trial<T>(candidates: &[T], run: impl Fn(&T) -> Result<Duration>) -> Vec<Duration> {
    const ROUNDS: usize = 5;
    const FAR_BEHIND: f64 = 1.15;
    let turn = |candidate: &T| run(candidate).unwrap_or(Duration::MAX);
    candidates.iter().for_each(|candidate| _ = turn(candidate)); // only warms up
    let mut times: Vec<Vec<Duration>> = candidates.iter().map(|candidate| vec![turn(candidate)]).collect();
    let limit = times.iter().map(|times| times[0]).min().unwrap_or_default().as_secs_f64() * FAR_BEHIND;
    for times in times.iter_mut().skip(1).filter(|times| times[0].as_secs_f64() > limit) {
        times[0] = Duration::MAX;
    }
    for _ in 1..ROUNDS {
        for (times, candidate) in times.iter_mut().zip(candidates).filter(|(times, _)| times[0] < Duration::MAX) {
            times.push(turn(candidate));
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

impl Patience {
    /// For a class whose products have taken so long, of which `problem` is one.
    fn is_over(&self, problem: &Problem, took: Duration) -> bool {
        self.at_once.load(Ordering::Relaxed) || took >= trial_time(problem).mul_f64(self.trials)
    }
}

/// About how long a trial takes: some thirty products, each with what is written before it.
fn trial_time(problem: &Problem) -> Duration {
    const RUNS: u32 = 30;
    const WRITING: Duration = Duration::from_micros(100);
    RUNS * (problem.estimate() + WRITING)
}

/// The shortest, if it beats the first candidate clearly. On an H200, what was faster by 3 or 4 % alone was slower
/// by up to 5 % in a loop over experts, where the end of one product runs beside the beginning of the next; what was
/// faster by 5 % and more stayed faster.
fn clear_winner(times: &[Duration]) -> usize {
    const CLEARLY: f64 = 0.955;
    let best = (0..times.len()).min_by_key(|&index| times[index]).unwrap_or(0);
    if times[best].as_secs_f64() < CLEARLY * times[0].as_secs_f64() { best } else { 0 }
}

/// Those first that are `such`, and both kinds in the order in which they came.
fn first_those<T>(all: Vec<T>, such: impl Fn(&T) -> Result<bool>) -> Result<Vec<T>> {
    let (mut first, mut rest) = (Vec::with_capacity(all.len()), Vec::new());
    for one in all {
        if such(&one)? { first.push(one) } else { rest.push(one) }
    }
    first.append(&mut rest);
    Ok(first)
}

/// Problems of one class share an algorithm: their extents agree up to an eighth.
fn class_of(problem: &Problem) -> Problem {
    Problem { m: rounded(problem.m), n: rounded(problem.n), k: rounded(problem.k), ..*problem }
}

/// Up to the next number with at most four significant bits, and at least 16.
fn rounded(extent: usize) -> usize {
    let extent = extent.max(16);
    extent.next_multiple_of(1 << (extent.ilog2() - 3))
}

#[cfg(test)]
mod tests {
    use scout_core::DType;

    use super::*;
    use crate::cuda::product::FactorForm;

    #[test]
    fn extents_of_a_class_agree_up_to_an_eighth() {
        for (extent, expected) in [
            (1, 16),
            (16, 16),
            (17, 18),
            (1000, 1024),
            (1024, 1024),
            (1025, 1152),
            (5120, 5120),
            (16384, 16384),
            (16385, 18432),
            (202_048, 212_992),
        ] {
            assert_eq!(rounded(extent), expected, "{extent}");
        }
        for extent in 16..20_000 {
            assert!(rounded(extent) >= extent && rounded(extent) - extent <= extent / 8);
        }
    }

    #[test]
    fn long_products_are_those_that_fill_an_h200_for_four_rounds() {
        let frugal = Frugal::on(90, 132).unwrap();
        assert!(Frugal::on(80, 108).is_none());
        let form = FactorForm { transposed: false, leading: 8192 };
        let of = |m, n, k, factors| Problem {
            m,
            n,
            k,
            a: form,
            b: form,
            leading: n,
            factors,
            result: DType::BF16,
            alignment: 256,
        };
        for (m, n, k, expected) in [
            (16_384, 5120, 5120, true),
            (16_384, 1024, 5120, false),
            (4096, 5120, 5120, true),
            (2048, 5120, 8192, false),
            (2048, 8192, 5120, false),
            (2048, 202_048, 5120, true),
            (16_384, 5120, 1024, false),
            (16_384, 24, 5120, false),
        ] {
            assert_eq!(frugal.is_long(&class_of(&of(m, n, k, DType::BF16))), expected, "{m}x{n}x{k}");
            assert!(!frugal.is_long(&class_of(&of(m, n, k, DType::F32))), "{m}x{n}x{k}");
        }
    }

    #[test]
    fn what_is_frugal_comes_first_and_the_rest_stays_in_order() {
        let is_even = |number: &i32| Ok(number % 2 == 0);
        assert_eq!(first_those(vec![5, 2, 3, 4, 1], is_even).unwrap(), [2, 4, 5, 3, 1]);
        assert_eq!(first_those(vec![5, 3], is_even).unwrap(), [5, 3]);
        let fails = |_: &i32| Err(DeviceError::Late { waited: Duration::ZERO });
        assert!(first_those(vec![5], fails).is_err());
    }

    #[test]
    fn short_products_wait_longer_for_a_trial_than_long_ones() {
        let form = FactorForm { transposed: false, leading: 5120 };
        let (factors, result) = (DType::BF16, DType::BF16);
        let uses_until_trial = |trials, m| {
            let patience = Patience { trials, at_once: AtomicBool::new(false) };
            let of =
                Problem { m, n: 16_384, k: 5120, a: form, b: form, leading: 16_384, factors, result, alignment: 256 };
            let uses = (0..10_000).find(|&uses| patience.is_over(&of, uses * of.estimate())).unwrap();
            patience.at_once.store(true, Ordering::Relaxed);
            assert!(patience.is_over(&of, Duration::ZERO));
            uses
        };
        for (m, expected) in [(16_384, 1536), (2048, 1787), (128, 4740), (1, 4837)] {
            let found = uses_until_trial(50.0, m);
            assert!(found.abs_diff(expected) < 10, "{m} rows: {found} uses");
            assert_eq!(uses_until_trial(0.0, m), 0);
        }
    }

    #[test]
    fn the_first_candidate_is_kept_unless_another_is_clearly_faster() {
        for (milliseconds, expected) in [
            (vec![100], 0),
            (vec![100, 99, 98], 0),
            (vec![100, 99, 96], 0),
            (vec![100, 99, 95], 2),
            (vec![100, 120, 130], 0),
            (vec![100, 50, 40, 45], 2),
        ] {
            let times: Vec<Duration> = milliseconds.iter().map(|&time| Duration::from_millis(time)).collect();
            assert_eq!(clear_winner(&times), expected, "{milliseconds:?}");
        }
        assert_eq!(clear_winner(&[Duration::MAX, Duration::from_millis(1)]), 1);
    }

    #[test]
    fn one_far_behind_in_the_first_turn_is_none_but_the_first_is_always_measured() {
        let turns = std::cell::RefCell::new(Vec::new());
        let run = |&candidate: &u64| {
            turns.borrow_mut().push(candidate);
            Ok(Duration::from_millis(candidate))
        };
        assert_eq!(trial(&[130, 100, 116, 114], run)[..2], [130, 100].map(Duration::from_millis));
        assert_eq!(trial(&[130, 100, 116, 114], run)[2..], [Duration::MAX, Duration::from_millis(114)]);
        let of = |candidate| turns.borrow().iter().filter(|turn| **turn == candidate).count();
        assert_eq!([130, 100, 116, 114].map(of), [12, 12, 4, 12]);
    }

    #[test]
    fn a_candidate_that_fails_is_none() {
        let run = |&candidate: &u64| match candidate {
            0 => Err(DeviceError::Late { waited: Duration::ZERO }),
            time => Ok(Duration::from_millis(time)),
        };
        assert_eq!(
            trial(&[3, 0, 2], run),
            [3, u64::MAX, 2].map(|time| match time {
                u64::MAX => Duration::MAX,
                time => Duration::from_millis(time),
            })
        );
    }
}
