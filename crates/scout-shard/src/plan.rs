//! Which bytes each rank keeps, and the order in which units are gathered: pure functions of shapes and the number of
//! ranks, printed before the first batch and obeyed while running. No tensor and no communication here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use scout_core::{ByteCount, DType, Rank, UnitId, UnitSpec};

/// Where one unit lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    Resident,
    Sharded,
    /// Each rank keeps whole experts, which are never gathered: rows come to them.
    OwnExperts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitShard {
    pub spec: Arc<UnitSpec>,
    pub placement: Placement,
    /// Elements each rank keeps. Sharded units are padded at the end so that all ranks keep the same number.
    pub shard_len: usize,
}

impl UnitShard {
    /// Whether each rank's part is nothing but whole matrices of experts.
    fn is_whole_matrices(&self) -> bool {
        let [param] = &self.spec.params[..] else { return false };
        let [_, k, n] = *param.shape.dims() else { return false };
        self.shard_len > 0 && self.shard_len.is_multiple_of(k * n)
    }
}

/// Which part of every unit each rank keeps.
///
/// Made once, before the first batch, from nothing but shapes and the number of ranks; every rank computes the same
/// value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    // Invariant: the kept ranges of all ranks cover each sharded unit exactly once, padding included
    // (test: `every_element_is_kept_exactly_once`).
    units: Vec<UnitShard>,
    world_size: usize,
    dtype: DType,
    /// Sharded units that are gathered ahead of the block in use.
    lookahead: usize,
    /// Whether a rank's own experts stay where they are kept while others come in around them.
    reads_in_place: bool,
}

/// For [`ShardPlan::new`]: every rank keeps a whole copy of every unit, and nothing is gathered.
pub fn all_resident(_: UnitId) -> bool {
    true
}

/// For [`ShardPlan::new`]: every rank keeps one part of every unit.
pub fn none_resident(_: UnitId) -> bool {
    false
}

impl ShardPlan {
    /// Units of which `is_resident` is true are kept whole by every rank, the others in parts.
    pub fn new(
        units: &[Arc<UnitSpec>],
        world_size: usize,
        is_resident: &dyn Fn(UnitId) -> bool,
        lookahead: usize,
    ) -> ShardPlan {
        let units = units
            .iter()
            .map(|spec| {
                // A rank alone owns everything already: gathering from itself would only copy.
                let placement = match world_size == 1 || is_resident(spec.id) {
                    true => Placement::Resident,
                    false => Placement::Sharded,
                };
                let shard_len = match placement {
                    Placement::Resident => spec.num_elements(),
                    Placement::Sharded | Placement::OwnExperts => spec.num_elements().div_ceil(world_size),
                };
                UnitShard { spec: spec.clone(), placement, shard_len }
            })
            .collect();
        ShardPlan { units, world_size, dtype: DType::F32, lookahead, reads_in_place: false }
    }

    /// The same plan for weights that are kept in another element type than f32.
    pub fn stored_as(self, dtype: DType) -> ShardPlan {
        ShardPlan { dtype, ..self }
    }

    /// The same plan where gathers bring others' parts alone.
    pub fn reading_in_place(self) -> ShardPlan {
        ShardPlan { reads_in_place: true, ..self }
    }

    /// The same plan where experts that would be gathered stay with their ranks, as far as each keeps whole ones.
    pub fn leaving_experts(self) -> ShardPlan {
        let stays = |unit: &UnitShard| unit.placement == Placement::Sharded && unit.is_whole_matrices();
        let left = |unit: UnitShard| match stays(&unit) {
            true => UnitShard { placement: Placement::OwnExperts, ..unit },
            false => unit,
        };
        ShardPlan { units: self.units.into_iter().map(left).collect(), ..self }
    }

    /// Whether rows have to go to experts of other ranks.
    pub fn leaves_experts(&self) -> bool {
        self.units.iter().any(|unit| unit.placement == Placement::OwnExperts)
    }

