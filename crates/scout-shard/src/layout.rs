//! Where in the ring the units of a pass become whole: found before anything runs, from shapes alone. Each unit stays for some
//! blocks of the pass, and two that stay at the same time must not overlap. Found beforehand, places leave hardly a gap
//! between units of different sizes; taking whatever is free needed up to a third more.

use std::cmp::Reverse;
use std::ops::Range;

use scout_core::ByteCount;
use scout_device::cuda::Arena;

use crate::plan::{Schedule, ShardPlan};

/// Bytes of the ring before each unit of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingLayout {
    /// By place in the order of the pass. A unit that is handed on from use to use stays where it is.
    starts: Vec<usize>,
    bytes: usize,
}

/// A unit that is whole, or on its way, from the first of `blocks` on until the last is done; those of the next pass are behind
/// those of this one. It is gathered for the first of `uses` and handed on to the others.
struct Stay {
    blocks: Range<usize>,
    uses: Vec<usize>,
    len: usize,
}

/// Bytes of an arena in which the gathers of any of `passes` find room.
pub fn ring_bytes(plan: &ShardPlan, passes: &[&Schedule]) -> ByteCount {
    let bytes = passes.iter().map(|schedule| RingLayout::of(plan, schedule).bytes).max().unwrap_or(0);
    ByteCount(bytes as u64)
}

/// The plan where gathers bring whole units, as far ahead as they find room in so many bytes; none where they find no room.
pub fn with_whole_units(plan: &ShardPlan, room: ByteCount, passes: &[&Schedule]) -> Option<ShardPlan> {
    let fits = |plan: &ShardPlan| ring_bytes(plan, passes) <= room;
    (0..=plan.lookahead()).rev().map(|lookahead| plan.bringing_whole_units(lookahead)).find(fits)
}

impl RingLayout {
    /// Of the unit at this place of this pass or of the next one.
    pub fn start(&self, at: usize) -> usize {
        self.starts[at % self.starts.len()]
    }

    /// The largest units are placed first, each as low as those let it that are there at the same time.
    pub fn of(plan: &ShardPlan, schedule: &Schedule) -> RingLayout {
        let mut stays = stays(plan, schedule);
        stays.sort_by_key(|stay| (Reverse(stay.len), stay.blocks.start));
        let num_blocks = schedule.steps().count();
        let (mut starts, mut placed) = (vec![0; schedule.len()], Vec::<(Range<usize>, Range<usize>)>::new());
        for Stay { blocks, uses, len } in stays {
            let beside = placed.iter().filter(|(others, _)| meet(&blocks, others, num_blocks));
            let mut taken: Vec<&Range<usize>> = beside.map(|(_, bytes)| bytes).collect();
            taken.sort_by_key(|bytes| bytes.start);
            let mut start = 0;
            for bytes in taken {
                if start + len <= bytes.start {
                    break;
                }
                start = start.max(bytes.end);
            }
            uses.into_iter().for_each(|at| starts[at] = start);
            placed.push((blocks, start..start + len));
        }
        let bytes = placed.iter().map(|(_, bytes)| bytes.end).max().unwrap_or(0);
        RingLayout { starts, bytes }
    }
}

/// Whether two stays in passes of `num_blocks` share a block. What goes on into the next pass meets what is at its beginning.
fn meet(one: &Range<usize>, other: &Range<usize>, num_blocks: usize) -> bool {
    let meets = |a: &Range<usize>, b: &Range<usize>, later: usize| a.start < b.end + later && b.start + later < a.end;
    meets(one, other, 0) || meets(one, other, num_blocks) || meets(other, one, num_blocks)
}

