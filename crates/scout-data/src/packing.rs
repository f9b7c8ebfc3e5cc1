//! Packs whole rows into micro-batches up to a number of tokens. Rows never attend to each other and none is cut, so
//! packing changes which rows share an update and nothing else. Moves no tokens itself.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::order::{Dealing, Dealt, SampleOrder, Shuffle, UpdateOrder, packing_permutation};

/// Rows dealt to micro-batches of equal token budget.
///
/// The packs are made once, from lengths and seed; every epoch deals them in a new order, so that all epochs have the
/// same number of updates. Without shuffling rows stay in the order of the files.
#[derive(Debug, Clone)]
pub struct PackedOrder {
    packs: Vec<Vec<usize>>,
    order: SampleOrder,
}

impl PackedOrder {
    /// `capacity` is the most tokens of a pack; a row longer than that gets a pack of its own. `dealing.batch` is
    /// already part of the capacity and is not looked at.
    pub fn new(lengths: &[usize], capacity: usize, dealing: Dealing, shuffle: Shuffle) -> Result<PackedOrder> {
        let packs = match shuffle {
            Shuffle::Seeded(seed) => pack_best_fit(lengths, capacity, seed),
            Shuffle::Off => pack_in_order(lengths, capacity),
        };
        let order = SampleOrder::new(packs.len(), Dealing { batch: 1, ..dealing }, shuffle)?;
        Ok(PackedOrder { packs, order })
    }

    pub fn packs(&self) -> &[Vec<usize>] {
        &self.packs
    }

    /// Rows where packs were dealt.
    fn unpacked(&self, dealt: Dealt) -> Dealt {
        let rows = |packs: Vec<usize>| packs.into_iter().flat_map(|pack| self.packs[pack].iter().copied()).collect();
        dealt.into_iter().map(|batches| batches.into_iter().map(rows).collect()).collect()
    }
}

impl UpdateOrder for PackedOrder {
    fn world(&self) -> usize {
        self.order.world()
    }

    fn accumulation(&self) -> usize {
        self.order.accumulation()
    }

    fn updates_per_epoch(&self) -> u64 {
        self.order.updates_per_epoch()
    }

    fn update(&self, update: u64) -> Dealt {
        self.unpacked(self.order.update(update))
    }

    fn epoch(&self, epoch: u64) -> Box<dyn Iterator<Item = Dealt> + '_> {
        Box::new(self.order.epoch(epoch).map(|packs| self.unpacked(packs)))
    }
}

/// Longest rows first, each into the fullest pack that still has room for it; rows of equal length in drawn order.
fn pack_best_fit(lengths: &[usize], capacity: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut rows = packing_permutation(seed, lengths.len());
    rows.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for row in rows {
        let length = lengths[row];
        let found = rooms.range((length, 0)..).next().copied();
        let (room, pack) = found.unwrap_or((capacity.max(length), packs.len()));
        match found {
            Some(entry) => {
                rooms.remove(&entry);
                packs[pack].push(row);
            }
            None => packs.push(vec![row]),
        }
        rooms.insert((room - length, pack));
    }
    packs
}

fn pack_in_order(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (row, &length) in lengths.iter().enumerate() {
        match packs.last_mut() {
            Some(pack) if length <= room => pack.push(row),
            _ => {
                packs.push(vec![row]);
                room = capacity.max(length);
            }
        }
        room -= length;
    }
    packs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(lengths: &[usize], capacity: usize, shuffle: Shuffle) -> PackedOrder {
        let dealing = Dealing { world: 2, batch: 7, accumulation: 1 };
        PackedOrder::new(lengths, capacity, dealing, shuffle).unwrap()
    }

    proptest! {
        #[test]
        fn packing_loses_no_row_and_keeps_the_budget(
            lengths in prop::collection::vec(1_usize..60, 1..80),
            capacity in 1_usize..100,
            seed in any::<u64>(),
        ) {
            for shuffle in [Shuffle::Seeded(seed), Shuffle::Off] {
                let order = packed(&lengths, capacity, shuffle);
                let mut rows = order.packs().concat();
                rows.sort_unstable();
                prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
                for pack in order.packs() {
                    let tokens: usize = pack.iter().map(|&row| lengths[row]).sum();
                    prop_assert!(tokens <= capacity || pack.len() == 1);
                }
            }
        }

        #[test]
        fn an_epoch_of_packs_holds_every_row(lengths in prop::collection::vec(1_usize..60, 1..80), seed in any::<u64>()) {
            let order = packed(&lengths, 64, Shuffle::Seeded(seed));
            let updates = 0..order.updates_per_epoch();
            let mut rows: Vec<usize> = updates.flat_map(|update| order.update(update)).flatten().flatten().collect();
            rows.sort_unstable();
            rows.dedup();
            prop_assert_eq!(rows.len(), lengths.len());
        }
    }

    #[test]
    fn packs_are_full_and_the_plan_repeats() {
        let lengths: Vec<usize> = (0..1000).map(|row| 20 + row * 37 % 180).collect();
        let order = packed(&lengths, 2048, Shuffle::Seeded(1));
        let least = lengths.iter().sum::<usize>().div_ceil(2048);
        assert!(order.packs().len() <= least + 1, "{} packs where {least} are needed", order.packs().len());
        assert_eq!(order.packs(), packed(&lengths, 2048, Shuffle::Seeded(1)).packs());
        assert_ne!(order.packs(), packed(&lengths, 2048, Shuffle::Seeded(2)).packs());
        assert_ne!(order.update(0), order.update(order.updates_per_epoch()), "epochs are dealt anew");
    }

    #[test]
    fn without_shuffling_packs_follow_the_file() {
        let order = packed(&[5, 5, 5, 20, 1], 10, Shuffle::Off);
        assert_eq!(order.packs(), [vec![0, 1], vec![2], vec![3], vec![4]]);
        assert_eq!(order.update(0), [vec![vec![0, 1]], vec![vec![2]]]);
    }
}