    /// The same plan where gathers bring whole units, so many ahead.
    pub fn bringing_whole_units(&self, lookahead: usize) -> ShardPlan {
        ShardPlan { reads_in_place: false, lookahead, ..self.clone() }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn units(&self) -> &[UnitShard] {
        &self.units
    }

    pub fn unit(&self, id: UnitId) -> &UnitShard {
        &self.units[id.0]
    }

    pub fn lookahead(&self) -> usize {
        self.lookahead
    }

    /// Whether the unit at this place of the order has to be gathered while a block is in use that begins at `block_start`:
    /// what is resident is there, and what is used at two places from there on is gathered once.
    pub fn is_gathered(&self, schedule: &Schedule, at: usize, block_start: usize) -> bool {
        let is_there = || schedule.used_before(at).is_some_and(|before| before >= block_start);
        self.unit(schedule.unit(at)).placement == Placement::Sharded && !is_there()
    }

    /// Where in the order the units end that are whole or under way while `block` is in use. Only what has to be gathered
    /// counts as ahead.
    pub fn ahead_of(&self, schedule: &Schedule, block: Range<usize>) -> usize {
        let (mut end, mut left) = (block.end, self.lookahead);
        let last = if schedule.repeats { block.start + schedule.len() } else { schedule.len() };
        while end < last {
            match (self.is_gathered(schedule, end, block.start), left) {
                (true, 0) => break,
                (true, _) => left -= 1,
                (false, _) => {}
            }
            end += 1;
        }
        end
    }

    /// The elements of a unit that `rank` keeps; the end is cut where padding begins.
    pub fn kept(&self, id: UnitId, rank: Rank) -> Range<usize> {
        let unit = self.unit(id);
        let num_elements = unit.spec.num_elements();
        match unit.placement {
            Placement::Resident => 0..num_elements,
            Placement::Sharded | Placement::OwnExperts => {
                let cut = |elements: usize| elements.min(num_elements);
                cut(rank.0 * unit.shard_len)..cut((rank.0 + 1) * unit.shard_len)
            }
        }
    }

    /// Elements of each rank's part of a unit while it is trained, padding included. However the unit is held, the parts
    /// are the same, so that sums over ranks are taken alike.
    pub fn part_len(&self, id: UnitId) -> usize {
        self.unit(id).spec.num_elements().div_ceil(self.world_size)
    }

    /// The elements of a unit that `rank` updates; the end is cut where padding begins.
    pub fn part(&self, id: UnitId, rank: Rank) -> Range<usize> {
        let (len, num_elements) = (self.part_len(id), self.unit(id).spec.num_elements());
        (rank.0 * len).min(num_elements)..((rank.0 + 1) * len).min(num_elements)
    }

    /// Elements of a unit with the padding that makes its parts equal.
    pub fn padded_len(&self, id: UnitId) -> usize {
        self.part_len(id) * self.world_size
    }

    /// The same plan for a walk that gathers nothing ahead: never more than the units in use are whole.
    pub fn one_at_a_time(&self) -> ShardPlan {
        ShardPlan { lookahead: 0, ..self.clone() }
    }

    /// Whether a rank's own part of a unit is read where it is kept: it is nothing but whole matrices of experts.
    pub fn is_read_in_place(&self, id: UnitId) -> bool {
        let unit = self.unit(id);
        self.reads_in_place && unit.placement == Placement::Sharded && unit.is_whole_matrices()
    }

    /// Elements that a unit takes beside what is kept, when it is there.
    pub fn gathered_len(&self, id: UnitId) -> usize {
        self.unit(id).shard_len * (self.world_size - usize::from(self.is_read_in_place(id)))
    }

    /// Elements of a unit that come from other ranks.
    pub fn remote_len(&self, id: UnitId) -> usize {
        self.unit(id).shard_len * (self.world_size - 1)
    }

    /// Bytes of weights that each rank keeps for good.
    pub fn kept_bytes(&self) -> ByteCount {
        self.units.iter().map(|unit| self.dtype.size() * unit.shard_len as u64).sum()
    }

    /// Most bytes of gathered units at one time: a block's units and those that are gathered ahead of it.
    pub fn gathered_peak(&self, schedule: &Schedule) -> ByteCount {
        let bytes = |at: usize| self.dtype.size() * self.gathered_len(schedule.unit(at)) as u64;
        let (mut most, mut started) = (ByteCount(0), 0);
        // Passes that begin with units of the one before are all like the second.
        for _ in 0..if schedule.repeats { 2 } else { 1 } {
            for block in schedule.steps() {
                started = self.ahead_of(schedule, block.clone()).max(started);
                let gathered = (block.start..started).filter(|at| self.is_gathered(schedule, *at, block.start));
                most = most.max(gathered.map(bytes).sum());
            }
            started -= schedule.len();
        }
        most
    }
}

/// The order in which a pass uses the units, block by block. Where passes repeat, places behind its end are those of the
/// next pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    // Invariant: `ends` is sorted; block i uses `order[ends[i - 1]..ends[i]]`.
    order: Vec<UnitId>,
    ends: Vec<usize>,
    /// For each place of the order: where its unit is used last before it, and next after it, in the same pass.
    before: Vec<Option<usize>>,
    after: Vec<Option<usize>>,
    /// Where each unit is used first and last.
    uses: BTreeMap<UnitId, (usize, usize)>,
    repeats: bool,
}