/// What becomes whole in a pass that follows others like it.
fn stays(plan: &ShardPlan, schedule: &Schedule) -> Vec<Stay> {
    let num_blocks = schedule.steps().count();
    let mut ended = Vec::new();
    // By place, those of the next pass behind those of this one; `None` where nothing lies in the ring.
    let mut begun: Vec<Option<Stay>> = Vec::new();
    // The second pass is the first that begins like all others, and what it begins may end in the third.
    for pass in 0..if schedule.repeats() { 3 } else { 1 } {
        for (block, places) in schedule.steps().enumerate() {
            let block = pass * num_blocks + block;
            for at in begun.len()..plan.ahead_of(schedule, places.clone()) {
                let begin = || {
                    let bytes = plan.dtype().size() * plan.gathered_len(schedule.unit(at)) as u64;
                    let len = (bytes.0 as usize).next_multiple_of(Arena::GRAIN);
                    Stay { blocks: block..usize::MAX, uses: vec![at % schedule.len()], len }
                };
                begun.push(plan.is_gathered(schedule, at, places.start).then(begin));
            }
            for at in places {
                let Some(mut stay) = begun[at].take() else { continue };
                match schedule.used_after(at) {
                    Some(after) if after < begun.len() => {
                        stay.uses.push(after % schedule.len());
                        begun[after] = Some(stay);
                    }
                    _ => {
                        stay.blocks.end = block + 1;
                        ended.push(stay);
                    }
                }
            }
        }
        begun.drain(..schedule.len());
    }
    if !schedule.repeats() {
        return ended;
    }
    let of_second = |stay: &Stay| (num_blocks..2 * num_blocks).contains(&stay.blocks.start);
    // What the first pass began and nobody ever gives back is there for good.
    let for_good = |stay: &Stay| stay.blocks.start < num_blocks;
    let mut all: Vec<Stay> = ended.into_iter().filter(of_second).collect();
    all.extend(begun.into_iter().flatten().filter(for_good));
    all.iter_mut().for_each(|stay| {
        let len = (stay.blocks.end - stay.blocks.start).min(num_blocks);
        let start = stay.blocks.start % num_blocks;
        stay.blocks = start..start + len;
    });
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use scout_core::{ParamSpec, UnitId, UnitSpec};
    use scout_device::cuda::FreeList;

    use super::*;
    use crate::plan::none_resident;

    fn plan(lens: &[usize], lookahead: usize) -> ShardPlan {
        let unit = |(index, &len): (usize, &usize)| {
            let params = vec![ParamSpec::new("p", [len])];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        let units: Vec<_> = lens.iter().enumerate().map(unit).collect();
        ShardPlan::new(&units, 2, &none_resident, lookahead)
    }

    fn schedule(blocks: &[&[usize]]) -> Schedule {
        let mut schedule = Schedule::default();
        for units in blocks {
            schedule.push(&units.iter().map(|&unit| UnitId(unit)).collect::<Vec<_>>());
        }
        schedule
    }

    /// Layers of one small and of three larger units between two ends, there and back.
    fn there_and_back(num_layers: usize) -> Schedule {
        let (forward, back) = ([&[1][..], &[2, 3, 4]], [&[4, 3, 2][..], &[1]]);
        let layers = |blocks: [&'static [usize]; 2]| std::iter::repeat_n(blocks, num_layers).flatten();
        let ends: [&[usize]; 2] = [&[0], &[5]];
        schedule(
            &[&ends[..1], &layers(forward).collect::<Vec<_>>(), &ends[1..], &layers(back).collect::<Vec<_>>()].concat(),
        )
    }

    /// Takes and gives what walks take and give, in their order: nobody finds a place taken. The third pass fails half-way and
    /// the fifth is let go of, so that others begin with an empty ring.
    fn walk(plan: &ShardPlan, schedule: &Schedule) {
        let (layout, num_blocks) = (RingLayout::of(plan, schedule), schedule.steps().count());
        let mut free: FreeList<()> = FreeList::new(layout.bytes);
        let mut whole: Vec<Option<(usize, usize)>> = Vec::new();
        for pass in 0..8 {
            for block in schedule.steps().take(if pass == 2 { num_blocks / 2 } else { num_blocks }) {
                for at in whole.len()..plan.ahead_of(schedule, block.clone()) {
                    let len = (plan.dtype().size() * plan.gathered_len(schedule.unit(at)) as u64).0 as usize;
                    let len = len.next_multiple_of(Arena::GRAIN);
                    whole.push(plan.is_gathered(schedule, at, block.start).then(|| {
                        let taken = free.take_at(layout.start(at), len);
                        (taken.expect("a place is free when its unit comes").start, len)
                    }));
                }
                for at in block {
                    let Some((start, len)) = whole[at].take() else { continue };
                    assert_eq!(start, layout.start(at), "who is handed a unit on finds it where it says");
                    match schedule.used_after(at) {
                        Some(after) if after < whole.len() => whole[after] = Some((start, len)),
                        _ => free.give(start, len, Vec::new()),
                    }
                }
            }
            match pass {
                2 | 4 => whole.drain(..).flatten().for_each(|(start, len)| free.give(start, len, Vec::new())),
                _ => drop(whole.drain(..schedule.len())),
            }
        }
    }

    #[test]
    fn every_walk_finds_its_places_free_in_a_ring_hardly_larger_than_what_is_whole_at_one_time() {
        for lookahead in 0..40 {
            let plan = plan(&[128 * 33, 128 * 2, 128 * 4, 128 * 43, 128 * 21, 128 * 33], lookahead);
            for num_layers in [1, 2, 6] {
                let once = there_and_back(num_layers);
                for schedule in [once.clone(), once.repeated()] {
                    walk(&plan, &schedule);
                    let (bytes, most) = (ring_bytes(&plan, &[&schedule]), plan.gathered_peak(&schedule));
                    assert!(most <= bytes && bytes.0 <= most.0 * 5 / 4, "{bytes} for {most}, {lookahead} ahead");
                }
            }
        }
    }

    #[test]
    fn resident_units_take_no_place_and_leave_those_of_others_as_they_are() {
        let specs: Vec<_> = plan(&[100, 7, 300], 2).units().iter().map(|unit| unit.spec.clone()).collect();
        let plan = ShardPlan::new(&specs, 2, &|unit| unit.0 == 1, 1);
        let schedule = schedule(&[&[0], &[1], &[2], &[2], &[1], &[0]]).repeated();
        walk(&plan, &schedule);
        assert_eq!(
            ring_bytes(&plan, &[&schedule]).0 as usize,
            400_usize.next_multiple_of(512) + 1200_usize.next_multiple_of(512)
        );
    }

    #[test]
    fn units_of_two_ends_share_a_place_only_where_they_do_not_meet() {
        for (one, other, expected) in [
            (0..2, 2..4, false),
            (0..3, 2..4, true),
            // Of ten blocks: one that goes on into the next pass, to its third block.
            (8..13, 0..2, true),
            (8..13, 3..8, false),
            (0..2, 8..13, true),
            (9..11, 8..9, false),
            (0..10, 4..5, true),
        ] {
            assert_eq!(meet(&one, &other, 10), expected, "{one:?} {other:?}");
        }
    }

    #[test]
    fn whole_units_are_gathered_less_far_ahead_in_a_ring_that_was_planned_without_own_experts() {
        let unit = |index| {
            let params = vec![ParamSpec::new("p", [4, 8, 16])];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        let units: Vec<_> = (0..6).map(unit).collect();
        let passes = [&schedule(&[&[0], &[1], &[2], &[3], &[4], &[5]])];
        for (lookahead, expected) in [(4, Some(1)), (3, Some(1)), (2, Some(0)), (1, Some(0)), (0, None)] {
            let plan = ShardPlan::new(&units, 2, &none_resident, lookahead).reading_in_place();
            walk(&plan, passes[0]);
            let room = ring_bytes(&plan, &passes);
            assert_eq!(room.0, 1024 * (lookahead as u64 + 1), "halves of {lookahead} ahead and one in use");
            let whole = with_whole_units(&plan, room, &passes);
            assert_eq!(whole.as_ref().map(ShardPlan::lookahead), expected, "{lookahead} ahead");
            assert!(
                whole.is_none_or(|whole| ring_bytes(&whole, &passes) <= room && !whole.is_read_in_place(UnitId(0)))
            );
        }
    }

    #[test]
    fn a_plan_without_sharded_units_needs_no_ring() {
        let specs: Vec<_> = plan(&[100, 7], 2).units().iter().map(|unit| unit.spec.clone()).collect();
        let plan = ShardPlan::new(&specs, 2, &|_| true, 2);
        assert_eq!(ring_bytes(&plan, &[&schedule(&[&[0], &[1]])]), ByteCount(0));
    }
}
