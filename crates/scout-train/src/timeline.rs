//! The walk with times instead of bytes: when each unit has arrived, when arithmetic can go on, and how long it waits in
//! between. What the walk does on a GPU it does here in the same order: gathers queue one behind the other, as far ahead as
//! the plan looks, and each use waits for its unit.

use std::ops::Range;

use scout_core::UnitId;
use scout_shard::{Schedule, ShardPlan};

use crate::rates::Link;
use crate::times::Work;

/// In seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Walked {
    pub total: f64,
    /// Of it, in which nothing computed because a unit was still under way.
    pub waited: f64,
}

/// `num_walks` walks of one schedule, one behind the other, each use computing what `work` says for its place in the
/// order. Where passes repeat, as many of a row of them that has no end; where they do not, only the first begins with
/// an idle link: the next one's gathers begin while the last block is computed.
pub fn walks(shards: &ShardPlan, schedule: &Schedule, work: &[Work], link: Link, num_walks: usize) -> Walked {
    let mut timeline = Timeline { shards, link, now: 0.0, waited: 0.0, gained: 0.0, link_free: 0.0 };
    let mut ends = [Walked::default(); SIMULATED];
    // By place, those of the next walk behind those of this one.
    let mut arrivals = Vec::new();
    for end in &mut ends {
        for block in schedule.steps() {
            timeline.gather_ahead(schedule, (block.clone(), 0), &mut arrivals);
            if block.end == work.len() && !schedule.repeats() && num_walks > 1 {
                timeline.gather_ahead(schedule, (0..0, work.len()), &mut arrivals);
            }
            for at in block {
                timeline.wait(arrivals[at]);
                timeline.compute(work[at]);
            }
        }
        *end = Walked { total: timeline.now, waited: timeline.waited };
        arrivals.drain(..work.len());
    }
    // What is simulated last is as all that follow.
    let [first, .., before, last] = ends;
    let begun = if schedule.repeats() { Walked::default() } else { first };
    let more = (num_walks - usize::from(!schedule.repeats())) as f64;
    Walked {
        total: begun.total + more * (last.total - before.total),
        waited: begun.waited + more * (last.waited - before.waited),
    }
}

/// Walks until all are alike.
const SIMULATED: usize = 3;

struct Timeline<'a> {
    shards: &'a ShardPlan,
    link: Link,
    now: f64,
    waited: f64,
    /// How far the link's clock is ahead of that of arithmetic. It is that of a link under products, and gains while
    /// arithmetic stands still, because the link is faster then.
    gained: f64,
    /// By the link's clock: when the gathers that are queued will be done.
    link_free: f64,
}