impl Schedule {
    /// Adds a block that uses `units` in this order.
    pub fn push(&mut self, units: &[UnitId]) {
        for &unit in units {
            let at = self.order.len();
            let (_, last) = self.uses.entry(unit).or_insert((at, at));
            let before = (*last < at).then(|| std::mem::replace(last, at));
            before.into_iter().for_each(|before| self.after[before] = Some(at));
            self.before.push(before);
            self.after.push(None);
            self.order.push(unit);
        }
        self.ends.push(self.order.len());
    }

    /// The same order, pass after pass: what one begins to gather ahead of its end is for the next.
    pub fn repeated(self) -> Schedule {
        Schedule { repeats: true, ..self }
    }

    pub fn repeats(&self) -> bool {
        self.repeats
    }

    /// Of one pass.
    pub fn order(&self) -> &[UnitId] {
        &self.order
    }

    /// Places of one pass.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The unit at a place of this pass or of the next one.
    pub fn unit(&self, at: usize) -> UnitId {
        self.order[at % self.len()]
    }

    /// The place before `at` where the same unit is used.
    pub fn used_before(&self, at: usize) -> Option<usize> {
        let (pass, place) = (at / self.len(), at % self.len());
        let last = |pass| (pass, self.uses[&self.order[place]].1);
        let (pass, before) =
            self.before[place].map(|before| (pass, before)).or_else(|| pass.checked_sub(1).map(last))?;
        Some(pass * self.len() + before)
    }

    /// The place after `at` where the same unit is used.
    pub fn used_after(&self, at: usize) -> Option<usize> {
        let (pass, place) = (at / self.len(), at % self.len());
        let first = || (pass + 1, self.uses[&self.order[place]].0);
        let (pass, after) = self.after[place].map(|after| (pass, after)).or_else(|| self.repeats.then(first))?;
        Some(pass * self.len() + after)
    }

    pub fn steps(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scout_core::ParamSpec;

    fn units(lens: &[usize]) -> Vec<Arc<UnitSpec>> {
        let unit = |(index, &len): (usize, &usize)| {
            let params = vec![ParamSpec::new(format!("p{index}"), [len])];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        lens.iter().enumerate().map(unit).collect()
    }

    fn schedule(blocks: &[&[usize]]) -> Schedule {
        let mut schedule = Schedule::default();
        for units in blocks {
            schedule.push(&units.iter().map(|&unit| UnitId(unit)).collect::<Vec<_>>());
        }
        schedule
    }

    #[test]
    fn every_element_is_kept_exactly_once() {
        let specs = units(&[1, 2, 7, 8, 64, 1000, 1001]);
        for world_size in 1..=9 {
            let plan = ShardPlan::new(&specs, world_size, &none_resident, 2);
            for spec in &specs {
                let mut next = 0;
                for rank in 0..world_size {
                    let kept = plan.kept(spec.id, Rank(rank));
                    assert!(kept.start == next || kept.is_empty(), "{world_size} ranks, {}: {kept:?}", spec.name);
                    assert!(kept.len() <= plan.unit(spec.id).shard_len);
                    next = next.max(kept.end);
                }
                assert_eq!(next, spec.num_elements(), "{world_size} ranks, {}", spec.name);
                assert!(plan.gathered_len(spec.id) >= spec.num_elements());
            }
        }
    }

    #[test]
    fn parts_are_read_in_place_where_each_is_whole_matrices() {
        let unit = |(index, shapes): (usize, &[&[usize]])| {
            let params = shapes.iter().map(|dims| ParamSpec::new("p", *dims)).collect();
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        let units: Vec<_> = [&[&[4, 2, 3][..]][..], &[&[24]], &[&[4, 6]], &[&[4, 2, 3], &[4, 2, 3]], &[&[4, 2, 3]]]
            .into_iter()
            .enumerate()
            .map(unit)
            .collect();
        for (world_size, expected) in [(1, false), (2, true), (3, false), (4, true), (8, false)] {
            let whole = ShardPlan::new(&units, world_size, &|unit| unit.0 == 4, 2);
            let plan = whole.clone().reading_in_place();
            let found =
                |plan: &ShardPlan| units.iter().map(|unit| plan.is_read_in_place(unit.id)).collect::<Vec<bool>>();
            assert_eq!(found(&plan), [expected, false, false, false, false], "{world_size} ranks");
            assert_eq!(found(&whole), [false; 5]);
            let (first, second) = (UnitId(0), UnitId(1));
            let own = if expected { 24 / world_size } else { 0 };
            assert_eq!(plan.gathered_len(first), whole.gathered_len(first) - own, "{world_size} ranks");
            assert_eq!(plan.gathered_len(second), whole.gathered_len(second));
            assert_eq!(plan.remote_len(first), whole.gathered_len(first) - plan.unit(first).shard_len);
            assert_eq!(plan.bringing_whole_units(2), whole);
            let left = plan.leaving_experts();
            let placements: Vec<Placement> = left.units().iter().map(|unit| unit.placement).collect();
            let of = |is_left: bool| if is_left { Placement::OwnExperts } else { whole.unit(second).placement };
            assert_eq!(placements[..4], [of(expected), of(false), of(false), of(false)], "{world_size} ranks");
            assert_eq!((placements[4], left.is_read_in_place(first)), (Placement::Resident, false));
            assert!((0..world_size).map(Rank).all(|rank| left.kept(first, rank) == whole.kept(first, rank)));
        }
    }

    #[test]
    fn experts_that_stay_with_their_ranks_are_never_gathered() {
        let unit = |index, dims: &[usize]| {
            let params = vec![ParamSpec::new("p", dims)];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        let units = [unit(0, &[10]), unit(1, &[4, 2, 3]), unit(2, &[10])];
        let plan = ShardPlan::new(&units, 2, &none_resident, 1).leaving_experts();
        let schedule = schedule(&[&[0], &[1], &[2]]);
        assert!(
            plan.leaves_experts() && !ShardPlan::new(&units, 3, &none_resident, 1).leaving_experts().leaves_experts()
        );
        assert_eq!([0, 1, 2].map(|at| plan.is_gathered(&schedule, at, 0)), [true, false, true]);
        assert_eq!((plan.ahead_of(&schedule, 0..1), plan.gathered_peak(&schedule)), (3, ByteCount(4 * 20)));
        assert_eq!(plan.kept_bytes(), ByteCount(4 * (5 + 12 + 5)));
    }

    #[test]
    fn parts_are_the_same_however_the_unit_is_held() {
        let specs = units(&[1, 2, 7, 8, 64, 1001]);
        for world_size in 1..=9 {
            let sharded = ShardPlan::new(&specs, world_size, &none_resident, 2);
            let resident = ShardPlan::new(&specs, world_size, &all_resident, 2);
            for spec in &specs {
                for rank in (0..world_size).map(Rank) {
                    assert_eq!(sharded.part(spec.id, rank), sharded.kept(spec.id, rank));
                    assert_eq!(resident.part(spec.id, rank), sharded.part(spec.id, rank));
                }
                assert_eq!(sharded.padded_len(spec.id), sharded.gathered_len(spec.id));
                assert_eq!(resident.padded_len(spec.id), sharded.padded_len(spec.id));
            }
        }
    }

    #[test]
    fn a_resident_plan_gathers_nothing() {
        let specs = units(&[10, 20]);
        let plan = ShardPlan::new(&specs, 4, &all_resident, 2);
        let schedule = schedule(&[&[0], &[1]]);
        assert_eq!(plan.gathered_peak(&schedule), ByteCount(0));
        assert_eq!(plan.kept_bytes(), ByteCount(120));
        assert_eq!(plan.kept(UnitId(1), Rank(3)), 0..20);
    }

    #[test]
    fn the_gathered_peak_is_the_heaviest_block_with_what_is_gathered_ahead_of_it() {
        let specs = units(&[100, 8, 40]);
        let plan = ShardPlan::new(&specs, 2, &none_resident, 1);
        let schedule = schedule(&[&[1], &[2, 1], &[0]]);
        assert_eq!(plan.gathered_peak(&schedule), ByteCount(4 * (40 + 8 + 100)));
    }

    #[test]
    fn where_a_pass_turns_round_what_it_still_holds_is_not_gathered_again() {
        let specs = units(&[10, 10, 10, 10]);
        let schedule = schedule(&[&[0], &[1], &[2], &[3], &[2], &[1], &[0]]);
        // Unit 3, in the middle, is resident. 2 is still whole when it comes again, so is 1 with one ahead, and all with two.
        for (lookahead, ahead) in [(0, [1, 2, 5, 4, 5, 6, 7]), (1, [2, 6, 6, 5, 6, 7, 7]), (2, [7, 7, 7, 6, 7, 7, 7])] {
            let plan = ShardPlan::new(&specs, 2, &|unit| unit.0 == 3, lookahead);
            let found: Vec<usize> = schedule.steps().map(|block| plan.ahead_of(&schedule, block)).collect();
            assert_eq!(found, ahead, "{lookahead} ahead");
            assert_eq!(plan.gathered_peak(&schedule), ByteCount(4 * 10) * (lookahead as u64 + 1));
        }
        assert_eq!((schedule.used_before(4), schedule.used_before(2)), (Some(2), None));
        assert_eq!((schedule.used_after(2), schedule.used_after(4)), (Some(4), None));
    }

    #[test]
    fn where_passes_repeat_the_next_one_begins_with_what_is_still_whole() {
        let specs = units(&[10, 10, 10]);
        let there_and_back = schedule(&[&[0], &[1], &[2], &[2], &[1], &[0]]);
        let repeated = there_and_back.clone().repeated();
        assert_eq!((repeated.used_before(6), repeated.used_before(0)), (Some(5), None));
        assert_eq!(
            (repeated.used_after(5), repeated.used_after(4), repeated.used_after(2)),
            (Some(6), Some(7), Some(3))
        );
        assert_eq!((there_and_back.used_after(5), repeated.unit(7)), (None, UnitId(1)));
        // Beside unit 0, which the next pass uses first, the one that it uses second, and no further than a whole pass.
        for (lookahead, expected, peak) in [(0, 7, 10), (1, 8, 20), (2, 11, 30), (9, 11, 30)] {
            let plan = ShardPlan::new(&specs, 2, &none_resident, lookahead);
            assert_eq!(plan.ahead_of(&repeated, 5..6), expected, "{lookahead} ahead");
            assert_eq!(plan.ahead_of(&there_and_back, 5..6), 6);
            assert!(!plan.is_gathered(&repeated, 6, 5) && plan.is_gathered(&repeated, 7, 5));
            assert_eq!(plan.gathered_peak(&repeated), ByteCount(4 * peak), "{lookahead} ahead");
        }
    }

    #[test]
    fn resident_units_between_sharded_ones_do_not_shorten_what_is_gathered_ahead() {
        let specs = units(&[10, 10, 10, 10, 10]);
        let is_resident = |unit: UnitId| [1, 2].contains(&unit.0);
        let schedule = schedule(&[&[0], &[1], &[2], &[3], &[4]]);
        for (lookahead, block_end, expected) in [(0, 1, 3), (1, 1, 4), (2, 1, 5), (1, 4, 5), (3, 5, 5)] {
            let plan = ShardPlan::new(&specs, 2, &is_resident, lookahead);
            let found = plan.ahead_of(&schedule, block_end - 1..block_end);
            assert_eq!(found, expected, "{lookahead} ahead of {block_end}");
        }
        let plan = ShardPlan::new(&specs, 2, &is_resident, 1);
        let kept = |unit| plan.kept(UnitId(unit), Rank(1));
        assert_eq!((kept(0), kept(1)), (5..10, 0..10));
        assert_eq!(plan.kept_bytes(), ByteCount(4 * (3 * 5 + 2 * 10)));
    }
}