impl Timeline<'_> {
    fn link_now(&self) -> f64 {
        self.now + self.gained
    }

    /// `arrival` is by the link's clock.
    fn wait(&mut self, arrival: f64) {
        let lag = (arrival - self.link_now()).max(0.0);
        let wait = lag * self.link.under_products / self.link.alone;
        self.waited += wait;
        self.now += wait;
        self.gained += lag - wait;
    }

    /// Queues the gathers that the walk queues before `block`, and adds when each place's unit will have arrived, by the link's
    /// clock. What is there already needs no time. The walk's first place is at `begin` of the arrivals.
    fn gather_ahead(&mut self, schedule: &Schedule, (block, begin): (Range<usize>, usize), arrivals: &mut Vec<f64>) {
        for at in arrivals.len() - begin..self.shards.ahead_of(schedule, block.clone()) {
            arrivals.push(match self.shards.is_gathered(schedule, at, block.start) {
                true => self.gather(schedule.unit(at)),
                false => 0.0,
            });
        }
    }

    fn gather(&mut self, id: UnitId) -> f64 {
        let bytes = (self.shards.dtype().size() * self.shards.remote_len(id) as u64).as_f64();
        self.link_free = self.link_free.max(self.link_now()) + bytes / self.link.under_products;
        self.link_free
    }

    /// Goes slower as long as the link is busy.
    fn compute(&mut self, work: Work) {
        let Link { slowdown, memory_slowdown, .. } = self.link;
        let slowed = work.arithmetic * (1.0 + slowdown) + work.memory * (1.0 + memory_slowdown);
        let seconds = work.seconds();
        let busy = (self.link_free - self.link_now()).max(0.0);
        self.now += match slowed <= busy {
            true => slowed,
            false => busy + seconds - busy * seconds / slowed,
        };
        self.now += work.waiting;
        self.waited += work.waiting;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use scout_core::{ParamSpec, UnitSpec};
    use scout_shard::{all_resident, none_resident};

    use super::*;

    /// A byte takes a second; half of each unit's four bytes comes from the other rank.
    const LINK: Link =
        Link { under_products: 1.0, alone: 1.0, slowdown: 0.0, memory_slowdown: 0.0, brings_others_alone: false };

    fn arithmetic(seconds: f64) -> Work {
        Work { arithmetic: seconds, ..Work::default() }
    }

    fn units(count: usize) -> Vec<Arc<UnitSpec>> {
        let unit = |index| {
            let params = vec![ParamSpec::new("p", [1])];
            Arc::new(UnitSpec { id: UnitId(index), name: format!("u{index}"), params })
        };
        (0..count).map(unit).collect()
    }

    fn one_by_one(count: usize) -> Schedule {
        let mut schedule = Schedule::default();
        (0..count).for_each(|unit| schedule.push(&[UnitId(unit)]));
        schedule
    }

    #[test]
    fn gathers_hide_behind_arithmetic_that_is_longer_and_show_behind_shorter() {
        let (specs, schedule) = (units(4), one_by_one(4));
        // One element on two ranks: each keeps one, one comes: four seconds.
        for (is_resident, lookahead, compute, expected) in [
            (none_resident as fn(UnitId) -> bool, 0, 10.0, (4.0 * 14.0, 16.0)),
            (none_resident, 1, 10.0, (4.0 + 40.0, 4.0)),
            // The link is the slower one: the last unit arrives after 16, and is used.
            (none_resident, 1, 1.0, (17.0, 13.0)),
            (none_resident, 3, 1.0, (17.0, 13.0)),
            (all_resident, 1, 10.0, (40.0, 0.0)),
        ] {
            let shards = ShardPlan::new(&specs, 2, &is_resident, lookahead);
            let Walked { total, waited } = walks(&shards, &schedule, &[arithmetic(compute); 4], LINK, 1);
            assert_eq!((total, waited), expected, "{lookahead} ahead, {compute} s each");
        }
    }

    #[test]
    fn arithmetic_is_slower_only_while_the_link_is_busy() {
        let (specs, schedule) = (units(2), one_by_one(2));
        let link = Link { slowdown: 0.25, memory_slowdown: 0.5, ..LINK };
        let shards = ShardPlan::new(&specs, 2, &|unit| unit.0 == 0, 1);
        // Ten seconds under a gather of four: in those four 3.2 seconds' worth of arithmetic was done, less of what is bound
        // by memory, and of both together, which would take fourteen, four fourteenths.
        for (arithmetic, memory, expected) in
            [(10.0, 0.0, 10.8), (0.0, 10.0, 4.0 + 10.0 - 4.0 / 1.5), (4.0, 6.0, 4.0 + 10.0 * 10.0 / 14.0)]
        {
            let work = [Work { arithmetic, memory, waiting: 0.0 }, self::arithmetic(1.0)];
            let Walked { total, waited } = walks(&shards, &schedule, &work, link, 1);
            assert!((total - 1.0 - expected).abs() < 1e-9 && waited == 0.0, "{total} {waited}");
        }
    }

    #[test]
    fn waits_for_rows_of_other_ranks_take_time_in_which_nothing_computes() {
        let (specs, schedule) = (units(1), one_by_one(1));
        let shards = ShardPlan::new(&specs, 2, &all_resident, 0);
        let work = [Work { waiting: 0.5, ..arithmetic(2.0) }];
        assert_eq!(walks(&shards, &schedule, &work, LINK, 3), Walked { total: 7.5, waited: 1.5 });
    }

    #[test]
    fn where_passes_repeat_the_link_never_stands_idle_and_what_is_whole_at_an_end_is_gathered_once() {
        let (specs, mut there_and_back) = (units(3), Schedule::default());
        [0, 1, 2, 2, 1, 0].into_iter().for_each(|unit| there_and_back.push(&[UnitId(unit)]));
        let repeated = there_and_back.clone().repeated();
        for (lookahead, num_walks, compute, expected) in [
            // Of six uses in a pass those at its two ends need no gather, each of which takes four seconds.
            (0, 1, 0.0, (16.0, 16.0)),
            // One ahead, the next ones are whole too.
            (1, 1, 0.0, (8.0, 8.0)),
            (1, 3, 0.0, (24.0, 24.0)),
            (1, 2, 4.0, (48.0, 0.0)),
        ] {
            let shards = ShardPlan::new(&specs, 2, &none_resident, lookahead);
            let Walked { total, waited } = walks(&shards, &repeated, &[arithmetic(compute); 6], LINK, num_walks);
            assert_eq!((total, waited), expected, "{lookahead} ahead, {compute} s each");
            assert!(total < walks(&shards, &there_and_back, &[arithmetic(compute); 6], LINK, num_walks).total);
        }
    }

    #[test]
    fn walks_repeat_without_a_link_that_stands_idle_in_between() {
        let (specs, schedule) = (units(3), one_by_one(3));
        let shards = ShardPlan::new(&specs, 2, &none_resident, 1);
        let [one, two, five] = [1, 2, 5].map(|n| walks(&shards, &schedule, &[arithmetic(1.0); 3], LINK, n));
        assert!(two.total <= 2.0 * one.total);
        assert!((five.total - (one.total + 4.0 * (two.total - one.total))).abs() < 1e-9);
    }
}
